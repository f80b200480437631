"""Answers out of passages: the likeliest span, and its scores as SQuAD has them."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from knowledge_distillation.evaluation.span_texts import (
    Span,
    best_of_row,
    best_of_windows,
    exact_match,
    normalised,
    overlap,
)


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("The Walt Disney Company", ["Walt Disney company."], 1, 1.0),
        ("Disney", ["The Walt Disney Company"], 0, 0.5),
        ("in 1957", ["1957", "the year 1957"], 0, 2 / 3),
        ("to be or not to be", ["to be"], 0, 0.5),  # a word counts as often as both have it
        ("U.S.", ["us"], 1, 1.0),
        ("theatre", ["atre"], 0, 0.0),  # articles are whole words
        ("", [""], 1, 1.0),  # no answer
        ("", ["Paris"], 0, 0.0),
        ("Paris", [""], 0, 0.0),
        ("the", ["a"], 1, 1.0),
    ],
)
def test_scores_of_an_answer(said: str, right: list[str], exact: int, f1: float) -> None:
    assert exact_match(said, right) == exact and overlap(said, right) == pytest.approx(f1)


def plainly(text: str) -> list[str]:
    """The words that are left of a text, letter by letter."""
    kept = "".join(letter for letter in text.lower() if letter not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""")
    return [word for word in re.sub(r"\b(a|an|the)\b", " ", kept).split()]


def test_scores_against_a_plain_twin() -> None:
    draw = random.Random(0)
    words = ["the", "a", "an", "The", "cat", "cat's", "sat,", "on", "(mat)", "—", "Über", "anthem", "U.S.A.", "5"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 6))) for _ in range(600)]
    for said, *right in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        mine, theirs = plainly(said), [plainly(one) for one in right]
        assert exact_match(said, right) == (mine in theirs)
        scores = []
        for other in theirs:
            left = list(other)
            both = sum(1 for word in mine if word in left and not left.remove(word))
            precision, recall = both / max(len(mine), 1), both / max(len(other), 1)
            scores.append(2 * precision * recall / (precision + recall) if both else float(mine == other))
        assert overlap(said, right) == pytest.approx(max(scores)) and normalised(said) == " ".join(mine)


def test_the_best_span_is_the_best_of_all_that_are_allowed() -> None:
    """[CLS] question [SEP] passage [SEP] padding, against every pair of a start and an end."""
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 6, 12, generator=generator)
    start[:, [1, 2, 3, 10, 11]] = end[:, [1, 2, 3, 10, 11]] = 50.0  # where no answer may be
    end[0, 4], start[0, 9] = 9.0, 9.0  # an end before its start
    end[1, 9], start[1, 4] = 9.0, 9.0  # six tokens
    offsets = torch.full((6, 12, 2), -1)
    offsets[:, 4:10] = torch.tensor([[10 * place, 10 * place + 7] for place in range(6)])
    mask = offsets[..., 0] >= 0
    mask[:, 0] = True
    found = best_of_windows(start, end, offsets, mask, longest=3)
    places = [0, *range(4, 10)]
    for row in range(6):
        pairs = [(i, j) for i in range(4, 10) for j in range(i, min(i + 3, 10))]
        first, last = max(pairs, key=lambda pair: start[row, pair[0]] + end[row, pair[1]])
        odds = [side[row, places].softmax(-1)[places.index(n)] for side, n in ((start, first), (end, last))]
        expected = [10 * (first - 4), 10 * (last - 4) + 7, start[row, first] + end[row, last]]
        expected += [start[row, 0] + end[row, 0], odds[0] * odds[1]]
        assert found[row].tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_a_window_without_a_passage_has_no_answer() -> None:
    mask = torch.tensor([[True, False, False]])
    (found,) = best_of_windows(*torch.zeros(2, 1, 3), torch.full((1, 3, 2), -1), mask, longest=2)
    assert found[:3].tolist() == [0, 0, -math.inf] and found[3] == 0


def test_the_best_of_several_windows() -> None:
    windows = [Span(3, 7, 1.0, 4.0, 0.2), Span(8, 9, 5.0, 2.0, 0.1), Span(0, 2, 3.0, 6.0, 0.9)]
    assert best_of_row(windows, no_answer=False)[:3] == (8, 9, 5.0)
    assert best_of_row(windows, no_answer=True)[:2] == (8, 9)  # the least score of no answer is 2
    assert best_of_row([one._replace(none=one.none + 4) for one in windows], no_answer=True)[:2] == (0, 0)

"""Answers that are a part of a passage: the likeliest of all windows, and its score against several right ones.

Source: Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, 2016 (exact match and F1);
Rajpurkar, Jia and Liang, Know What You Don't Know, 2018 (questions without an answer); Devlin et al., BERT, 2019
(windows, and [CLS] for no answer).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .scoring import Answer, Targets, Task, Totals, share

LONGEST_ANSWER = 30  # tokens, as in BERT's SQuAD

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """A text as answers are compared: in small letters, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(said: str, right: Iterable[str]) -> float:
    """1 where an answer is one of the right ones, else 0."""
    return float(normalised(said) in {normalised(one) for one in right})


def overlap(said: str, right: Iterable[str]) -> float:
    """F1 of the words of an answer and of a right one, as bags: the best of all right ones.

    Where one of the two has no words at all, such as "" for no answer, it is whether both have none.
    """
    words = normalised(said).split()
    return max((_f1(words, normalised(one).split()) for one in right), default=0.0)


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    return 2 * sum((Counter(said) & Counter(right)).values()) / (len(said) + len(right))


class Span(NamedTuple):
    """A part of a passage: its characters from `start` to before `end`, (0, 0) for no answer.

    `score` is the sum of its two logits, `none` that of [CLS], and `probability` that of both its ends in the window.
    """

    start: int
    end: int
    score: float
    none: float
    probability: float


def best_of_windows(start: Tensor, end: Tensor, offsets: Tensor, mask: Tensor, longest: int) -> Tensor:
    """(batch, 5): the likeliest part of the passage in each window, as the fields of a `Span`.

    Args:
        start, end: (batch, length) logits.
        offsets: (batch, length, 2) characters of each token of the passage; -1 of all others.
        mask: (batch, length), the tokens of the passage and [CLS].
        longest: of an answer, in tokens.
    """
    start, end = (side.double().masked_fill(~mask.bool(), -math.inf) for side in (start, end))
    inside = offsets[..., 0] >= 0
    first, last = (side.masked_fill(~inside, -math.inf) for side in (start, end))
    ahead = torch.nn.functional.pad(last, (0, longest - 1), value=-math.inf).unfold(1, longest, 1).max(-1)
    score, begin = (first + ahead.values).max(-1, keepdim=True)
    finish = begin + ahead.indices.gather(1, begin)
    found = torch.cat([offsets[..., 0].gather(1, begin), offsets[..., 1].gather(1, finish)], 1).clamp(min=0)
    none = torch.where(mask.bool() & ~inside, start + end, -math.inf).max(-1, keepdim=True).values
    probability = start.log_softmax(-1).gather(1, begin) + end.log_softmax(-1).gather(1, finish)
    return torch.cat([found.double(), score, none, probability.exp()], 1)


def best_of_row(windows: Iterable[Span], no_answer: bool) -> Span:
    """The likeliest span of a passage, by its score in its window.

    Args:
        no_answer: a question may have none: that is said where [CLS], by its least score of all windows, scores more.
    """
    windows = list(windows)
    best, none = max(windows, key=lambda span: span.score), min(span.none for span in windows)
    return best._replace(start=0, end=0) if no_answer and none > best.score else best


@dataclass(frozen=True)
class SpanScores:
    """How answers are scored: windows of one row, which `window` of the batch names, give one answer together.

    Args:
        passages: of all rows.
        answers: the right ones of each row, none for no answer; None where they are not known.
        no_answer: whether a question may have none.
        longest: of an answer, in tokens.
    """

    passages: Sequence[str]
    answers: Sequence[Sequence[str]] | None
    no_answer: bool = False
    longest: int = LONGEST_ANSWER

    def task(self) -> Task:
        return Task(self._answer, self._both, self._scores, self._agreed)

    def _answer(self, output: tuple[Tensor, Tensor], targets: Targets) -> Answer:
        inputs = targets.inputs
        offsets, mask = (inputs[name].to(output[0].device) for name in ("offsets", "passage_mask"))
        predictions = best_of_windows(*output, offsets, mask, self.longest).cpu()
        rows = inputs["window"][:, 0].tolist()
        sums: Totals = {} if self.answers is None else {"rows": rows, "said": predictions.tolist()}
        return Answer(predictions, 2, sums)

    def _both(self, student: Tensor, teacher: Tensor, targets: Targets) -> Totals:
        rows = targets.inputs["window"][:, 0].tolist()
        return {"rows": rows, "student": student.tolist(), "teacher": teacher.tolist()}

    def _scores(self, sums: Totals) -> dict[str, float]:
        if not sums or self.answers is None:
            return {}
        said = self._spans(sums["rows"], sums["said"])
        pairs = [(self.passages[row][span.start : span.end], self.answers[row] or [""]) for row, span in said.items()]
        return {
            "f1": share(sum(overlap(*pair) for pair in pairs), len(pairs)),
            "exact_match": share(sum(exact_match(*pair) for pair in pairs), len(pairs)),
        }

    def _agreed(self, sums: Totals) -> float:
        student, teacher = (self._spans(sums["rows"], sums[side]) for side in ("student", "teacher"))
        return share(sum(span[:2] == teacher[row][:2] for row, span in student.items()), len(student))

    def _spans(self, rows: Sequence[int], said: Sequence[Sequence[Any]]) -> dict[int, Span]:
        windows: dict[int, list[Span]] = {}
        for row, (start, end, *others) in zip(rows, said, strict=True):
            windows.setdefault(row, []).append(Span(int(start), int(end), *others))
        return {row: best_of_row(spans, self.no_answer) for row, spans in windows.items()}

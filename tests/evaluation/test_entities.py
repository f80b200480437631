"""Entities of tags by the rules of conlleval, and their scores over whole sentences."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from runs import distiller

from knowledge_distillation import TaskEvaluator
from knowledge_distillation.evaluation.entities import Entity, entities_of, entity_scores, entity_task


def words(*parts: tuple[str, int, int]) -> list[Entity]:
    return [Entity(*part) for part in parts]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-x I-x O B-y", words(("x", 0, 2), ("y", 3, 4))),
        ("I-x I-x O I-y", words(("x", 0, 2), ("y", 3, 4))),  # IOB: B only between neighbours of one type
        ("I-x B-x I-x", words(("x", 0, 1), ("x", 1, 3))),
        ("B-x I-y I-y", words(("x", 0, 1), ("y", 1, 3))),  # an I of another type begins
        ("S-x B-x I-x E-x S-x", words(("x", 0, 1), ("x", 1, 4), ("x", 4, 5))),
        ("B-x E-x I-x E-x", words(("x", 0, 2), ("x", 2, 4))),  # nothing goes on after an E
        ("S-x I-x", words(("x", 0, 1), ("x", 1, 2))),
        ("E-x E-x", words(("x", 0, 1), ("x", 1, 2))),
        ("U-x B-x L-x", words(("x", 0, 1), ("x", 1, 3))),  # BILOU is IOBES in other letters
        ("NOUN VERB VERB", words(("NOUN", 0, 1), ("VERB", 1, 2), ("VERB", 2, 3))),
        ("O person person", words(("person", 1, 2), ("person", 2, 3))),
        ("B-creative-work I-creative-work", words(("creative-work", 0, 2))),
        ("O O", []),
        ("", []),
    ],
)
def test_entities(tags: str, found: list[Entity]) -> None:
    assert entities_of(tags.split()) == found


def chunks_by_table(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval as it is written: one rule for what ends a chunk, another for what starts one."""
    ends = {*"E S".split(), "BB", "BS", "BO", "IB", "IS", "IO"}
    starts = {*"B S".split(), "EE", "EI", "SE", "SI", "OE", "OI"}
    found, begin = set(), 0
    before, type_before = "O", None
    for place, tag in enumerate([*tags, "O"]):
        now, kind = (tag[0], tag[2:]) if tag != "O" else ("O", None)
        other = kind != type_before
        if before in ends or before + now in ends or before != "O" and other:
            found.add((type_before, begin, place))
        if now in starts or before + now in starts or now != "O" and other:
            begin = place
        before, type_before = now, kind
    return {chunk for chunk in found if chunk[0] is not None}


def test_rules_in_short_are_those_of_the_script() -> None:
    draw = random.Random(0)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "xy")]
    said, true = ([[draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(2000)] for _ in range(2))
    for sentence in said:
        assert set(map(tuple, entities_of(sentence))) == chunks_by_table(sentence)
    true = [
        (mine + theirs)[: len(mine)] if len(theirs) < len(mine) else theirs[: len(mine)]
        for mine, theirs in zip(said, true, strict=True)
    ]
    pairs = [(chunks_by_table(mine), chunks_by_table(theirs)) for mine, theirs in zip(said, true, strict=True)]
    right, found, there = (sum(map(len, of)) for of in ([a & b for a, b in pairs], *zip(*pairs, strict=True)))
    scores = entity_scores(said, true)
    assert 0 < scores["f1"] < 1
    assert scores["precision"] == pytest.approx(right / found) and scores["recall"] == pytest.approx(right / there)
    assert scores["f1"] == pytest.approx(2 * right / (found + there))


def test_scores_of_nothing_are_zero() -> None:
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    assert entity_scores([["O"]], [["B-x"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.0}


class Says(torch.nn.Module):
    """Class `input_ids` for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4))

    def forward(self, input_ids):
        return self.weight[input_ids]


def test_windows_of_a_sentence_are_scored_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entity of words 1 to 3 lies in both windows of row 7, which come in another order."""
    names = ("O", "B-x", "I-x", "B-y")
    second = {"input_ids": [[3, 2, 2, 0]], "labels": [[-100, -100, 2, 0]], "window": [[7, 1]]}
    first = {"input_ids": [[0, 1, 2, 1], [3, 0, 0, 0]], "labels": [[0, 1, 2, -100], [3, -100, 0, 0]]}
    first["window"] = [[7, 0], [2, 0]]
    data = [{name: torch.tensor(column) for name, column in batch.items()} for batch in (second, first)]
    evaluator = TaskEvaluator(task=entity_task(names))
    scores = evaluator(Says(), Says(), data, distiller().accelerator)
    whole = {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    assert scores == {**whole, **{f"teacher_{name}": 1.0 for name in whole}, "agreement": 1.0}
    assert evaluator.primary_metric == "f1"
    shares: list[Any] = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda parts: shares.extend(parts) or list(shares))
    for share in ([], data[:1], data[1:]):  # as each of three processes has it
        shared = TaskEvaluator(task=entity_task(names))(Says(), Says(), share, distiller().accelerator)
    assert shared == scores
    monkeypatch.undo()
    data[0]["labels"][0, 2] = 0  # the right entity ends before
    assert TaskEvaluator(task=entity_task(names))(Says(), None, data, distiller().accelerator) == pytest.approx(
        {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 7 / 8}
    )

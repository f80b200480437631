"""The task of data is told from its columns."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from knowledge_distillation.tasks.guessing import task_of_data

WORDS, TAGS = [["Ada", "lives"], ["here"]], [["B-per", "O"], ["O"]]
ANSWERS = [{"text": ["a"], "answer_start": [0]}] * 2


@pytest.mark.parametrize(
    ("columns", "label", "task"),
    [
        ({"tokens": WORDS, "tags": TAGS}, "tags", "token-classification"),
        ({"words": WORDS, "pos": [[1, 2], [3]]}, "pos", "token-classification"),
        ({"tokens": WORDS}, None, "token-classification"),
        ({"text": ["a", "b"], "labels": TAGS}, "labels", "multi-label"),
        ({"words": WORDS, "labels": [["x"], ["x", "y"]]}, "labels", "multi-label"),
        (
            {"id": ["1", "2"], "question": ["?"] * 2, "context": ["a"] * 2, "answers": ANSWERS},
            None,
            "question-answering",
        ),
    ],
)
def test_columns_tell(columns: dict[str, Any], label: str | None, task: str) -> None:
    found, notes = task_of_data(datasets.Dataset.from_dict(columns), label, None)
    assert found.name == task and task in notes[0]

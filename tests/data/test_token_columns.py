"""Columns with a number for each token: padded with the tokens, and refused where they are not as long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from runs import tokenizer_of

from knowledge_distillation.data.collating import PadToBucket, default_collator
from knowledge_distillation.errors import DataError


def rows_of(make: Any = list, *lengths: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"input_ids": [5] * n, "labels": [5] * n, **{name: make(of(n)) for name, of in columns.items()}}
        for n in lengths or (3, 5)
    ]


def batch_of(rows: list[dict[str, Any]], side: str = "right") -> Any:
    words = tokenizer_of(40)
    words.padding_side = side
    return default_collator(words, rows[0])(rows)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("side", ["right", "left"])
def test_what_each_token_has_a_number_for_is_padded_with_0(make: Any, side: str) -> None:
    columns = {"completion_mask": lambda n: [0] + [1] * (n - 1), "token_weight": lambda n: [0.5] * n}
    batch = batch_of(rows_of(make, **columns, kept=lambda n: [True] * n), side)
    right = {"completion_mask": [0, 1, 1, 0, 0], "token_weight": [0.5] * 3 + [0.0] * 2, "kept": [1, 1, 1, 0, 0]}
    left = {"completion_mask": [0, 0, 0, 1, 1], "token_weight": [0.0] * 2 + [0.5] * 3, "kept": [0, 0, 1, 1, 1]}
    for name, wanted in (right if side == "right" else left).items():
        assert batch[name][0].tolist() == wanted and batch[name].shape == (2, 5)
    assert batch["kept"].dtype == torch.bool and not batch["completion_mask"].is_floating_point()


def test_a_mask_of_what_a_decoder_says_is_as_long_as_the_labels() -> None:
    rows = [{"input_ids": [5] * n, "labels": [6] * m, "completion_mask": [1] * m} for n, m in ((3, 7), (5, 2))]
    batch = batch_of(rows)
    assert batch["completion_mask"].tolist() == [[1] * 7, [1, 1] + [0] * 5]
    assert batch["input_ids"].shape == (2, 5)


def test_other_columns_stay_as_they_are() -> None:
    batch = batch_of(rows_of(list, box=lambda n: [1, 2, 3, 4], class_mask=lambda n: [1, 0], row=lambda n: [n]))
    assert batch["box"].tolist() == [[1, 2, 3, 4]] * 2 and batch["row"].tolist() == [[3], [5]]
    assert batch["class_mask"].tolist() == [[1, 0]] * 2


def test_a_bucket_pads_them_too() -> None:
    rows = rows_of(list, completion_mask=lambda n: [1] * n)
    batch = PadToBucket(default_collator(tokenizer_of(40), rows[0]), 8, 50)(rows)
    assert batch["completion_mask"].shape == batch["input_ids"].shape == (2, 8)
    assert batch["completion_mask"].sum(1).tolist() == [3, 5]


@pytest.mark.parametrize("name", ["completion_mask", "attention_mask", "token_type_ids"])
def test_one_of_another_length_is_said_with_its_row(name: str) -> None:
    rows = rows_of(list, **{name: lambda n: [1] * n})
    rows[1][name] = [1] * 4
    with pytest.raises(DataError, match=f"row 1 has 4 values of '{name}' for 5 tokens"):
        batch_of(rows)

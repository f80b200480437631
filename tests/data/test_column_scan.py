"""What is said of each row, where rows are a table or some of its rows."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest

from knowledge_distillation.data.column_scan import distinct, each_row
from knowledge_distillation.data.subsets import divided

TABLE = datasets.concatenate_datasets(
    [
        datasets.Dataset.from_dict({"a": ["x", "y", None], "b": [1, 2, 3]}),
        datasets.Dataset.from_dict({"a": ["z"], "b": [4]}),
    ]
)


@pytest.mark.parametrize(
    "rows",
    [TABLE, TABLE.select([3, 1, 1]), TABLE.select([2]), TABLE.select(range(1, 3)), TABLE.sort("b", reverse=True)],
)
def test_values_come_in_the_order_of_the_rows(rows: Any) -> None:
    seen = each_row(rows, ["b"], lambda batch: np.asarray(batch.column(0)) * 10)
    assert seen.tolist() == [10 * value for value in rows["b"]]
    assert set(distinct(rows, "a")) == set(rows["a"]) and len(distinct(rows, "a")) == len(set(rows["a"]))


def test_rows_are_held_out_by_class_of_rows_that_were_selected() -> None:
    many = datasets.Dataset.from_dict({"label": [f"c{i % 2}" for i in range(4000)], "id": list(range(4000))})
    some = many.select(range(3999, 0, -20))
    rest, held, _ = divided(some, "label", "here")
    assert len(held) == 20 and sorted([*rest["id"], *held["id"]]) == sorted(some["id"])
    wide, few, note = divided(many.select(range(0, 4000, 2)), "id", "here")
    assert (len(wide), len(few)) == (1800, 200) and "by class" not in note

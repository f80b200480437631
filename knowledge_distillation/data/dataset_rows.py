"""Rows of any data set: those of datasets, a list of dicts, whatever has a length and numbered rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from ..errors import DataError


class NumberedRows(Dataset[Any]):
    """Rows of a data set, each with its place in it as `sample_index`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        get = getattr(self.rows, "__getitems__", None)
        rows = get(indices) if get else [self.rows[index] for index in indices]
        return [{**row, "sample_index": index} for row, index in zip(rows, indices, strict=True)]


def check_rows(dataset: Any, processing_class: Any, train: bool) -> None:
    """See that a data set has rows, and ids of tokens where a tokenizer is to pad them.

    Raises:
        DataError: it has none.
    """
    what = "training" if train else "evaluation"
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"the {what} data set is a {type(dataset).__name__}, which is no sequence of rows; an iterable of batches "
            f"is given as {'train' if train else 'dev'}_dataloader"
        )
    if len(dataset) == 0:
        raise DataError(f"the {what} data set is empty")
    row = dataset[0]
    if hasattr(processing_class, "convert_tokens_to_ids") and isinstance(row, Mapping) and "input_ids" not in row:
        raise DataError(
            f"the rows hold {', '.join(map(str, row))} and no input_ids: tokenize them first, as with "
            "knowledge_distillation.data.tokenize(dataset, tokenizer, text_columns)"
        )


def without_text(dataset: Any) -> Any:
    """The rows without columns of text, which no tensor can hold."""
    features = getattr(dataset, "features", None) or {}
    text = [name for name, one in features.items() if getattr(one, "dtype", "") in ("string", "large_string")]
    return dataset.remove_columns(text) if text else dataset


def lengths_of(rows: Any) -> list[int] | None:
    """The length of each row in tokens; None where rows have none."""
    names = getattr(rows, "column_names", None)
    if names is None:
        first = rows[0]
        has_ids = isinstance(first, dict) and "input_ids" in first
        return [len(rows[i]["input_ids"]) for i in range(len(rows))] if has_ids else None
    if "length" in names:
        return list(rows["length"])
    return [len(ids) for ids in rows["input_ids"]] if "input_ids" in names else None

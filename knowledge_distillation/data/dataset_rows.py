"""Rows of any data set: those of datasets, a list of dicts, whatever has a length and numbered rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from ..errors import DataError, shown


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


def first_row(dataset: Any) -> Any:
    """The first row of what has a length.

    Raises:
        DataError: it cannot be had by its number, as in tables that are read by column.
    """
    try:
        return dataset[0]
    except Exception as error:
        kind = type(dataset).__name__
        instead = {
            "DatasetDict": "give one of its parts, such as dataset['train']",
            "DataFrame": "datasets.Dataset.from_pandas(…) makes rows of it",
            "dict": "datasets.Dataset.from_dict(…) makes rows of it",
        }.get(kind, f"{type(error).__name__}: {error}")
        raise DataError(f"the data set is a {kind}, which gives no row by its number: {instead}") from error


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
    row = first_row(dataset)
    if isinstance(row, (str, type(None))):
        raise DataError(
            f"rows of the {what} data are {type(row).__name__}, such as {shown(row, 40)}: dicts are needed"
        )
    if hasattr(processing_class, "convert_tokens_to_ids") and isinstance(row, Mapping) and "input_ids" not in row:
        raise DataError(
            f"the rows hold {', '.join(map(str, row))} and no input_ids: tokenize them first, as with "
            "knowledge_distillation.data.tokenize(dataset, tokenizer, text_columns)"
        )


def without_text(dataset: Any, text_alone: bool = False) -> Any:
    """The rows without columns that no tensor can hold: texts, dates, mappings, lists of them, columns of nothing.

    Args:
        text_alone: leave out columns of text only.
    """
    features = getattr(dataset, "features", None) or {}
    out = [name for name, one in features.items() if (_is_text(one) if text_alone else not _is_of_numbers(one))]
    return dataset.remove_columns(out) if out else dataset


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _is_of_numbers(feature: Any) -> bool:
    """Whether a column may hold numbers, alone or in lists; types that datasets decodes (pictures, sound) may."""
    import datasets

    if isinstance(feature, Mapping):
        return False
    if isinstance(feature, datasets.Value):
        return feature.dtype.startswith(("int", "uint", "float", "bool"))
    inner = getattr(feature, "feature", None)
    return inner is None or _is_of_numbers(inner)


def _length_of(rows: Any, place: int) -> int:
    try:
        return len(rows[place]["input_ids"])
    except Exception as error:
        row = f"row {place} of the data set"
        raise DataError(f"{row} has no 'input_ids', as the first row has: {type(error).__name__}: {error}") from error


def lengths_of(rows: Any) -> list[int] | None:
    """The length of each row in tokens; None where rows have none."""
    names = getattr(rows, "column_names", None)
    if names is None:
        first = rows[0]
        has_ids = isinstance(first, dict) and "input_ids" in first
        return [_length_of(rows, place) for place in range(len(rows))] if has_ids else None
    if "length" in names:
        return list(rows["length"])
    return [len(ids) for ids in rows["input_ids"]] if "input_ids" in names else None

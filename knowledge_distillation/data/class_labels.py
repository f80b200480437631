"""What the classes of a data set are called, and labels that are given by these names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .dataset_rows import first_row

_COLUMNS = ("labels", "label")  # transformers' collators call either `labels`


def names_in(source: Any) -> tuple[str, ...]:
    """The names of a data set's classes in the order of their numbers; none where it does not say.

    Args:
        source: a data set, or a loader of one.
    """
    for inner in ("dataset", "rows"):
        source = getattr(source, inner, source)
    form = getattr(source, "form", None)  # of pictures
    if form is not None:
        return tuple(getattr(form, "classes", ()))
    features: Any = getattr(source, "features", None)
    for column in _COLUMNS if isinstance(features, Mapping) else ():
        feature: Any = getattr(
            features.get(column), "feature", features.get(column)
        )  # of one label, or of one per token
        if getattr(feature, "names", None):
            return tuple(feature.names)
    return ()


def with_class_numbers(dataset: Any, names: Sequence[str]) -> Any:
    """The data set, labels that are texts as the numbers of these names.

    Raises:
        DataError: a text that is none of them.
    """
    column = next((name for name in _COLUMNS if any(isinstance(one, str) for one in _labels_of(dataset, name))), None)
    if column is None:
        return dataset
    found = list(dict.fromkeys(row.get(column) for row in dataset))
    unknown = [text for text in found if text not in names]
    if unknown:
        known = f"those of the student are {', '.join(names)}" if names else "the student's classes have no names"
        raise DataError(
            f"{column} are texts ({', '.join(map(repr, found[:4]))}), and {known}: give class numbers, as of "
            f"dataset.class_encode_column({column!r}), or a student whose config has these names in id2label"
        )
    if isinstance(dataset, list):
        return [{**row, column: list(names).index(row[column])} for row in dataset]
    import datasets

    return dataset.cast_column(column, datasets.ClassLabel(names=list(names)))


def _labels_of(dataset: Any, column: str) -> list[Any]:
    """The labels of a list's rows; of a data set, whose columns are of one type, that of its first row."""
    if isinstance(dataset, list):
        return [row.get(column) for row in dataset if isinstance(row, Mapping)]
    is_known = hasattr(dataset, "cast_column") and hasattr(dataset, "__len__")
    row = first_row(dataset) if is_known and len(dataset) else None
    return [row.get(column)] if isinstance(row, Mapping) else []

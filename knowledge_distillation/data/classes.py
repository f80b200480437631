"""The classes of a column of labels: their names, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError, listed, nearest, shown
from .column_scan import distinct

if TYPE_CHECKING:
    from datasets import Dataset

MOST_CLASSES = 1000  # of a column that nobody called a class label


def classes_of(splits: Mapping[str, Dataset], column: str) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers: those of a ClassLabel, else what stands in the column.

    Texts are sorted by the alphabet, whole numbers by size, and False comes before True.

    Args:
        splits: "train", and others whose classes have to be among those of it.

    Raises:
        DataError: a row without a label, fractions, one class only, more than 1,000, or one that is not in "train".
    """
    declared = getattr(splits["train"].features[column], "names", None)
    if declared:
        return tuple(declared)
    values = {split: _values(rows, column, split) for split, rows in splits.items()}
    ordered = sorted(values["train"], key=lambda value: (isinstance(value, str), value))
    names = tuple(map(str, ordered))
    if len(names) < 2:
        raise DataError(f"column {column!r} holds one class only, {shown(names[0])}: there is nothing to tell apart")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"column {column!r} holds {len(names):,} different values, more than {MOST_CLASSES:,} classes: is it the "
            "label? Name it (--label), or the task"
        )
    for split, others in values.items():
        unseen = sorted(str(value) for value in others if str(value) not in names)
        if unseen:
            raise DataError(
                f"column {column!r} of the {split} rows holds {listed(unseen)}, of which there is no training row."
                f"{nearest(unseen[0], names)} Training has: {listed(names)}"
            )
    return names


def class_numbers(rows: Dataset, column: str | None, names: Sequence[str]) -> Dataset:
    """The rows with their class number as `label`; rows without the column as they are.

    Raises:
        DataError: a value that is none of the names.
    """
    import datasets

    if column is None or column not in rows.column_names:
        return rows
    numbers = {name: number for number, name in enumerate(names)}
    own = getattr(rows.features[column], "names", None)  # of a ClassLabel, whose values are numbers

    def of_names(values: list[Any]) -> dict[str, list[int]]:
        texts = [own[value] if own and isinstance(value, int) else str(_plain(value)) for value in values]
        unknown = [text for text in texts if text not in numbers]
        if unknown:
            raise DataError(
                f"column {column!r} holds {shown(unknown[0])}, which is none of the classes {listed(names)}."
                f"{nearest(unknown[0], names)}"
            )
        return {"label": [numbers[text] for text in texts]}

    others = [name for name in (column, "label") if name in rows.column_names]
    features = datasets.Features(
        {name: one for name, one in rows.features.items() if name not in others}
        | {"label": datasets.ClassLabel(names=list(names))}
    )
    return rows.map(
        of_names, input_columns=column, batched=True, remove_columns=others, features=features, desc="Classes"
    )


def _values(rows: Dataset, column: str, split: str) -> list[Any]:
    feature: Any = rows.features[column]
    if not hasattr(feature, "dtype") or feature.dtype in ("list", "dict"):
        raise DataError(
            f"column {column!r} holds {_kind(rows[0][column])}, such as {shown(rows[0][column])}, and no classes"
        )
    values = distinct(rows, column)
    if any(value is None or value == "" for value in values):
        first = next(place for place, value in enumerate(rows[column]) if value is None or value == "")
        raise DataError(f"row {first} of the {split} rows has no label in column {column!r}")
    plain = [_plain(value) for value in values]
    if any(isinstance(value, float) for value in plain):
        fraction = next(value for value in plain if isinstance(value, float))
        raise DataError(
            f"column {column!r} holds fractions, such as {fraction}, and no classes: say --task regression, or name "
            "another column as the label"
        )
    return list(dict.fromkeys(plain))


def _kind(value: Any) -> str:
    return "lists" if isinstance(value, list) else "records" if isinstance(value, Mapping) else type(value).__name__


def _plain(value: Any) -> Any:
    """Whole numbers that a reader took for fractions, as it does where a row of the column is empty."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value

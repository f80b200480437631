"""Rows that a task can read: with the columns it reads, a text in each; and whether the parts overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, listed, nearest, shown
from .column_scan import each_row
from .columns import Columns, label_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_SAID = {"train": "training", "validation": "evaluation"}
_MOST_COMPARED = 10_000  # evaluation rows that are looked for among the training rows


def checked(splits: Mapping[str, Dataset], columns: Columns) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """The rows that have a text, and what was left out. Labels are for the task to judge.

    Columns of text that hold numbers become texts. A note says how many evaluation rows have the text of a training
    row.

    Args:
        splits: "train", "validation" or both.

    Raises:
        DataError: a part lacks one of the columns, a column holds neither texts nor words, or no row is left.
    """
    notes: list[str] = []
    parts = {name: _readable(rows, columns, _SAID.get(name, name), notes) for name, rows in splits.items()}
    if "train" in parts and "validation" in parts:
        shared, compared = _shared(parts["train"], parts["validation"], columns.text)
        if shared:
            notes.append(
                f"{shared:,} of {compared:,} evaluation rows have the text of a training row: scores are too good by "
                "what is remembered"
            )
    return parts, tuple(notes)


def with_texts(rows: Dataset, names: tuple[str, ...], said: str) -> Dataset:
    """The rows with a text in each of these columns; numbers become texts.

    Raises:
        DataError: a column holds neither texts nor words, or a row has none; the first one is named.
    """
    for name in names:
        rows = _as_text(rows, name, said)
        filled = each_row(rows, [name], lambda batch: _filled(batch.column(0)))
        if not filled.all():
            raise DataError(f"row {int(np.argmin(filled)) + 1:,} of the {said} rows has no text in column {name!r}")
    return rows


def _readable(rows: Dataset, columns: Columns, said: str, notes: list[str]) -> Dataset:
    for name in (*columns.text, *label_columns(columns.label, rows.column_names)):
        if name not in rows.column_names:
            there = listed(rows.column_names, 12)
            near = nearest(name, rows.column_names)
            raise DataError(f"the {said} rows have no column {name!r}.{near} Columns: {there}")
    for name in columns.text:
        rows = _as_text(rows, name, said)
        kept = each_row(rows, [name], lambda batch: _filled(batch.column(0)))
        if not kept.any():
            raise DataError(f"none of the {len(rows):,} {said} rows has a text in column {name!r}")
        if not kept.all():
            notes.append(
                f"{len(rows) - kept.sum():,} of {len(rows):,} {said} rows have no text in column {name!r} and are "
                f"left out, the first is row {int(np.argmin(kept)) + 1}"
            )
            rows = rows.select(np.flatnonzero(kept))
    return rows


def _as_text(rows: Dataset, name: str, said: str) -> Dataset:
    import datasets

    feature: Any = rows.features[name]
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("string", "large_string", "null") or isinstance(feature, (datasets.List, datasets.LargeList)):
        return rows
    if dtype.startswith(("int", "uint", "float")) and not getattr(feature, "names", None):
        return rows.cast_column(name, datasets.Value("string"))
    raise DataError(
        f"column {name!r} of the {said} rows holds {shown(rows[0][name], 80)}, and no text: name a column of texts"
    )


def _filled(column: Any) -> Any:
    """Whether each value is one: no blank text, no empty list, nothing missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        filled = pc.match_substring_regex(column, r"\S")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        filled = pc.greater(pc.list_value_length(column), 0)
    else:
        filled = pc.is_valid(column)
    return pc.fill_null(filled, False).to_numpy(zero_copy_only=False)


def _shared(train: Dataset, validation: Dataset, names: tuple[str, ...]) -> tuple[int, int]:
    """How many of the evaluation rows, of so many, have the texts of a training row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not all(_is_words(part.features[name]) for part in (train, validation) for name in names):
        return 0, 0
    some = validation.select(range(min(len(validation), _MOST_COMPARED)))
    first = some.select_columns([*names]).with_format("arrow")[:]
    sought = pa.concat_arrays([_joined(batch) for batch in first.to_batches()])
    is_sought = each_row(train, names, lambda batch: pc.is_in(_joined(batch), value_set=sought))
    found = train.select(np.flatnonzero(is_sought)).select_columns([*names]).with_format("arrow")[:]
    texts = pa.concat_arrays([sought[:0], *(_joined(batch) for batch in found.to_batches())])
    return pc.sum(pc.is_in(sought, value_set=texts)).as_py(), len(sought)


def _is_words(feature: Any) -> bool:
    """Whether a column is of texts, or of lists of words."""
    return getattr(getattr(feature, "feature", feature), "dtype", "") in ("string", "large_string")


def _joined(batch: pa.RecordBatch) -> Any:
    """The texts of each row as one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = [pc.binary_join(one, " ") if isinstance(one, pa.ListArray) else one for one in batch.columns]
    joined = [one.cast(pa.large_string()) for one in words]
    return pc.binary_join_element_wise(*joined, pa.scalar("\x1f", pa.large_string())) if len(joined) > 1 else joined[0]

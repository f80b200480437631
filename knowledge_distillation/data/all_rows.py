"""Columns of tokens seen over all rows of a data set: lengths, highest ids, whether anything is marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import DataError
from .token_columns import LABELS, TOKENS, is_mask, uneven


def check_columns(rows: Any, train: bool) -> None:
    """See that masks are as long as the tokens of their rows.

    Raises:
        DataError: one is not.
    """
    names = columns_of(rows)
    if TOKENS not in names:
        return
    lengths = {name: lengths_in(rows, name) for name in names if name in (TOKENS, LABELS) or is_mask(name)}
    known = {name: found for name, found in lengths.items() if found is not None}
    problem = uneven(known, [name for name in (TOKENS, LABELS) if name in known]) if TOKENS in known else None
    if problem:
        what = "training" if train else "evaluation"
        raise DataError(f"row {problem[0]} of the {what} data {problem[1]}: one for each token is needed")


def lengths_in(rows: Any, name: str) -> list[int] | None:
    """How many values each row has in a column; None where it is no column of lists."""
    try:
        return [size for part in _parts(rows, name) for size in _sizes(part)]
    except (TypeError, KeyError):
        return None


def highest_in(rows: Any, name: str) -> list[int] | None:
    """The highest value of each row of a column, 0 of a row without any; None where it is no column of lists."""
    try:
        return [highest for part in _parts(rows, name) for highest in _highest(part)]
    except (TypeError, KeyError, ValueError):
        return None


def marks_nothing(rows: Any, name: str, unmarked: int) -> bool:
    """Whether every value of a column, a number or a list of them in each row, is the one that marks nothing."""
    if name not in columns_of(rows):
        return False
    values = (row[name] for row in rows) if isinstance(rows, list) else iter(rows[name])
    try:
        return all(bool(np.all(np.asarray(value) == unmarked)) for value in values)  # ends at the first that is marked
    except (TypeError, KeyError, ValueError):
        return False


def columns_of(rows: Any) -> list[str]:
    """The columns of rows that can be seen without being drawn: of a list of mappings, of a data set of columns."""
    if isinstance(rows, list):
        return [*rows[0]] if rows and all(isinstance(row, Mapping) for row in rows) else []
    return list(getattr(rows, "column_names", None) or ())


def _parts(rows: Any, name: str) -> Iterator[Any]:
    """A column piece by piece: a list, or arrays of Arrow, which are not copied."""
    if isinstance(rows, list):
        yield [row[name] for row in rows]
        return
    import pyarrow as pa

    column = rows.select_columns([name]).with_format("arrow")[:][name]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise TypeError
    yield from column.chunks


def _sizes(part: Any) -> list[int]:
    if isinstance(part, list):
        return [len(one) for one in part]
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(part), 0).to_pylist()


def _highest(part: Any) -> list[int]:
    if isinstance(part, list):
        return [int(max(one, default=0)) for one in part]
    import pyarrow.compute as pc

    sizes = np.asarray(_sizes(part), dtype=np.int64)
    highest, filled = np.zeros(len(sizes), dtype=np.int64), sizes > 0
    if filled.any():
        values = pc.list_flatten(part).to_numpy(zero_copy_only=False)
        highest[filled] = np.maximum.reduceat(values, (np.cumsum(sizes) - sizes)[filled])
    return highest.tolist()

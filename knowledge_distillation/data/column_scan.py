"""Columns gone through where they lie, in memory or in a mapped file, without a copy of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def each_row(rows: Dataset, names: Sequence[str], of_batch: Callable[[pa.RecordBatch], Any]) -> npt.NDArray[Any]:
    """One value for each row, in the order of the rows.

    Rows that are some of a table's, as those of `select` are, come by their places after the whole table was gone
    through: taking them one by one is a hundred times slower.

    Args:
        of_batch: the values of a batch of the table, which holds the named columns.
    """
    values = np.concatenate([np.asarray(of_batch(batch)) for batch in rows.data.table.select(names).to_batches()])
    places = places_of(rows)
    return values if places is None else values[places]


def distinct(rows: Dataset, name: str) -> list[Any]:
    """The different values of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = places_of(rows)
    if places is None:
        return rows.unique(name)
    encoded = pc.dictionary_encode(rows.data.table.column(name)).unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in encoded])
    found = np.unique(codes[places])
    values: list[Any] = encoded[0].dictionary.take(pa.array(found[found >= 0])).to_pylist()
    return values if (found >= 0).all() else [*values, None]


def places_of(rows: Dataset) -> npt.NDArray[Any] | None:
    """Where each row lies in its table; None where they are all of it, in its order."""
    indices = rows._indices
    return None if indices is None else indices.column(0).to_numpy()

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


def places_of(rows: Dataset) -> npt.NDArray[Any] | None:
    """Where each row lies in its table; None where they are all of it, in its order."""
    indices = rows._indices
    return None if indices is None else indices.column(0).to_numpy()

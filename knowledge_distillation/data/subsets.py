"""Fixed random parts of a data set: a sample of its rows, and rows held out of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError
from .classes import MOST_CLASSES
from .column_scan import each_row

if TYPE_CHECKING:
    from datasets import Dataset

_ONE_IN, _MOST_HELD_OUT = 10, 10_000

Places = npt.NDArray[np.integer]


def check_counts(**counts: int | None) -> None:
    """Raise a ConfigError for a number of rows, or of pixels, below 1; None stands for all of them."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name} is {count}; it must be at least 1, or None")


def sample(rows: int, size: int | None) -> Places:
    """The places of `size` of so many rows, in their order; a smaller sample lies within a larger one."""
    if size is None or size >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).permutation(rows)[:size])


def held_out(labels: npt.NDArray[np.integer], one_in: int) -> tuple[Places, Places]:
    """The places of one row in so many of each class, but at least one of two or more; and of the rest."""
    generator = np.random.default_rng(0)
    parts = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        parts.append(rows[: max(1, len(rows) // one_in) if len(rows) > 1 else 0])
    chosen = np.sort(np.concatenate(parts))
    is_rest = np.ones(len(labels), dtype=bool)
    is_rest[chosen] = False
    return chosen, np.flatnonzero(is_rest)


def divided(rows: Dataset, label: str | None, where: str) -> tuple[Dataset, Dataset, str]:
    """The rows without a tenth of them, that tenth, and what was done, in words.

    At least one row and at most 10,000 are held out, the same each time; of each class a tenth where the label is a
    class: one of at most 1,000 texts or whole numbers.

    Raises:
        DataError: fewer than two rows.
    """
    if len(rows) < 2:
        count = f"{len(rows) or 'no'} row{'s' * (len(rows) != 1)}"
        raise DataError(f"{where} holds {count}, too few to hold some out: name rows to evaluate on (--eval)")
    codes = _class_codes(rows, label)
    one_in = max(_ONE_IN, -(-len(rows) // _MOST_HELD_OUT))
    chosen, rest = held_out(codes, one_in)
    if not len(chosen):
        codes = np.zeros_like(codes)
        chosen, rest = held_out(codes, one_in)
    by_class = f", by class of {label!r}" if codes.any() else ""
    note = (
        f"no rows to evaluate on were named (--eval): {len(chosen):,} of the {len(rows):,} rows of {where} are held "
        f"out, the same each time{by_class}"
    )
    return rows.select(rest), rows.select(chosen), note


def _class_codes(rows: Dataset, label: str | None) -> Places:
    """A number for the class of each row; 0 for all of them where the label is no class."""
    import pyarrow as pa
    import pyarrow.compute as pc

    none = np.zeros(len(rows), dtype=np.int32)
    dtype = "" if label is None else str(getattr(rows.features[label], "dtype", ""))
    if label is None or not dtype.startswith(("string", "int", "uint", "bool")):
        return none
    known: dict[object, int] = {}

    def codes(batch: pa.RecordBatch) -> Any:
        for value in batch.column(0).unique().to_pylist() if len(known) <= MOST_CLASSES else ():
            known.setdefault(value, len(known))
        if len(known) > MOST_CLASSES:
            return np.zeros(len(batch), dtype=np.int32)
        return pc.index_in(batch.column(0), value_set=pa.array(list(known), batch.column(0).type)).to_numpy()

    found = each_row(rows, [label], codes)
    return found if len(known) <= MOST_CLASSES else none

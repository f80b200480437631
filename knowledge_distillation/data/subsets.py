"""Fixed random parts of a data set: a sample of its rows, and rows held out of each class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

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
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)

"""Batches of rows of similar length, so that dynamic padding has little to add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError

# Wide enough to stay random, narrow enough to sort away nearly all padding.
_MEGA_BATCHES = 50


class LengthGroupedBatchSampler:
    """Yields lists of row indices: one process's share of each global batch of an epoch.

    A global batch is `batch_size * num_processes` rows, of which each process takes its contiguous slice. Every row
    comes exactly once an epoch over all processes. Rows are never repeated to fill up: only the last global batch
    may be incomplete, and then some processes may get a smaller last batch, or one batch fewer.

    With `shuffle`, rows are shuffled, sorted by length within stretches of 50 global batches, and the batches are
    shuffled again; the order follows from (seed, epoch) alone. Without it, rows come longest first, so that a batch
    too large for memory fails at once. With `group_by_length=False` rows come shuffled, or in the order they have.

    Args:
        lengths: the length of each row, in tokens.
        batch_size: rows in a batch of one process.
    Raises:
        DataError: no rows.
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[np.integer],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
        group_by_length: bool = True,
    ) -> None:
        if len(lengths) == 0:
            raise DataError("there are no rows to make batches of")
        for name, value in {"batch_size": batch_size, "num_processes": num_processes}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not 0 <= process_index < num_processes:
            raise ConfigError(f"process_index is {process_index}; it must be from 0 to {num_processes - 1}")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must not be negative")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.group_by_length = group_by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next `iter` follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(len(self.lengths), self._global_size)
        return whole + (left > self.process_index * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.process_index * self.batch_size
        for batch in self._global_batches():
            share = batch[start : start + self.batch_size]
            if len(share):
                yield share.tolist()

    @property
    def _global_size(self) -> int:
        return self.batch_size * self.num_processes

    def _global_batches(self) -> list[npt.NDArray[np.integer]]:
        if not self.shuffle:
            rows = np.argsort(-self.lengths, kind="stable") if self.group_by_length else np.arange(len(self.lengths))
            return self._cut(rows)
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        if not self.group_by_length:
            return self._cut(rows)
        whole: list[npt.NDArray[np.integer]] = []
        incomplete: list[npt.NDArray[np.integer]] = []
        for stretch in self._stretches(rows):
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            left = len(stretch) % self._global_size
            if left:
                # Taken from a random place, else the incomplete batch would always hold the longest rows.
                at = generator.integers(len(stretch) // self._global_size + 1) * self._global_size
                incomplete = [stretch[at : at + left]]
                stretch = np.delete(stretch, np.s_[at : at + left])
            whole += self._cut(stretch)
        return [whole[i] for i in generator.permutation(len(whole))] + incomplete

    def _stretches(self, rows: npt.NDArray[np.integer]) -> list[npt.NDArray[np.integer]]:
        size = _MEGA_BATCHES * self._global_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _cut(self, rows: npt.NDArray[np.integer]) -> list[npt.NDArray[np.integer]]:
        return [rows[start : start + self._global_size] for start in range(0, len(rows), self._global_size)]

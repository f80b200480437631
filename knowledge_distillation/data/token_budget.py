"""Batches of as many rows as fit a number of tokens, padding included; and the few lengths that rows are padded to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError

Lengths = npt.NDArray[np.integer]

# Rows change mates within these: the padding that they may cost stays below a sixteenth.
_FINE = 16


def edges(lengths: Sequence[int] | Lengths, multiple: int, longest: int, per_doubling: int = 4) -> Lengths:
    """Each length rounded up to the next of a few: multiples of `multiple`, further apart the longer they are.

    From one power of two to the next there are at most `per_doubling`. With 8 and 4 they are 8, 16, …, 64, 80, 96,
    112, 128, 160, …; none lies above `longest`, which is one of them.
    """
    lengths = np.asarray(lengths)
    times = np.ceil(np.log2(np.maximum(lengths, 1) / (2 * per_doubling * multiple))).clip(min=0).astype(np.int64)
    step = multiple * 2**times
    return np.minimum(-(-lengths // step) * step, np.maximum(longest, lengths))


class TokenBudgetBatchSampler:
    """Yields lists of row indices, each as many rows as fit `max_tokens` when padded to the longest of them.

    Rows are sorted from long to short and cut; those of nearly one length come in random order, and so do the batches.
    How many batches there are, and how many rows the batch at each place of the sorted order has, follows from the
    lengths alone: it is the same in every epoch. The order follows from (seed, epoch) alone.

    Processes take the batches in turn: at any time theirs are neighbours in length, so that none waits long. Every row
    comes exactly once an epoch over all processes; some processes may get one batch fewer.

    Args:
        lengths: the length of each row, in tokens.
        max_tokens: rows times length of a batch of one process, padding included, at most.
        multiple: rows are padded to the next of `edges(lengths, multiple, longest)`; None: to the longest of a batch.
    Raises:
        DataError: no rows.
        ConfigError: a number out of range; a row that does not fit.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Lengths,
        max_tokens: int,
        *,
        multiple: int | None = None,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        if len(lengths) == 0:
            raise DataError("there are no rows to make batches of")
        lengths = np.asarray(lengths)
        longest, row = int(lengths.max()), int(lengths.argmax())
        if longest > max_tokens:
            raise ConfigError(
                f"max_tokens_per_batch is {max_tokens}, and row {row} of the training data has {longest} tokens: "
                f"truncate the rows, or set it to {longest} or more"
            )
        if not 0 <= process_index < num_processes:
            raise ConfigError(f"process_index is {process_index}; it must be from 0 to {num_processes - 1}")
        self.lengths = lengths
        self.padded = edges(lengths, 1, longest, _FINE) if multiple is None else edges(lengths, multiple, longest)
        self.max_tokens = max_tokens
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.epoch = 0
        self._starts = self._cuts()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next `iter` follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-(len(self._starts) - self.process_index) // self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.padded))
        rows = rows[np.argsort(-self.padded[rows], kind="stable")]
        batches = np.split(rows, self._starts[1:])
        whole = len(batches) // self.num_processes
        for turn in [*generator.permutation(whole), whole]:  # the last turn has no batch for some
            at = turn * self.num_processes + self.process_index
            if at < len(batches):
                yield batches[at].tolist()

    def _cuts(self) -> list[int]:
        """Where each batch begins among the rows from long to short."""
        padded, starts = -np.sort(-self.padded), [0]
        while (end := starts[-1] + self.max_tokens // max(int(padded[starts[-1]]), 1)) < len(padded):
            starts.append(end)
        return starts

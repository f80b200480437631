"""Batches for training and evaluation, out of data sets or any iterable, alike on one process and on many."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import PartialState
from accelerate.utils import gather
from torch.utils.data import DataLoader, IterableDataset

from ..config.settings import TrainingSettings
from ..errors import ConfigError, DataError, DistillationError
from ..storage.random_state import random_state, set_random_state
from .all_rows import check_columns
from .batching import LengthGroupedBatchSampler
from .collating import NamingRows, PadToBucket, default_collator
from .conversations import tokenized_rows
from .dataset_rows import NumberedRows, check_rows, lengths_of, without_text
from .streams import is_stream, stream_loader
from .token_budget import TokenBudgetBatchSampler

Place: TypeAlias = Accelerator | PartialState  # which process of how many this is, and its device
logger = logging.getLogger(__name__)

_OWN_SHARES = (LengthGroupedBatchSampler, TokenBudgetBatchSampler)  # samplers that know of processes


class TrainBatches:
    """The training batches of this process, epoch by epoch.

    The order of an epoch depends on the seed and the epoch alone, so that a resumed run finds its place: the random
    state is set while an epoch's first batch is drawn, and put back.

    Args:
        loader: any iterable of batches; `DataLoader`s are sharded over processes by batch, others by position.
        seed: of the order.
        what: `training` or `evaluation`, for errors.
    """

    def __init__(self, loader: Iterable[Any], seed: int, accelerator: Place, what: str = "training") -> None:
        self.what = what
        self.loader, self.seed, self.accelerator = _sharded(loader, accelerator), seed, accelerator
        self.generator_states: list[torch.Tensor] = []

    def peek(self) -> Any:
        """The first batch, which stays in its place.

        Raises:
            DataError: there is none.
        """
        first = self.first()
        if not first:
            raise DataError(f"the {self.what} data is empty: it has no batch")
        return first[0]

    def first(self) -> list[Any]:
        """The first batch, where this process has one."""
        states = self._states()
        if isinstance(self.loader, (str, bytes, Mapping)):
            raise DataError(
                f"the {self.what} data is a {type(self.loader).__name__}, and an iterable of batches is needed: one "
                "batch is given as [batch], a file of rows as a dataset"
            )
        with seeded(self.seed):
            try:
                iterator = iter(self.loader)
            except TypeError as error:
                raise DataError(f"the {self.what} data is no iterable of batches: {error}") from error
            with _drawing(f"the first batch of the {self.what} data"):
                first = next(iterator, _END)
        self._set(states)
        if iterator is self.loader and first is not _END:  # an iterator cannot begin again
            self.loader = itertools.chain([first], iterator)
        return [] if first is _END else [first]

    def __len__(self) -> int:
        """Batches of an epoch on the process that has most. Raises TypeError where the data has no length."""
        return self.max_over_processes(_length(self.loader))

    def max_over_processes(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.accelerator.num_processes == 1:
            return number
        numbers = gather(torch.tensor([number], device=self.accelerator.device))
        return int(numbers.max())

    def windows(self, epoch: int, size: int, skip: int = 0) -> Iterator[list[Any]]:
        """The batches of an epoch, `size` at a time, without the first `skip`.

        Every process gets as many windows: one that is out of batches gets empty ones. Where the data has a length
        the number of windows is known beforehand, and no process waits to ask another.
        """
        batches, number = self._epoch(epoch, skip), skip
        try:
            said: float = len(self)
        except TypeError:
            said = math.inf
        left = said if said == math.inf else math.ceil(max(0, said - skip) / size)
        while left:
            after = f" or one of the {size - 1} after it" if size > 1 else ""
            with _drawing(f"batch {number + 1} of epoch {epoch + 1}{after}"):
                window = list(itertools.islice(batches, size))
            number += len(window)
            if not number:
                raise DataError(
                    f"the {self.what} data gave no batch in epoch {epoch + 1}: can it be iterated more than once?"
                )
            asks = left == math.inf or self.accelerator.num_processes == 1
            if asks and not self.max_over_processes(len(window)):
                break
            yield window
            left -= 1
        if epoch == 0 and skip < number:
            self._compare_length(said, number, batches)

    def _compare_length(self, said: float, number: int, batches: Iterator[Any]) -> None:
        """Warn where an epoch had another number of batches than the data says it has."""
        if said == math.inf or self.accelerator.num_processes > 1 or _is_counted(self.loader):
            return
        with seeded(self.seed):
            more = number >= said and next(batches, _END) is not _END
        if more or number < said:
            gave = f"has more: an epoch ends after {said}" if more else f"gave {number}: schedules follow what it says"
            logger.warning("the %s data says that it has %s batches, and %s", self.what, said, gave)

    def _epoch(self, epoch: int, skip: int) -> Iterator[Any]:
        owner: Any = getattr(self.loader, "batch_sampler", None)
        owner = owner if hasattr(owner, "set_epoch") else self.loader
        if hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)
        if self.generator_states and skip:
            self._set(self.generator_states)
        self.generator_states = self._states()
        with seeded(self.seed + epoch):
            iterator = iter(self.loader)
            drawn = None
            for _ in range(max(skip, 1)):
                drawn = next(iterator, _END)
        if drawn is not _END:
            yield from iterator if skip else itertools.chain([drawn], iterator)

    @contextmanager
    def generators_kept(self) -> Iterator[None]:
        """Go through the data within the context, and leave the loader's own generators as they were."""
        states, of_epoch = self._states(), self.generator_states
        try:
            yield
        finally:
            self._set(states)
            self.generator_states = of_epoch

    def states(self, batches: int) -> list[torch.Tensor]:
        """What to save of the loader's own generators after so many batches of an epoch, for `restore`."""
        return self.generator_states if self._within(batches) else self._states()

    def restore(self, states: list[torch.Tensor], batches: int) -> None:
        """Within an epoch the order is drawn again from its start; between epochs it goes on from here."""
        if self._within(batches):
            self.generator_states = states
        else:
            self._set(states)

    def _within(self, batches: int) -> bool:
        try:
            return 0 < batches < _length(self.loader)
        except TypeError:
            return batches > 0

    def _states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        """Generators of the loader's own, whose state is not part of the global random state."""
        sampler = getattr(self.loader, "batch_sampler", None)
        owners = (self.loader, getattr(self.loader, "sampler", None), getattr(sampler, "sampler", None))
        generators = {id(one): one for one in (getattr(owner, "generator", None) for owner in owners)}
        return [one for one in generators.values() if isinstance(one, torch.Generator)]


_END = object()


def _length(loader: Any) -> int:
    """How many batches there are. Raises TypeError where the data does not say, in whatever way."""
    try:
        return len(loader)
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(str(error)) from error


def _is_counted(loader: Any) -> bool:
    """Whether a length is counted, not said."""
    of_rows = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return of_rows or isinstance(loader, (list, tuple))


@contextmanager
def _drawing(batch: str) -> Iterator[None]:
    """An error within the context says which batch could not be made."""
    try:
        yield
    except DistillationError as error:  # of a worker process its traceback is part of the text
        said = str(error).rstrip().rpartition("\n")[2] if "Original Traceback" in str(error) else str(error)
        raise type(error)(f"{batch}: {said}") from error
    except Exception as error:
        said = str(error).rstrip()
        said = said.rpartition("\n")[2] if "Original Traceback" in said else f"{type(error).__name__}: {said}"
        raise DataError(f"{batch} cannot be made: {said}") from error


class _EveryNth:
    """The batches at this process's positions of an iterable."""

    def __init__(self, batches: Iterable[Any], start: int, step: int) -> None:
        self.batches, self.start, self.step = batches, start, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.batches), self.start, None, self.step)

    def set_epoch(self, epoch: int) -> None:
        tell = getattr(self.batches, "set_epoch", None)
        if tell is not None:
            tell(epoch)

    def __len__(self) -> int:
        return max(0, math.ceil((_length(self.batches) - self.start) / self.step))


def _sharded(loader: Iterable[Any], accelerator: Place) -> Iterable[Any]:
    if accelerator.num_processes == 1 or isinstance(getattr(loader, "batch_sampler", None), _OWN_SHARES):
        return loader
    if isinstance(loader, DataLoader) and loader.batch_sampler and not isinstance(loader.dataset, IterableDataset):
        shard = BatchSamplerShard(
            loader.batch_sampler, accelerator.num_processes, accelerator.process_index, even_batches=False
        )
        return DataLoader(
            loader.dataset,
            batch_sampler=shard,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            generator=loader.generator,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            multiprocessing_context=loader.multiprocessing_context,
        )
    return _EveryNth(loader, accelerator.process_index, accelerator.num_processes)


def loader_of(
    dataset: Any,
    settings: TrainingSettings,
    accelerator: Place,
    data_collator: Callable[..., Any] | None,
    processing_class: Any,
    train: bool,
    indexed: bool = False,
    student: Any = None,
) -> DataLoader[Any]:
    """A loader of this process's share of a data set, in batches of rows of similar length, padded to the longest.

    `indexed` adds each row's place in the data set as `sample_index`. Rows of text become tokens, as the `student`
    reads them.

    Raises:
        DataError: the data set is empty, or rows have no input a length could be taken from where one is needed.
        ConfigError: a row does not fit max_tokens_per_batch; length_bucket, where no tokenizer pads.
    """
    if is_stream(dataset):
        stream = stream_loader(dataset, settings, data_collator, processing_class, train, indexed)
        return stream if train else _sharded(stream, accelerator)  # type: ignore[return-value]
    dataset = tokenized_rows(dataset, processing_class, student) if data_collator is None else dataset
    check_rows(dataset, processing_class, train)
    rows = _rows_for(data_collator, dataset)
    bucket = settings.length_bucket if train else None
    lengths = lengths_of(rows) if settings.group_by_length or bucket else None
    limited = [name for name in ("max_tokens_per_batch", "length_bucket") if getattr(settings, name)]
    if train and limited and lengths is None:
        raise DataError(f"{limited[0]} goes by the length of rows, and they have no input_ids")
    own = getattr(dataset, "collator", None)  # of a data set that knows how its rows become a batch
    if data_collator is None and own is None:
        check_columns(rows, train)
    collate = data_collator or own or default_collator(processing_class, rows[0])
    if bucket is not None:
        if not hasattr(collate, "max_length"):
            raise ConfigError(
                "length_bucket pads with the tokenizer: give it as processing_class, and no data_collator"
            )
        collate = PadToBucket(collate, bucket, max(lengths or [1]))
    return DataLoader(
        NumberedRows(rows) if indexed else rows,
        batch_sampler=_sampler(lengths or [1] * len(rows), settings, accelerator, train),
        collate_fn=NamingRows(collate),
        num_workers=settings.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _rows_for(data_collator: Callable[..., Any] | None, dataset: Any) -> Any:
    """The rows without what no tensor can hold; with their text where a collator of one's own reads it."""
    rows = without_text(dataset, text_alone=data_collator is not None)
    if data_collator is not None and rows is not dataset:
        with seeded(0):
            try:
                data_collator([rows[0]])
            except KeyError:
                return dataset
            except Exception:  # the first batch says it, with its rows
                return rows
    return rows


def _sampler(
    lengths: Sequence[int], settings: TrainingSettings, accelerator: Place, train: bool
) -> LengthGroupedBatchSampler | TokenBudgetBatchSampler:
    place = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    if train and settings.max_tokens_per_batch:
        return TokenBudgetBatchSampler(
            lengths, settings.max_tokens_per_batch, multiple=settings.length_bucket, seed=settings.seed, **place
        )
    return LengthGroupedBatchSampler(
        lengths if settings.group_by_length else [1] * len(lengths),
        settings.per_device_train_batch_size if train else settings.per_device_eval_batch_size,
        shuffle=train,
        seed=settings.seed,
        **place,
    )


def check_one_source(loader: Iterable[Any] | None, dataset: Any, what: str) -> None:
    """See that at most one of a loader and a data set is given."""
    if loader is not None and dataset is not None:
        raise ConfigError(f"give either {what}_dataloader or {what}_dataset")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set every generator within the context and put its state back after it."""
    before = random_state()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)

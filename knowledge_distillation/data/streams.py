"""Rows that come one after another and have no place: batches of them, alike on one process and on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..config.settings import TrainingSettings
from ..errors import ConfigError, DataError
from .collating import NamingRows, default_collator


def is_stream(dataset: Any) -> bool:
    """Whether rows can only be gone through from the first on."""
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


class StreamedRows(IterableDataset[Any]):
    """The rows of a stream without texts, which no tensor can hold; each worker process has its share.

    Args:
        indexed: each row has its place in the stream as `sample_index`.
    """

    def __init__(self, rows: Any, batch_size: int, indexed: bool = False) -> None:
        self.rows, self.batch_size, self.indexed = rows, batch_size, indexed

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for place, row in enumerate(self.rows):
            if place // self.batch_size % workers != mine:  # whole batches, which then come in the order of the rows
                continue
            if isinstance(row, Mapping):
                row = {key: value for key, value in row.items() if not isinstance(value, str)}
                row |= {"sample_index": place} if self.indexed else {}
            yield row


class StreamLoader(DataLoader[Any]):
    """Batches of a stream; one that is shuffled is told of each epoch."""

    def set_epoch(self, epoch: int) -> None:
        tell = getattr(self.dataset.rows, "set_epoch", None)  # type: ignore[attr-defined]
        if tell is not None:
            tell(epoch)


def stream_loader(
    dataset: Any,
    settings: TrainingSettings,
    data_collator: Callable[..., Any] | None,
    processing_class: Any,
    train: bool,
    indexed: bool = False,
) -> StreamLoader:
    """A loader of a stream, in batches of rows as they come.

    Raises:
        DataError: the stream is empty, or can be gone through only once.
        ConfigError: it has no length and nothing ends the run; or a setting goes by the length of all rows.
    """
    what = "training" if train else "evaluation"
    by_length = [name for name in ("max_tokens_per_batch", "length_bucket") if train and getattr(settings, name)]
    if by_length:
        raise ConfigError(f"{by_length[0]} goes by the length of all rows, and the {what} data is a stream")
    if iter(dataset) is dataset:
        raise DataError(
            f"the {what} data is a {type(dataset).__name__}, which can be gone through only once: give a list "
            "of rows, or an IterableDataset, which begins anew each time. Batches are given as "
            f"{'train' if train else 'dev'}_dataloader"
        )
    if train and not hasattr(dataset, "__len__") and settings.max_steps < 1 and not settings.stages:
        raise ConfigError(f"the {what} data is a stream, which does not say how many rows it has: set max_steps")
    batch_size = settings.per_device_train_batch_size if train else settings.per_device_eval_batch_size
    rows = StreamedRows(dataset, batch_size, indexed)
    first = next(iter(rows), None)
    if first is None:
        raise DataError(f"the {what} data set is empty")
    if hasattr(processing_class, "convert_tokens_to_ids") and isinstance(first, Mapping) and "input_ids" not in first:
        held = ", ".join(map(str, first)) or "texts alone"
        raise DataError(f"the rows hold {held} and no input_ids: tokenize them first")
    return StreamLoader(
        rows,
        batch_size=batch_size,
        collate_fn=NamingRows(data_collator or default_collator(processing_class, first)),
        num_workers=settings.dataloader_num_workers,
    )

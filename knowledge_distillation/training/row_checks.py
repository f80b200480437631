"""What is seen of all rows of the training data before the first step: the longest of them, and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..data.dataset_rows import lengths_of
from ..errors import DataError
from .batch import adapt
from .diagnosis import label_problem
from .row_limits import failures
from .run import Run


def check_rows(run: Run) -> None:
    """See that every model takes the longest row, and that labels are classes, where the data says so beforehand.

    Raises:
        DataError: a row that would end the run when its turn comes.
    """
    loader: Any = run.train_dataloader
    rows: Any = getattr(loader, "dataset", None)
    sampler: Any = getattr(loader, "batch_sampler", None)
    if not hasattr(sampler, "lengths") or not len(rows):
        return  # no data set of our own batching: nothing is known of its rows
    _check_labels(run, getattr(rows, "rows", rows))
    lengths = np.asarray(sampler.lengths)
    if lengths.max() <= 1 and (hasattr(rows, "column_names") or isinstance(rows, list)):
        lengths = np.asarray(lengths_of(rows) or [0])
    longest = int(lengths.argmax())
    probed = _padded(run.batches.peek())
    if not probed or lengths[longest] <= probed:
        return
    batch = adapt(run, loader.collate_fn([rows[longest]]))
    problems = list(failures(run, batch, lambda _: f"row {longest} of the training data"))
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. It is the longest row. Cut rows when they are tokenized (max_length), or take "
            "models that read longer ones"
        )


def _padded(batch: Any) -> int:
    """The length of a batch of tokens; 0 of something else."""
    ids = batch.get("input_ids") if hasattr(batch, "get") else None
    return ids.shape[1] if isinstance(ids, torch.Tensor) and ids.dim() == 2 else 0


def _check_labels(run: Run, rows: Any) -> None:
    """Class numbers, one for each row, against the classes of what is compared with them."""
    if isinstance(rows, list):
        labels = [row.get("labels") for row in rows if hasattr(row, "get")]
    elif "labels" in (getattr(rows, "column_names", None) or ()):
        labels = rows["labels"][:]
    else:
        return
    present = [row for row, label in enumerate(labels) if label is not None]
    if not present or not isinstance(labels[present[0]], int):
        return
    if len(present) < len(labels):
        without = next(row for row, label in enumerate(labels) if label is None)
        raise DataError(f"row {without} of the training data has no 'labels', which others have")
    problem = label_problem(run.loss_model, torch.as_tensor(labels))
    if problem:
        raise DataError(f"the training data: {problem}")

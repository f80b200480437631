"""What is seen of all rows of the data before the first step: the longest, the highest ids, labels, what is marked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.all_rows import columns_of, highest_in, marks_nothing
from ..data.dataset_rows import lengths_of
from ..data.streams import is_stream
from ..data.token_columns import LABELS, TOKENS
from ..errors import DataError, DistillationError, shown
from ..evaluation.evaluators import TaskEvaluator
from ..losses.labels import IGNORED_LABEL
from .batch import adapt
from .diagnosis import label_problem
from .row_limits import failures
from .run import Run

_COLUMNS = (LABELS, "label")  # transformers' collators call either `labels`


def check_rows(run: Run) -> None:
    """See that every model takes every row, that labels are classes, and that there is something to learn, where the
    data says so beforehand.

    Raises:
        DataError: a row that would end the run when its turn comes; nothing to learn.
    """
    rows = _rows_of(run.train_dataloader)
    if rows is not None:
        _check_labels(run, rows, "training")
        _check_marks(run, rows)
        _check_extremes(run, run.train_dataloader, rows, "training")
    rows = _rows_of(run.dev_dataloader)
    if rows is not None:
        if isinstance(run.evaluator, TaskEvaluator) and run.evaluator.compute_metrics is None:
            _check_labels(run, rows, "evaluation")
        if run.dev_data_adaptor is run.train_data_adaptor:
            _check_extremes(run, run.dev_dataloader, rows, "evaluation")


@contextmanager
def naming_first_rows(run: Run) -> Iterator[None]:
    """An error within the context, of the first batch, names the rows of the data set that are to blame."""
    try:
        yield
    except DistillationError as error:
        blamed = list(_blamed(run))
        if not blamed:
            raise
        raise DataError(f"{'; '.join(blamed)} ({error})") from error


def row_numbers(loader: Any, batch: int = 0) -> list[int] | None:
    """The places in the data set of the rows of a batch of the present epoch; None where the loader is not our own."""
    if _rows_of(loader) is None:
        return None
    return next(islice(iter(loader.batch_sampler), batch, None), None)


def _blamed(run: Run) -> Iterator[str]:
    """What is wrong with which rows of the first batch."""
    numbers = row_numbers(run.train_dataloader)
    if numbers is None:
        return
    odd = _odd_label(_rows_of(run.train_dataloader))
    if odd:
        yield f"row {odd[0]} of the training data {odd[1]}"
    places = [f"row {number} of the training data" for number in numbers]
    try:
        found = list(failures(run, adapt(run, run.batches.peek()), places.__getitem__))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what is wrong is not the rows
        return
    yield from (one for one in found if "row " in one)


def _rows_of(loader: Any) -> Any:
    """The rows of a data set of our own batching; None of anything else, of which nothing is known."""
    rows: Any = getattr(loader, "dataset", None)
    if not hasattr(getattr(loader, "batch_sampler", None), "lengths") or is_stream(rows) or not len(rows):
        return None
    return getattr(rows, "rows", rows)


def _check_extremes(run: Run, loader: Any, rows: Any, what: str) -> None:
    """Run the models on the longest row and on that with the highest id, where the first batch had none such."""
    probed = run.batches.peek()
    ids = probed.get(TOKENS) if hasattr(probed, "get") else None
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return
    lengths = np.asarray(loader.batch_sampler.lengths)
    seen = hasattr(rows, "column_names") or isinstance(rows, list)
    if lengths.max() <= 1 and seen:
        lengths = np.asarray(lengths_of(rows) or [0])
    highest = np.asarray(seen and highest_in(rows, TOKENS) or [0])
    longer = (
        "It is the longest row. Cut rows when they are tokenized (max_length), or take models that read longer ones"
    )
    higher = "It has the highest id of a token: its tokenizer is not that of the model"
    for values, known, advice in ((lengths, ids.shape[1], longer), (highest, int(ids.max()), higher)):
        row = int(values.argmax())
        if values[row] <= known:
            continue
        batch = adapt(run, loader.collate_fn([loader.dataset[row]]))
        problems = list(failures(run, batch, [f"row {row} of the {what} data"].__getitem__))
        if problems:
            raise DataError(f"{'; '.join(problems)}. {advice}")


def _labels_of(rows: Any) -> list[Any]:
    """The label of each row, where rows have one each."""
    column = next((name for name in _COLUMNS if name in columns_of(rows)), None)
    if column is None:
        return []
    return [row.get(column) for row in rows] if isinstance(rows, list) else list(rows[column])


def _odd_label(rows: Any) -> tuple[int, str] | None:
    """The first row whose label is no whole number, where others are: its place, and what it has."""
    labels = _labels_of(rows)
    whole = next((label for label in labels if _is_whole(label)), None)
    odd = next((row for row, label in enumerate(labels) if not _is_whole(label)), None)
    if whole is None or odd is None:
        return None
    if labels[odd] is None:
        return odd, f"has no {LABELS!r}, which others have"
    return odd, f"has label {shown(labels[odd], 40)}, and others a whole number, such as {int(whole)}"


def _is_whole(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) or (
        isinstance(label, Tensor) and label.dim() == 0 and not label.is_floating_point()
    )


def _check_labels(run: Run, rows: Any, what: str) -> None:
    """Class numbers, one for each row, against the classes of what is compared with them."""
    odd = _odd_label(rows)
    classes = any(b.loss.compares_classes and not b.answers.yes_or_no for b in run.loss_model.bound.values())
    if odd and (classes or "has no" in odd[1]):
        raise DataError(f"row {odd[0]} of the {what} data {odd[1]}")
    labels = _labels_of(rows)
    if odd or not labels or not _is_whole(labels[0]):
        return
    problem = label_problem(run.loss_model, torch.as_tensor([int(label) for label in labels]))
    if problem:
        raise DataError(f"the {what} data: {problem}")


def _check_marks(run: Run, rows: Any) -> None:
    """See that each entry has something to learn from: a label, a token that its mask keeps."""
    for bound in run.loss_model.bound.values():
        for name in bound.items.marks:
            if name == LABELS and any(marks_nothing(rows, column, IGNORED_LABEL) for column in _COLUMNS):
                why = f"every label is {IGNORED_LABEL}"
            elif name not in _COLUMNS and marks_nothing(rows, name, 0):
                why = f"{name} is 0 at every token"
            else:
                continue
            raise DataError(
                f"distill_config[{bound.entry.index}]: {why} in all rows of the training data, so nothing counts for "
                f"{bound.entry.student[0]} and nothing is learnt"
            )

"""A file of rows, with what a saved model says of each, into another file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.columns import guess_columns
from ..data.row_checks import with_texts
from ..data.row_files import rows_of_file
from ..errors import ConfigError, DataError
from . import find_task, names
from .guessing import task_of_model
from .row_writers import check_ending, row_writer
from .saved import load_saved
from .task import NO_OPTIONS, Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 1024  # that are held in memory


@dataclass(frozen=True)
class Predicted:
    """What was written: how many rows, where, with which columns added; and what was guessed, in sentences."""

    path: Path
    rows: int
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def predict_file(
    model: str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    text: str | None = None,
    task: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Predicted:
    """Write every row with the columns that a prediction adds; what those are says the task's `predict`.

    Rows are read, predicted and written some at a time, in their order: memory does not grow with the file.

    Args:
        model: a directory, or a name on the hub.
        data: a file of rows, a folder of `save_to_disk`, or a `Dataset`.
        output: CSV, TSV, JSON lines or parquet, by its ending.
        text: the column of text, or two parted by a comma; None where there is one way only.
        task: the kind of task; None for what the model's config says.
        max_length: tokens after which text is cut; None for the task's own.
        batch_size: rows that run together.
        options: as the task names them in its docstring.

    Raises:
        ConfigError: the model, the task or a column is not there or not told.
        DataError: the rows cannot be read, with file and row; or the output cannot be written.
    """
    output = Path(output).expanduser()
    check_ending(output)
    if batch_size < 1:
        raise ConfigError(f"batch_size is a number of rows from 1; found {batch_size}")
    rows = rows_of_file(data)
    loaded, tokenizer = load_saved(os.fspath(model))
    kind = _task(task, loaded, str(model))
    if tokenizer is None:
        raise ConfigError(f"{str(model)!r} has no tokenizer beside the model, and text cannot be read without one")
    columns, notes = guess_columns(rows, text, None, kind.texts, labelled=False)
    said = str(data) if isinstance(data, (str, os.PathLike)) else "given"
    readable = with_texts(rows, columns.text, said)
    classes = loaded.config.id2label or {}
    reading = Reading(
        columns,
        tokenizer,
        tuple(classes[number] for number in sorted(classes)),
        max_length or kind.max_length,
        options=options,
    )
    notes = (f"task: {kind.name}" + ("" if task else ", told from the model"), *notes)
    if torch.cuda.is_available():
        loaded.to("cuda")
    added: tuple[str, ...] = ()
    with row_writer(output) as write, _quiet():
        for start in range(0, len(rows), ROWS):
            part = _in_memory(readable, start)
            predictions = list(kind.predict(loaded, part, reading, batch_size))
            if len(predictions) != len(part):
                raise DataError(f"{kind.name} said {len(predictions):,} things of {len(part):,} rows")
            added = added or _new_columns(predictions, rows, said)
            of_model = {name: [one[name] for one in predictions] for name in added}
            write({**rows[start : start + ROWS], **of_model})
    return Predicted(output, len(rows), added, notes)


def _task(name: str | None, model: Any, where: str) -> Task:
    told = name or task_of_model(model)
    if told is None or (name is None and told not in names()):
        found = f"{type(model).__name__}, of which no task is told" if told is None else f"a model for {told}"
        raise ConfigError(f"{where!r} is {found}; predictions are of {', '.join(names())}")
    return find_task(told)


def _in_memory(rows: Dataset, start: int) -> Dataset:
    """Some rows, of which nothing goes to a cache on the disk."""
    import datasets

    return datasets.Dataset.from_dict(rows[start : start + ROWS], features=rows.features)


def _new_columns(predictions: list[dict[str, Any]], rows: Dataset, said: str) -> tuple[str, ...]:
    added = tuple(dict.fromkeys(chain.from_iterable(predictions)))
    there = [name for name in added if name in rows.column_names]
    if there:
        raise DataError(f"the {said} rows have a column {there[0]!r} already, which a prediction adds: rename it")
    return added


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar for each part of the rows."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

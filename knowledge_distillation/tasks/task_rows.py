"""The rows of a task as they stand in the files: read, their task and columns found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.columns import Columns, guess_columns, known_label, named_columns
from ..data.files import load_rows, load_splits
from ..data.row_checks import checked
from ..data.subsets import sample
from ..errors import ConfigError
from ..models.classes import class_names
from . import find_task
from .guessing import task_of_data
from .task import NO_OPTIONS, Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task as they stand in the files, and what they are.

    Args:
        splits: `train` and `validation`, or `validation` alone where a model is only measured.
        names: the classes in the order of their numbers; empty where the task has none.
        notes: what was guessed, and how the rows were split.
        options: those that the task names in its docstring.
    """

    task: Task
    splits: Mapping[str, Dataset]
    columns: Columns
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def texts(self) -> Iterator[str]:
        """The texts that are learnt from, column by column."""
        there = self.splits["train"].column_names
        for column in (name for name in self.columns.text if name in there):
            for text in self.splits["train"][column]:
                yield text if isinstance(text, str) else " ".join(map(str, text))

    def reading(self, tokenizer: Any, max_length: int | None = None, student_tokenizer: Any = None) -> Reading:
        """How the rows are read with a tokenizer."""
        if student_tokenizer is not None and not self.task.two_tokenizers:
            raise ConfigError(
                f"{self.task.name} takes one tokenizer for teacher and student: leave student_tokenizer out"
            )
        return Reading(
            self.columns, tokenizer, self.names, max_length or self.task.max_length, student_tokenizer, self.options
        )


def read_rows(
    data: Any,
    dev: Any = None,
    *,
    task: str | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    names_of_columns: Sequence[str] | str | None = None,
    model: Any = None,
    options: Mapping[str, Any] = NO_OPTIONS,
    training: bool = True,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> TaskRows:
    """Read files and find out what they are; `load_task_data` says what the arguments mean.

    Args:
        training: whether there are rows to learn from; else all rows of `dev`, or of `data`, are for evaluation.
    """
    notes: tuple[str, ...] = ()
    if training:
        read = load_splits(
            data,
            dev,
            label=label,
            columns=names_of_columns,
            max_train_samples=max_train_samples,
            max_eval_samples=max_eval_samples,
        )
        splits, notes = {"train": read.train, "validation": read.validation}, read.notes
    else:
        rows = load_rows(data if dev is None else dev, names_of_columns)
        splits = {"validation": rows.select(sample(len(rows), max_eval_samples))}
    first = next(iter(splits.values()))
    if task:
        kind = find_task(task)
    else:
        kind, why = task_of_data(first, _label_in(first, text, label), model)
        notes += why
    kind.check_options(options)
    if kind.measured_by_label and not kind.labelled:
        columns, guesses = _columns_of_parts(splits, text, label, kind)
        splits, faults = _checked_apart(splits, columns)
    else:
        columns, guesses = guess_columns(first, text, label, kind.texts, kind.labelled)
        splits, faults = checked(splits, columns)
    first = next(iter(splits.values()))
    known = class_names(model)
    names = kind.class_names({"train": first, **splits}, columns, options)
    if names and set(names) <= set(known):  # the numbers of a model that was trained on them
        names = known
    return TaskRows(kind, splits, columns, names, (*notes, *guesses, *faults), options)


def _columns_of_parts(
    splits: Mapping[str, Dataset], text: str | Sequence[str] | None, label: str | None, kind: Task
) -> tuple[Columns, tuple[str, ...]]:
    """The columns of text of any part, and the label that evaluation reads: what is learnt from may have others."""
    texts: list[str] = []
    notes: list[str] = []
    label = label or known_label(splits["validation"])
    for split, rows in splits.items():
        named = [name for name in named_columns(text, rows.column_names) if name in rows.column_names] or None
        of_part = rows.remove_columns([label]) if label in rows.column_names else rows
        columns, guesses = guess_columns(of_part, named if text else None, None, kind.texts, labelled=False)
        texts += columns.text
        notes += (f"{split}: {guess}" for guess in guesses)
    if label is not None:
        notes.append(f"label: column {label!r}, for evaluation")
    return Columns(tuple(dict.fromkeys(texts)), label), tuple(notes)


def _checked_apart(splits: Mapping[str, Dataset], columns: Columns) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Each part by the columns that it has."""
    parts: dict[str, Dataset] = {}
    notes: list[str] = []
    for split, rows in splits.items():
        there = [name for name in columns.text if name in rows.column_names]
        label = columns.label if split == "validation" else None
        made, faults = checked({split: rows}, Columns(tuple(there), label))
        parts |= made
        notes += faults
    return parts, tuple(notes)


def _label_in(rows: Dataset, text: str | Sequence[str] | None, label: str | None) -> str | None:
    """The column of labels; None where there is none, or more than one way."""
    try:
        return guess_columns(rows, text, label)[0].label
    except ConfigError:
        if label is not None:
            raise
        if text is not None:
            guess_columns(rows, text, labelled=False)  # where the named ones are not there
        return None

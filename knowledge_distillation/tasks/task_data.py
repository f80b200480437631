"""One's own data as a run takes it: read, its task and columns found, its rows made into tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.columns import Columns, guess_columns
from ..data.files import load_rows, load_splits
from ..data.row_checks import checked
from ..data.subsets import sample
from ..errors import ConfigError
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
        for column in self.columns.text:
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

    def encoded(self, reading: Reading) -> TaskData:
        """The rows as a model takes them."""
        made = {split: self.task.encode(rows, reading, split == "train") for split, rows in self.splits.items()}
        return TaskData(self, reading, made)


@dataclass(frozen=True)
class TaskData:
    """Rows of tokens, and what a run on them needs.

    Args:
        encoded: `train` and `validation`, each as its task encodes rows.
    """

    rows: TaskRows
    reading: Reading
    encoded: Mapping[str, Dataset]

    @property
    def task(self) -> Task:
        return self.rows.task

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a model's config that the data says: `num_labels`, `id2label`, …"""
        return self.task.fields(self.reading)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a `KnowledgeDistiller` that follow from the data."""
        given = self.rows.splits["validation"], self.encoded["validation"], self.reading
        return {
            "train_dataset": self.encoded.get("train"),
            "eval_dataset": self.encoded["validation"],
            "processing_class": self.reading.tokenizer,
            "data_collator": self.task.collator(self.reading),
            "compute_metrics": self.task.compute_metrics(*given),
            "evaluator": self.task.evaluator(*given),
        }

    def entries(self, method: str, teacher: Any, student: Any, **options: Any) -> Entries:
        """The entries of a published method, as this task has them."""
        from ..presets import expand

        return self.task.fit(expand(method, teacher, student, **options))


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
    columns, guesses = guess_columns(first, text, label, kind.texts, kind.labelled)
    splits, faults = checked(splits, columns)
    first = next(iter(splits.values()))
    known = _names_of(model)
    names = kind.class_names({"train": first, **splits}, columns, options)
    if names and set(names) <= set(known):  # the numbers of a model that was trained on them
        names = known
    return TaskRows(kind, splits, columns, names, (*notes, *guesses, *faults), options)


def load_task_data(
    data: Any,
    tokenizer: Any,
    *,
    eval: Any = None,
    task: str | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    columns: Sequence[str] | str | None = None,
    model: Any = None,
    max_length: int | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    **options: Any,
) -> TaskData:
    """One's own rows, ready for a `KnowledgeDistiller`: `KnowledgeDistiller(..., **data.arguments())`.

    Args:
        data: a file (CSV, TSV, JSON lines, parquet, Arrow, CoNLL, text), a folder, or a name of the hub.
        tokenizer: of the models.
        eval: the same, for evaluation; None holds a fixed part of `data` out.
        task: a name of `knowledge_distillation.tasks.names()`; None to tell it from model and data.
        text: the column of text, two of them (`"question1,question2"`) for pairs; None where there is one way only.
        label: the column of labels; None likewise.
        columns: names of the columns of a table without a header, in their order (`"text,labels,id"`).
        model: a model or config that was trained on the task, whose classes keep their numbers.
        max_length: tokens after which text is cut; None for the task's own.
        max_train_samples, max_eval_samples: a fixed random part of the rows.
        **options: of the task.

    Raises:
        DataError: files, columns or rows that cannot be read.
        ConfigError: a task that is unknown, or cannot be told; an option that it does not take.
    """
    rows = read_rows(
        data,
        eval,
        task=task,
        text=text,
        label=label,
        names_of_columns=columns,
        model=model,
        max_train_samples=max_train_samples,
        max_eval_samples=max_eval_samples,
        options=options,
    )
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ConfigError(f"tokenizer is one of transformers; found {type(tokenizer).__name__}")
    return rows.encoded(rows.reading(tokenizer, max_length))


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


def _names_of(model: Any) -> tuple[str, ...]:
    """The classes of a model in the order of their numbers; none where nobody named them."""
    from ..models.classes import are_names

    by_number = getattr(getattr(model, "config", model), "id2label", None) or {}
    names = tuple(by_number[number] for number in sorted(by_number))
    return names if names and are_names(names) else ()

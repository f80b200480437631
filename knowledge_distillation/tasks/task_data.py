"""One's own data as a run takes it: rows of tokens, and what a run on them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..errors import ConfigError
from .task import Reading, Task
from .task_rows import TaskRows, read_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """Rows of tokens, and what a run on them needs.

    Args:
        encoded: `train` and `validation`, each as its task encodes rows.
    """

    rows: TaskRows
    reading: Reading
    encoded: Mapping[str, Dataset]

    @classmethod
    def of(cls, rows: TaskRows, reading: Reading) -> TaskData:
        """The rows as a model takes them."""
        return cls(
            rows,
            reading,
            {split: rows.task.encode(part, reading, split == "train") for split, part in rows.splits.items()},
        )

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
    return TaskData.of(rows, rows.reading(tokenizer, max_length))

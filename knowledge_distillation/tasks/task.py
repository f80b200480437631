"""What a kind of task says: its models, its rows, what is learnt and measured, and how one predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.columns import Columns
from ..errors import ConfigError, nearest, shown
from ..evaluation.glue_metrics import ComputeMetrics

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CLASSES_SHOWN = 12  # in an error
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {  # of an option -> what it is, and the test
    int: ("a whole number of 0 or more", lambda value: type(value) is int and value >= 0),
    float: ("a number", lambda value: type(value) in (int, float)),
    bool: ("true or false", lambda value: type(value) is bool),
    str: ("a text", lambda value: isinstance(value, str)),
    Path: ("a path", lambda value: isinstance(value, (str, Path))),
}


@dataclass(frozen=True)
class Reading:
    """How the rows of one data set are read.

    Args:
        columns: which columns hold text and label.
        tokenizer: of the models.
        names: the classes in the order of their numbers; empty where the task has none.
        max_length: tokens after which text is cut.
        student_tokenizer: of a student that reads other tokens than its teacher; None where it reads the same.
        options: what a task may be told beside, by name; each task says which in its docstring.
    """

    columns: Columns
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...] = ()
    max_length: int = 128
    student_tokenizer: PreTrainedTokenizerBase | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One kind of task. A new one is one file in this folder, one line in its `__init__`, and a test.

    Rows come as `datasets.Dataset` with the columns of the file; `encode` makes of them what a model takes.

    Attributes:
        name: as `--task` and a recipe have it.
        auto_class: the Auto class of transformers that builds its models.
        primary_metric: by which the best student is kept.
        texts: the fewest and the most columns of text it reads.
        labelled: whether training needs a column of labels.
        measured_by_label: whether evaluation does; without one there is no more than agreement.
        max_length: tokens after which text is cut, or goes on in another window, where nobody says.
        two_tokenizers: whether rows can hold the tokens of a second tokenizer beside the teacher's.
        options: what it may be told beside, and of which kind each is; its docstring says what they mean.
    """

    name: str
    auto_class: str
    primary_metric: str
    texts: tuple[int, int] = (1, 1)
    labelled: bool = True
    measured_by_label: bool = True
    max_length: int = 128
    two_tokenizers: bool = False
    options: Mapping[str, type] = MappingProxyType({})

    def check_options(self, options: Mapping[str, Any]) -> None:
        """See that the task takes these options.

        Raises:
            ConfigError: one is unknown, or not of its kind.
        """
        for name, value in options.items():
            if name not in self.options:
                takes = f" It takes: {', '.join(self.options)}" if self.options else " It takes none"
                raise ConfigError(f"task {self.name} takes no option {name!r}.{nearest(name, self.options)}{takes}")
            what, fits = _KINDS[self.options[name]]
            if not fits(value):
                raise ConfigError(f"option {name} of task {self.name} is {what}; found {shown(value)}")

    def class_names(
        self, splits: Mapping[str, Dataset], columns: Columns, options: Mapping[str, Any] = NO_OPTIONS
    ) -> tuple[str, ...]:
        """The classes that the training rows have, in the order of their numbers; () of a task without classes.

        Args:
            options: as of a `Reading`.

        Raises:
            DataError: labels that are no classes, or evaluation rows of a class that training never sees.
        """
        return ()

    def fields(self, reading: Reading) -> dict[str, Any]:
        """The fields of a model's config that the data says: `num_labels`, `id2label`, `problem_type`, …"""
        return {}

    def settle(self, model: Any, reading: Reading) -> None:  # noqa: B027
        """Tell a teacher, or a student, that was loaded or cut what this task has to say of it, in its config."""

    @abstractmethod
    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        """What the model takes, row by row and without padding: `input_ids`, `attention_mask`, labels, `length`.

        Rows may become more of them (windows) or fewer (blocks of text). Rows without a label give none.

        Raises:
            DataError: a row that cannot be read; the first one is named.
        """

    def collator(self, reading: Reading) -> Callable[[list[Any]], Any] | None:
        """What makes a batch of encoded rows; None for padding with the tokenizer."""
        return None

    @abstractmethod
    def hard_entries(self) -> Entries:
        """The entries of fine-tuning: the student against the labels."""

    def fit(self, entries: Entries) -> Entries:
        """The entries of a method, which speaks of classes, as this task has them."""
        return entries

    def compute_metrics(self, rows: Dataset, encoded: Dataset, reading: Reading) -> ComputeMetrics | None:
        """(logits, labels) of all encoded evaluation rows -> metrics; None for those of `TaskEvaluator`."""
        return None

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> Any:
        """A whole evaluator, where `compute_metrics` is not enough; else None."""
        return None

    @abstractmethod
    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """For each row, in their order, the columns that a prediction adds to it."""

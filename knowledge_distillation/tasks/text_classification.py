"""One class of several for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.layer_entries import Entries
from ..data.classes import class_numbers, classes_of
from ..data.columns import Columns
from ..data.text import tokenize
from ..evaluation.glue_metrics import ComputeMetrics
from .predicting import outputs
from .task import NO_OPTIONS, Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset


class TextClassification(Task):
    """`label` is a text or a whole number; classes are sorted, numbers by their size."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "accuracy"
    texts = (1, 2)
    two_tokenizers = True

    def class_names(
        self, splits: Mapping[str, Dataset], columns: Columns, options: Mapping[str, Any] = NO_OPTIONS
    ) -> tuple[str, ...]:
        return classes_of(splits, str(columns.label))

    def fields(self, reading: Reading) -> dict[str, Any]:
        return named_classes(reading.names)

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        rows = class_numbers(rows, reading.columns.label, reading.names)
        return texts_as_tokens(rows, reading)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def compute_metrics(self, rows: Dataset, encoded: Dataset, reading: Reading) -> ComputeMetrics:
        return accuracy_and_f1

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        names = model.config.id2label
        encoded = texts_as_tokens(rows.select_columns([*reading.columns.text]), reading)
        for output, _ in outputs(model, encoded, reading.tokenizer, batch_size):
            best = output.logits.float().softmax(-1).max(-1)
            for number, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                yield {"prediction": names[number], "probability": probability}


def texts_as_tokens(rows: Dataset, reading: Reading) -> Dataset:
    """A text, or a pair of them, as tokens; and `labels` where the rows have a `label`."""
    text = reading.columns.text
    kept = [*text, *(["label"] if "label" in rows.column_names else [])]
    tokenizers = reading.tokenizer, reading.student_tokenizer
    return tokenize(rows.select_columns(kept), tokenizers[0], text, reading.max_length, tokenizers[1])


def named_classes(names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a config that name its classes."""
    by_number = dict(enumerate(names))
    return {
        "num_labels": len(names),
        "id2label": by_number,
        "label2id": {name: number for number, name in by_number.items()},
    }


def accuracy_and_f1(logits: Any, labels: Any) -> dict[str, float]:
    """Accuracy, and the mean of the F1 of each class, that there is or was predicted."""
    predictions, labels = np.asarray(logits).argmax(-1), np.asarray(labels)
    of_classes = []
    for number in np.union1d(predictions, labels):
        said, true = predictions == number, labels == number
        of_classes.append(2 * np.sum(said & true) / (said.sum() + true.sum()))
    return {"accuracy": float(np.mean(predictions == labels)), "f1_macro": float(np.mean(of_classes))}

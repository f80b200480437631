"""The GLUE tasks as kinds of tasks: columns, classes and metrics are GLUE's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.columns import Columns
from ..data.glue import GlueTask
from ..evaluation.glue_metrics import ComputeMetrics, compute_metrics_for
from .task import Reading
from .text_classification import TextClassification, named_classes, texts_as_tokens

if TYPE_CHECKING:
    from datasets import Dataset


class GlueTexts(TextClassification):
    """One of GLUE's tasks, whose rows hold the numbers of classes, or of STS-B real numbers."""

    def __init__(self, glue: GlueTask) -> None:
        self.glue, self.name, self.primary_metric = glue, glue.name, glue.primary_metric

    @property
    def columns(self) -> Columns:
        return Columns(self.glue.text_columns, "label")

    def fields(self, reading: Reading) -> dict[str, Any]:
        return {"num_labels": 1} if self.glue.label_names is None else named_classes(self.glue.label_names)

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        return texts_as_tokens(rows, reading)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "mse" if self.glue.is_regression else "cross_entropy"}]

    def compute_metrics(self, rows: Dataset, encoded: Dataset, reading: Reading) -> ComputeMetrics:
        return compute_metrics_for(self.glue.name, self.glue.metrics, self.glue.num_labels)

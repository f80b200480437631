"""One real number for a text, or for a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.layer_entries import Entries
from ..data.columns import Columns
from ..errors import DataError, shown
from ..evaluation.glue_metrics import ComputeMetrics, pearson, spearmanr
from ..losses.table import LOSSES
from .predicting import outputs
from .task import NO_OPTIONS, Reading, Task
from .text_classification import texts_as_tokens

if TYPE_CHECKING:
    from datasets import Dataset

_OF_CLASSES = {one.name for one in LOSSES if one.softmax and not one.several}  # whatever one logit's softmax says is 1


class Regression(Task):
    """`label` is a number, fractions included, or a text that is one."""

    name = "regression"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "spearmanr"
    texts = (1, 2)

    def class_names(
        self, splits: Mapping[str, Dataset], columns: Columns, options: Mapping[str, Any] = NO_OPTIONS
    ) -> tuple[str, ...]:
        """None; but that every label is a number is seen here, before anything is encoded."""
        for split, rows in splits.items():
            for start in range(0, len(rows), 1000) if columns.label in rows.column_names else ():
                values = rows[start : start + 1000][columns.label]
                for place, value in enumerate(values, start):
                    number_of(value, place, columns.label, f" of the {split} rows")
        return ()

    def fields(self, reading: Reading) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        return texts_as_tokens(_with_numbers(rows, reading.columns.label), reading)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "mse"}]

    def fit(self, entries: Entries) -> Entries:
        """Squared errors in place of what compares classes on `output.logits`: `mse` of labels, else `logits_mse`.

        A temperature, and every other argument of such a loss, goes with it.
        """
        return [_of_numbers(entry) if _compares_classes(entry) else entry for entry in entries]

    def compute_metrics(self, rows: Dataset, encoded: Dataset, reading: Reading) -> ComputeMetrics:
        return correlations

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        encoded = texts_as_tokens(rows.select_columns([*reading.columns.text]), reading)
        for output, _ in outputs(model, encoded, reading.tokenizer, batch_size):
            for number in output.logits.float().reshape(-1).tolist():
                yield {"prediction": number}


def correlations(logits: Any, labels: Any) -> dict[str, float]:
    """Spearman's and Pearson's correlation of (rows, 1) or (rows,) numbers with the labels, each in [-1, 1]."""
    predictions, labels = np.asarray(logits).reshape(-1), np.asarray(labels).reshape(-1)
    return {"spearmanr": spearmanr(predictions, labels), "pearson": pearson(predictions, labels)}


def number_of(value: Any, place: int, column: Any, of_rows: str = "") -> float:
    """A value as a number.

    Raises:
        DataError: it is none, or not a finite one.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    where = f"row {place}{of_rows}"
    if value is None or value == "":
        raise DataError(f"{where} has no number in column {column!r}")
    instead = ": say --task text-classification for classes, or name another column as the label"
    raise DataError(f"{where} has {shown(value)} in column {column!r}, which is no finite number{instead}")


def _with_numbers(rows: Dataset, column: str | None) -> Dataset:
    """The rows with their number as `label`; rows without the column as they are."""
    import datasets

    if column is None or column not in rows.column_names:
        return rows

    def of_values(values: list[Any], places: list[int]) -> dict[str, list[float]]:
        return {"label": [number_of(value, place, column) for value, place in zip(values, places, strict=True)]}

    others = [name for name in (column, "label") if name in rows.column_names]
    kept = {name: one for name, one in rows.features.items() if name not in others}
    features = datasets.Features(kept | {"label": datasets.Value("float32")})
    read = {"input_columns": column, "batched": True, "with_indices": True}
    return rows.map(of_values, **read, remove_columns=others, features=features, desc="Numbers")


def _loss_of(entry: Mapping[str, Any]) -> Any:
    loss = entry.get("loss")
    return loss.get("loss_function") if isinstance(loss, Mapping) else loss


def _compares_classes(entry: Mapping[str, Any]) -> bool:
    """Whether an entry, short or long, compares the student's logits as classes."""
    names = (entry.get("student_layer_name"), entry.get("student_layer_output_name"))
    of_logits = entry.get("student") == "output.logits" or names == ("output", "logits")
    return of_logits and _loss_of(entry) in _OF_CLASSES


def _of_numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    has_teacher = any(key in entry for key in ("teacher", "teacher_layer_name"))
    courses = {name: course for name, course in (entry.get("schedule") or {}).items() if name == "weight"}
    kept = {key: value for key, value in entry.items() if key not in ("args", "schedule")}
    return {**kept, "loss": "logits_mse" if has_teacher else "mse", **({"schedule": courses} if courses else {})}

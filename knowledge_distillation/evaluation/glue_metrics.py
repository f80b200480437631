"""The GLUE metrics: plain formulas, and each as a metric of `evaluate` that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Array = npt.NDArray[Any]
ComputeMetrics = Callable[[Array, Array], dict[str, float]]


def accuracy(predictions: Array, references: Array) -> float:
    """Share of equal labels, 0 to 1."""
    return float(np.mean(predictions == references))


def f1(predictions: Array, references: Array) -> float:
    """2 TP / (2 TP + FP + FN) of class 1, 0 to 1; 0 where class 1 neither is nor is predicted.

    Source: van Rijsbergen, Information Retrieval, 1979.
    """
    both = np.sum((predictions == 1) & (references == 1))
    either = np.sum(predictions == 1) + np.sum(references == 1)
    return float(2 * both / either) if either else 0.0


def matthews_correlation(predictions: Array, references: Array) -> float:
    """Correlation of two labellings, -1 to 1, for any number of classes; 0 where one of them is constant.

    Source: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    classes, codes = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    one_hot = np.eye(len(classes))[codes.reshape(2, -1)]
    centred = one_hot - one_hot.mean(axis=1, keepdims=True)
    return _cosine(centred[0], centred[1])


def pearson(predictions: Array, references: Array) -> float:
    """Linear correlation, -1 to 1; 0 where one side is constant."""
    first, second = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    # Asked of the values themselves: the mean of equal numbers may differ from them in the last digit.
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return _cosine(first - first.mean(), second - second.mean())


def spearmanr(predictions: Array, references: Array) -> float:
    """Correlation of ranks, -1 to 1, ties sharing their mean rank; 0 where one side is constant."""
    return pearson(_ranks(predictions), _ranks(references))


def _cosine(first: Array, second: Array) -> float:
    sizes = np.linalg.norm(first), np.linalg.norm(second)
    if 0 in sizes:
        return 0.0
    return float(np.clip(np.sum(first / sizes[0] * (second / sizes[1])), -1.0, 1.0))


def _ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


OF_LABELS = (accuracy, f1, matthews_correlation)
OF_NUMBERS = (pearson, spearmanr)


@cache
def metric_classes() -> dict[str, Any]:
    """Each metric as a class of `evaluate`, by the name that it has there. Made late: `import evaluate` is slow."""
    import datasets
    import evaluate

    def made(formula: Callable[[Array, Array], float], kind: str) -> Any:
        class Metric(evaluate.Metric):
            __doc__ = formula.__doc__

            def _info(self) -> evaluate.MetricInfo:
                columns = {name: datasets.Value(kind) for name in ("predictions", "references")}
                description = {"description": formula.__doc__, "citation": "", "inputs_description": ""}
                return evaluate.MetricInfo(**description, features=datasets.Features(columns))

            def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
                return {formula.__name__: formula(np.asarray(predictions), np.asarray(references))}

        return Metric

    of_labels = {formula.__name__: made(formula, "int64") for formula in OF_LABELS}
    return of_labels | {formula.__name__: made(formula, "float64") for formula in OF_NUMBERS}


def compute_metrics_for(task: str, metrics: Sequence[str], num_labels: int) -> ComputeMetrics:
    """The function that scores a task: (logits, labels) -> {metric: value}.

    It takes logits (samples, num_labels), of which the largest counts; or for a regression task, whose num_labels is
    1, predictions (samples,) or (samples, 1). And labels (samples,).

    Args:
        task: its name, for errors.
        metrics: names of `metric_classes`.

    Raises:
        DataError: no samples, shapes that do not fit the task, or labels that are not of the task (a test split
            without labels holds -1).
    """

    def compute_metrics(predictions: Array, labels: Array) -> dict[str, float]:
        predictions, labels = np.asarray(predictions), np.asarray(labels)
        _check(task, num_labels, predictions, labels)
        values = predictions.reshape(-1) if num_labels == 1 else predictions.argmax(-1)
        scores: dict[str, float] = {}
        for name in metrics:
            # In memory, so that neither files nor the locks of parallel processes are in play.
            scores |= metric_classes()[name](keep_in_memory=True).compute(predictions=values, references=labels)
        return scores

    return compute_metrics


def _check(task: str, num_labels: int, predictions: Array, labels: Array) -> None:
    rows = len(labels)
    if rows == 0:
        raise DataError(f"there is nothing to score for {task}: no samples")
    shapes = [(rows,), (rows, 1)] if num_labels == 1 else [(rows, num_labels)]
    if predictions.shape not in shapes or labels.shape != (rows,):
        raise DataError(
            f"{task}: found predictions {predictions.shape} and labels {labels.shape}, "
            f"expected predictions {' or '.join(map(str, shapes))} and labels ({rows},)"
        )
    if num_labels > 1 and not np.isin(labels, np.arange(num_labels)).all():
        classes = ", ".join(map(str, np.unique(labels)[:8]))
        raise DataError(f"{task}: found labels {classes}, expected 0 to {num_labels - 1}")

"""The GLUE metrics, as plain formulas and as `evaluate.Metric` classes that need no network.

`Accuracy`, `F1`, `MatthewsCorrelation`, `PearsonCorrelation` and `SpearmanCorrelation` are made when first asked for,
because `import evaluate` is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

if TYPE_CHECKING:
    from ..data.glue import GlueTask

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


# The keys are the names that GLUE's metrics have in `evaluate`, and the ones of `GlueTask.metrics`.
_FORMULAS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
}
_CLASS_NAMES = {
    "Accuracy": "accuracy",
    "F1": "f1",
    "MatthewsCorrelation": "matthews_correlation",
    "PearsonCorrelation": "pearson",
    "SpearmanCorrelation": "spearmanr",
}


def compute_metrics_for(task: GlueTask) -> ComputeMetrics:
    """The function that scores a task: (logits, labels) -> {metric: value}.

    It takes logits (samples, classes), of which the largest counts, or for a regression task predictions (samples,)
    or (samples, 1); and labels (samples,).

    Raises:
        DataError: no samples, shapes that do not fit the task, or labels that are not of the task (a test split
            without labels holds -1).
    """

    def compute_metrics(predictions: Array, labels: Array) -> dict[str, float]:
        predictions, labels = np.asarray(predictions), np.asarray(labels)
        _check(task, predictions, labels)
        values = predictions.reshape(-1) if task.is_regression else predictions.argmax(-1)
        scores: dict[str, float] = {}
        for key in task.metrics:
            # In memory, so that neither files nor the locks of parallel processes are in play.
            metric = _metric_class(key)(keep_in_memory=True)
            scores |= metric.compute(predictions=values, references=labels)
        return scores

    return compute_metrics


def _check(task: GlueTask, predictions: Array, labels: Array) -> None:
    rows = len(labels)
    if rows == 0:
        raise DataError(f"there is nothing to score for {task.name}: no samples")
    fitting = [(rows,), (rows, 1)] if task.is_regression else [(rows, task.num_labels)]
    if predictions.shape not in fitting or labels.shape != (rows,):
        wanted = " or ".join(str(shape) for shape in fitting)
        raise DataError(
            f"{task.name}: found predictions {predictions.shape} and labels {labels.shape}, "
            f"expected predictions {wanted} and labels ({rows},)"
        )
    if not task.is_regression and not np.isin(labels, np.arange(task.num_labels)).all():
        found = ", ".join(str(label) for label in np.unique(labels)[:8])
        raise DataError(f"{task.name}: found labels {found}, expected 0 to {task.num_labels - 1}")


def __getattr__(name: str) -> Any:
    if name not in _CLASS_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _metric_class(_CLASS_NAMES[name])


@cache
def _metric_class(key: str) -> Any:
    import datasets
    import evaluate

    formula = _FORMULAS[key]
    kind = "float64" if key in ("pearson", "spearmanr") else "int64"

    class Metric(evaluate.Metric):
        __doc__ = formula.__doc__

        def _info(self) -> evaluate.MetricInfo:
            columns = {name: datasets.Value(kind) for name in ("predictions", "references")}
            return evaluate.MetricInfo(
                description=formula.__doc__ or "",
                citation="",
                inputs_description="predictions, references: one number per sample.",
                features=datasets.Features(columns),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {key: formula(np.asarray(predictions), np.asarray(references))}

    Metric.__name__ = Metric.__qualname__ = next(name for name, made in _CLASS_NAMES.items() if made == key)
    return Metric

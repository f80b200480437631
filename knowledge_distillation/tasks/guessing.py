"""Which task it is, told from a model and from the columns of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config.pooling import SENTENCE
from ..data.column_scan import distinct
from ..errors import ConfigError
from . import find_task, names
from .task import Task

if TYPE_CHECKING:
    from datasets import Dataset

_HEADS = {  # how the names of transformers' classes end -> the task
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}
SEEN = 20  # rows
_SAID = "messages", "prompt", "completion"


def task_of_model(model: Any) -> str | None:
    """The task that a saved model has a head for, from its config; None of one without a head.

    Args:
        model: a model of transformers, or its config.
    """
    config = getattr(model, "config", model)
    for name in getattr(config, "architectures", None) or ():
        if name.endswith("ForSequenceClassification"):
            kind = getattr(config, "problem_type", None)
            if kind == "multi_label_classification":
                return "multi-label"
            return "regression" if config.num_labels == 1 else "text-classification"
        if name.endswith("ForConditionalGeneration") and getattr(config, "is_encoder_decoder", False):
            return "seq2seq"
        for end, task in _HEADS.items():
            if name.endswith(end):
                return task
    return "sentence-embedding" if isinstance(getattr(config, SENTENCE, None), dict) else None


def task_of_data(rows: Dataset, label: str | None, model: Any) -> tuple[Task, tuple[str, ...]]:
    """The task that rows are of, and why, in a line; what the columns leave open, the model says.

    Args:
        label: the column of labels; None where there is none, or nobody knows it.
        model: a model or config; None where it is still to be built.

    Raises:
        ConfigError: neither says it.
    """
    columns, of_model = set(rows.column_names), task_of_model(model)
    if {"question", "context", "answers"} <= columns:
        return _told("question-answering", "columns question, context and answers")
    if "tokens" in columns and (label is None or isinstance(rows[0][label], list)):
        return _told("token-classification", "a column of tokens")
    if columns & {*_SAID}:
        reads = getattr(getattr(model, "config", model), "is_encoder_decoder", False)
        return _told("seq2seq" if reads else "causal-lm", f"columns {', '.join(sorted(columns & {*_SAID}))}")
    if label is not None:
        words = _words_of(rows, label)
        if words:
            return _told("token-classification", f"as many entries of {label!r} as of {words!r} in a row")
        kind, why = _of_labels(rows, label)
        if kind == "text-classification" and of_model in ("regression", "multi-label", "token-classification"):
            return _told(of_model, "the model")
        return _told(kind, why)
    if of_model in ("masked-lm", "causal-lm", "seq2seq", "sentence-embedding"):
        return _told(of_model, "the model, and columns of text alone")
    raise ConfigError(
        f"what task the rows are of cannot be told: they have the columns {', '.join(rows.column_names)} and no label "
        f"that is known as one. Name the label, or the task: {', '.join(names())}"
    )


def _told(task: str, why: str) -> tuple[Task, tuple[str, ...]]:
    return find_task(task), (f"task: {task}, told from {why}",)


def _words_of(rows: Dataset, label: str) -> str | None:
    """The column of lists of words of which each has one of the labels."""
    some = rows[:SEEN]
    for name, feature in rows.features.items():
        if name != label and str(getattr(getattr(feature, "feature", None), "dtype", "")).endswith("string"):
            pairs = zip(some[name], some[label], strict=True)
            if all(isinstance(tags, list) and len(words or ()) == len(tags) for words, tags in pairs):
                return name
    return None


def _of_labels(rows: Dataset, label: str) -> tuple[str, str]:
    feature: Any = rows.features[label]
    if isinstance(rows[0][label], Sequence) and not isinstance(rows[0][label], str):
        return "multi-label", f"lists in column {label!r}"
    if str(getattr(feature, "dtype", "")).startswith("float"):
        fractions = [value for value in distinct(rows, label) if value is not None and not float(value).is_integer()]
        if fractions:
            return "regression", f"fractions in column {label!r}, such as {fractions[0]:g}"
    return "text-classification", f"the values of column {label!r}"

"""The kinds of tasks by name: which model, how rows become batches, what is learnt, measured and predicted."""

from __future__ import annotations

from importlib import import_module

from ..errors import ConfigError, nearest
from .task import Reading as Reading
from .task import Task as Task

_TASKS: dict[str, str] = {  # name -> its class, in the file of the name
    "text-classification": "TextClassification",
    "regression": "Regression",
    "multi-label": "MultiLabel",
    "token-classification": "TokenClassification",
    "question-answering": "QuestionAnswering",
    "sentence-embedding": "SentenceEmbedding",
    "masked-lm": "MaskedLM",
    "causal-lm": "CausalLM",
    "seq2seq": "Seq2Seq",
    "reranking": "Reranking",
}


def names() -> list[str]:
    return list(_TASKS)


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in _TASKS:
        raise ConfigError(f"task {name!r} is unknown.{nearest(name, _TASKS)} Known: {', '.join(_TASKS)}")
    module = import_module(f".{name.replace('-', '_')}", __name__)
    task: Task = getattr(module, _TASKS[name])()
    return task

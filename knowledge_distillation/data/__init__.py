"""Data sets, tokenizing and batching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_ROOMS = {
    "GLUE_TASKS": "glue",
    "GlueTask": "glue",
    "find_task": "glue",
    "load_glue": "glue",
    "embedded_sentiment": "embedded",
    "LengthGroupedBatchSampler": "batching",
    "GeneratorSource": "synthetic",
    "Interval": "synthetic",
    "Objective": "objective",
    "PseudoSamples": "synthetic",
    "SoftTokens": "synthetic",
    "tokenize": "text",
    "train_tokenizer": "text",
}

if TYPE_CHECKING:
    from .batching import LengthGroupedBatchSampler as LengthGroupedBatchSampler
    from .embedded import embedded_sentiment as embedded_sentiment
    from .glue import GLUE_TASKS as GLUE_TASKS
    from .glue import GlueTask as GlueTask
    from .glue import find_task as find_task
    from .glue import load_glue as load_glue
    from .objective import Objective as Objective
    from .synthetic import GeneratorSource as GeneratorSource
    from .synthetic import Interval as Interval
    from .synthetic import PseudoSamples as PseudoSamples
    from .synthetic import SoftTokens as SoftTokens
    from .text import tokenize as tokenize
    from .text import train_tokenizer as train_tokenizer

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)

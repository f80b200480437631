"""Data sets, tokenizing and batching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_ROOMS = {
    "GLUE_TASKS": "glue",
    "GlueTask": "glue",
    "find_task": "glue",
    "load_glue": "glue",
    "embedded_sentiment": "embedded",
    "IMAGE_TASKS": "images",
    "load_images": "images",
    "load_splits": "files",
    "guess_columns": "columns",
    "checked": "row_checks",
    "LengthGroupedBatchSampler": "batching",
    "tokenize": "text",
    "train_tokenizer": "text",
    "train_word_tokenizer": "text",
    "TwoTokenizers": "two_tokenizers",
    "two_token_streams": "two_tokenizers",
}

if TYPE_CHECKING:
    from .batching import LengthGroupedBatchSampler as LengthGroupedBatchSampler
    from .columns import guess_columns as guess_columns
    from .embedded import embedded_sentiment as embedded_sentiment
    from .files import load_splits as load_splits
    from .glue import GLUE_TASKS as GLUE_TASKS
    from .glue import GlueTask as GlueTask
    from .glue import find_task as find_task
    from .glue import load_glue as load_glue
    from .images import IMAGE_TASKS as IMAGE_TASKS
    from .images import load_images as load_images
    from .row_checks import checked as checked
    from .text import tokenize as tokenize
    from .text import train_tokenizer as train_tokenizer
    from .text import train_word_tokenizer as train_word_tokenizer
    from .two_tokenizers import TwoTokenizers as TwoTokenizers
    from .two_tokenizers import two_token_streams as two_token_streams

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)

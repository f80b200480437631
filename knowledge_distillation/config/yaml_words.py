"""The keys of configs and recipes that ask for a text: under them `no`, `off`, `yes` and `on` are texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

from .entry import Entry
from .settings import TrainingSettings
from .validation import parts_of


def text_keys(kind: type) -> frozenset[str]:
    """The fields of a dataclass that take a text or one of some words, and neither true nor false."""
    hints = get_type_hints(kind, include_extras=True)
    return frozenset(field.name for field in fields(kind) if _takes_text(hints[field.name]))


def _takes_text(hint: Any) -> bool:
    parts = list(parts_of(hint))
    words = any(part is str or get_origin(part) is Literal for part in parts)
    return words and not any(part is bool or get_origin(part) in (dict, Mapping) for part in parts)


TEXTS = text_keys(TrainingSettings) | text_keys(Entry) | {"teacher_name"}

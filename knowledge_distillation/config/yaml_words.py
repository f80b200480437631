"""YAML as it is meant: no code comes out of it; `no`, `off`, `yes` and `on` are texts where a text is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

import yaml

from .entry import Entry
from .settings import TrainingSettings
from .validation import parts_of

_BOOLEAN = "tag:yaml.org,2002:bool"


def text_keys(kind: type) -> frozenset[str]:
    """The fields of a dataclass that take a text or one of some words, and neither true nor false."""
    hints = get_type_hints(kind, include_extras=True)
    return frozenset(field.name for field in fields(kind) if _takes_text(hints[field.name]))


def _takes_text(hint: Any) -> bool:
    parts = list(parts_of(hint))
    words = any(part is str or get_origin(part) is Literal for part in parts)
    return words and not any(part is bool or get_origin(part) in (dict, Mapping) for part in parts)


TEXTS = text_keys(TrainingSettings) | text_keys(Entry) | {"teacher_name"}


def parse_yaml(text: str, texts: Collection[str] = TEXTS, key: str = "") -> Any:
    """What a text of YAML holds.

    YAML 1.1 takes `no` and `on` for false and true; under one of the keys in `texts` they stay the words they are.

    Args:
        key: what the whole is the value of.

    Raises:
        yaml.YAMLError: it is no valid YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_words(node, texts, key)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_words(root: yaml.Node, texts: Collection[str], key: str) -> None:
    left, seen = [(root, key)], set()
    while left:
        node, key = left.pop()
        if (id(node), key) in seen:  # an alias
            continue
        seen.add((id(node), key))
        if isinstance(node, yaml.MappingNode):
            left += [(value, name.value if isinstance(name.value, str) else "") for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            left += [(item, key) for item in node.value]
        elif key in texts and node.tag == _BOOLEAN and node.value.lower() not in ("true", "false"):
            node.tag = "tag:yaml.org,2002:str"

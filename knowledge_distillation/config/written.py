"""What people write, before anybody asks what it means: YAML as plain values, and values that are not too much."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

MOST_BYTES = 200_000  # of a YAML file
MOST_VALUES = 100_000  # of a config or a recipe, those that an alias repeats each time
DEEPEST = 40  # levels of lists and mappings
LONGEST_TEXT = 4_096  # characters: a path is no longer
LONGEST_KEY = 200
_BOOLEAN = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """The safe loader; a key that stands twice in a mapping is an error, and a merge cannot grow without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                if isinstance(value, yaml.SequenceNode) and len(value.value) > LONGEST_KEY:
                    raise yaml.constructor.ConstructorError(None, None, "a merge of too many mappings", key.start_mark)
            elif isinstance(key, yaml.ScalarNode) and seen.setdefault((key.tag, key.value), key) is not key:
                text = f"the key {shortened(key.value)!r} stands twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "a mapping of too many keys", node.start_mark)


def read_yaml(path: Path, what: str, texts: Collection[str] = ()) -> Any:
    """What a YAML file holds; no code comes out of it.

    Args:
        texts: keys whose values are texts, whatever YAML takes them for.

    Raises:
        ConfigError: it is not there, no valid YAML, or more than anybody writes; `what` says what it should have been.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"{what} {shortened(str(path))} does not exist")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{what} {path} is larger than {MOST_BYTES:,} bytes")
        return parse_yaml(content.decode("utf-8"), f"{what} {path}", texts)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not valid YAML: {error}") from error


def parse_yaml(text: str, where: str, texts: Collection[str] = (), key: str = "") -> Any:
    """The value that a text of YAML says.

    YAML 1.1 takes `no` and `on` for false and true; under one of the keys in `texts` they stay the words they are.

    Args:
        where: what errors call it.
        key: what the whole is the value of.

    Raises:
        ConfigError: it is no valid YAML, or an odd value.
    """
    try:
        value = _value(text, texts, key)
    # Its constructors raise what Python does where a date, a number or a tag is none; nesting is recursion.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        text = str(error).encode("utf-8", "backslashreplace").decode()
        raise ConfigError(f"{where} is not valid YAML: {text}") from error
    except RecursionError:
        raise ConfigError(f"{where} is nested too deep: at most {DEEPEST} levels") from None
    problem = oddity(value)
    if problem:
        raise ConfigError(f"{where}: {problem}")
    return value


def _value(text: str, texts: Collection[str], key: str) -> Any:
    loader = _Loader(text)
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


def oddity(written: Any, place: str = "") -> str | None:
    """Why a value is no part of a config, whatever it is for, and where in it; None where nothing stands against it.

    Looks into lists and mappings, at most at `MOST_VALUES`; other objects of Python are let through.

    Args:
        place: what the value is called, for the text.
    """
    values = [(written, place, 0)]
    for value, place, depth in values:  # grows while it is gone through
        inner: list[tuple[Any, str]] = []
        problem, above = None, shortened(place)
        if isinstance(value, str):
            problem = _odd_text(value, LONGEST_TEXT)
        elif isinstance(value, int):
            problem = None if -(2**63) <= value < 2**63 else "has a whole number of more than 64 bits"
        elif isinstance(value, Mapping):
            problem = next(filter(None, (_odd_text(key, LONGEST_KEY) for key in value if isinstance(key, str))), None)
            inner = [] if problem else [(one, f"{above}.{key}" if above else str(key)) for key, one in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)) and len(values) + len(value) <= MOST_VALUES:
            inner = [(one, f"{above}[{number}]") for number, one in enumerate(value)]
        elif isinstance(value, (list, tuple, set, frozenset)):
            problem = f"holds more than {MOST_VALUES:,} values"
        if inner and depth == DEEPEST:
            problem = f"is nested too deep: at most {DEEPEST} levels"
        if len(values) + len(inner) > MOST_VALUES:
            problem = f"holds more than {MOST_VALUES:,} values"
        if problem:
            return f"{above or 'it'} {problem}"
        values += [(*one, depth + 1) for one in inner]
    return None


def _odd_text(text: str, longest: int) -> str | None:
    if len(text) > longest:
        return f"has a text of {len(text):,} characters, {text[:20]!r}…: at most {longest:,}"
    if "\0" in text:
        return f"has a text with a NUL character: {text!r}"
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        return f"has a text that is no valid Unicode: {text!a}"
    return None


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_KEY else text[:LONGEST_KEY] + "…"

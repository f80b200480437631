"""A recipe out of a YAML file: its base first, then overrides, then what the command line says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config.validation import read, unknown_keys
from ..config.written import oddity, parse_yaml, read_yaml, shortened
from ..config.yaml_words import TEXTS as TEXTS_OF_RUNS
from ..config.yaml_words import text_keys
from ..errors import ConfigError, shown
from ..presets import by_name as preset_table
from .recipe import MAPPINGS, OF_METHODS, Recipe

MOST_BASES = 20  # recipes in a chain
TEXTS = TEXTS_OF_RUNS | text_keys(Recipe)


def load_recipe(
    path: str | Path | None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, its `base:` first, then `key=value` overrides, then values of the command line.

    A setting of `training` that is named there holds for `finetune` too; a `method` that is named takes the place of
    the file's own entries and method.

    Args:
        overrides: `training.learning_rate=1e-4`; values are YAML.
        values: field -> value; None values are left out.

    Raises:
        ConfigError: the file is missing or no valid YAML, or a key is unknown (with the nearest name).
    """
    content = _read(Path(path)) if path is not None else {}
    values = {key: value for key, value in (values or {}).items() if value is not None}
    _make_room(content, {override.partition("=")[0] for override in overrides} | set(values), values.get("method"))
    for override in overrides:
        _override(content, override)
    for key, value in values.items():
        _set(content, key.split("."), value)
    problem = oddity(content)
    if problem:
        raise ConfigError(f"recipe: {problem}")
    recipe, wrong = read(Recipe, content)
    assert recipe is not None  # every field has a default
    problems = recipe.problems(unknown_keys(content, [f.name for f in fields(Recipe)]) + wrong)
    if problems:
        raise ConfigError("recipe: " + "; ".join(problems))
    return recipe


def _make_room(content: dict[str, Any], named: set[str], method: Any) -> None:
    """Drop what a file says where the command line says something else that it would hide or contradict."""
    if isinstance(content.get("finetune"), dict):
        for key in (key.removeprefix("training.") for key in named if key.startswith("training.")):
            if f"finetune.{key}" not in named:
                content["finetune"].pop(key, None)
    if isinstance(method, str):
        others = [] if content.get("method") == method else ["method_args"]
        takes = preset_table.options_of(method) if method in preset_table.METHODS else OF_METHODS
        for key in ["distill_config", *others, *(key for key in OF_METHODS if key not in takes)]:
            content.pop(key, None)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"recipe {path} is its own base: {' -> '.join(p.name for p in (*above, path))}")
    if len(above) > MOST_BASES:
        raise ConfigError(
            f"recipe {above[0]} stands on more than {MOST_BASES} others, each the base of the one before"
        )
    content = read_yaml(path, "recipe", TEXTS) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} is a mapping; found {type(content).__name__}")
    content = _unshared(content)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"recipe {path}: base is the path of a recipe; found {shown(base)}")
    return _merged(_read(path.parent / base, (*above, path.resolve())), content)


def _unshared(content: Any) -> Any:
    """A copy in which a YAML anchor and its aliases are values of their own, so that an override meets one of them."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict) and key in MAPPINGS
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(content: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set takes key=value, as in training.learning_rate=1e-4; found {shown(text)}")
    _set(content, key.split("."), parse_yaml(value, f"--set {shortened(text)}: the value", TEXTS, named_by(key)))


def named_by(key: str) -> str:
    """The last word of a path: `name` of `stages.0.name`, `report_to` of `training.report_to.0`."""
    return next((word for word in reversed(key.split(".")) if not word.isdigit()), "")


def _set(content: Any, keys: list[str], value: Any) -> None:
    whole = shortened(".".join(keys))
    for depth, key in enumerate(keys):
        parent, place = shortened(".".join(keys[:depth])), key  # type: tuple[str, Any]
        number = int(key) if re.fullmatch("[0-9]{1,9}", key) else None
        if isinstance(content, dict) and depth and number is not None:
            raise ConfigError(f"--set {whole}: the recipe has no list {parent}")
        if isinstance(content, list):
            if number is None or number >= len(content):
                raise ConfigError(
                    f"--set {whole}: {parent} is a list of {len(content)} items, counted from 0; found {shown(key)}"
                )
            place = number
        elif not isinstance(content, dict):
            raise ConfigError(f"--set {whole}: {parent} is {shown(content)}, not a mapping")
        if depth == len(keys) - 1:
            content[place] = value
        else:
            if isinstance(content, dict) and content.get(place) is None:
                content[place] = {}
            content = content[place]

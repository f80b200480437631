"""The presets by name, and what each takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..config.layer_entries import Entries
from ..errors import ConfigError, nearest, shown
from . import methods, stage_methods
from .soft_targets import is_regression

# Every public function of the two files is a preset under its name; some have a second, short name in print.
METHODS: Mapping[str, Callable[..., Entries]] = {
    **{
        name: function
        for module in (methods, stage_methods)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    },
    **{"kd": methods.hinton, "at": methods.attention_transfer},
    **{"sp": stage_methods.similarity_preserving, "margin_relu": stage_methods.ofd},
}


def list_presets() -> list[str]:
    """The names of the methods."""
    return sorted(METHODS)


def expand(name: str, teacher: Any = None, student: Any = None, **options: Any) -> Entries:
    """The entries of a method by name, for two models or their configs.

    Raises:
        ConfigError: no method has this name, it takes no such option, or it does not fit the models.
    """
    check_options(name, options)
    parameters = inspect.signature(METHODS[name]).parameters
    if "regression" in parameters and teacher is not None:
        options.setdefault("regression", is_regression(teacher))
    models = {"teacher": teacher, "student": student}
    return METHODS[name](**{side: model for side, model in models.items() if side in parameters}, **options)


def check_name(name: str) -> None:
    """Raise a ConfigError unless a method has this name."""
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown.{nearest(name, METHODS)} Known: {', '.join(list_presets())}")


def options_of(name: str) -> list[str]:
    """The names of a method's arguments."""
    return [key for key in inspect.signature(METHODS[name]).parameters if key not in ("teacher", "student")]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """What can be said of a method and its options without the models.

    Raises:
        ConfigError: no method has this name, or it does not take these options.
    """
    check_name(name)
    parameters = inspect.signature(METHODS[name]).parameters
    own = options_of(name)
    for key, value in options.items():
        if key not in own:
            takes = f" It takes: {', '.join(own) or 'nothing'}"
            raise ConfigError(f"method {name} takes no {key!r}.{nearest(key, own)}{takes}")
        what, fits = _OPTIONS.get(str(parameters[key].annotation), ("", lambda value: True))
        if not fits(value):
            raise ConfigError(f"{key} of method {name} is {what}; found {shown(value)}")
    missing = [key for key in own if parameters[key].default is inspect.Parameter.empty and key not in options]
    if missing:
        raise ConfigError(f"method {name} needs {missing[0]}")


def _is_list(value: Any, of: type) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(one) is of for one in value)


# annotation of an option -> what it is, and the test; `mapping` is checked where it is read
_OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "float": ("a finite number of 0 or more", lambda v: type(v) in (int, float) and 0 <= v < math.inf),
    "int": ("a whole number", lambda v: type(v) is int),
    "int | None": ("a whole number", lambda v: v is None or type(v) is int),
    "str": ("a text", lambda v: type(v) is str),
    "bool": ("true or false", lambda v: type(v) is bool),
    "Sequence[int]": ("a list of whole numbers", lambda v: _is_list(v, int)),
    "Sequence[str]": ("a list of names", lambda v: _is_list(v, str)),
}

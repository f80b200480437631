"""Pydantic checks what people write; what it finds is said in this package's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..errors import nearest, shown

T = TypeVar("T")


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as a text: a text that is a number is that number. True and false are none."""
    if isinstance(value, bool):
        raise ValueError
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _path(value: Any) -> Any:
    return str(value) if isinstance(value, os.PathLike) else value


def _check_path(path: str) -> str:
    if any(len(os.fsencode(part)) > 255 for part in path.split(os.sep)):
        raise ValueError
    return path


# What each takes is its description: a problem says so.
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False, description="a number")]
NotNegative = Annotated[Number, Field(ge=0, description="a finite number of 0 or more")]
Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]
Fraction = Annotated[Number, Field(ge=0, le=1, description="a number in [0, 1]")]
Whole = Annotated[int, BeforeValidator(_number), Field(description="a whole number")]
WholeNotNegative = Annotated[Whole, Field(ge=0, description="a whole number of 0 or more")]
Count = Annotated[Whole, Field(ge=1, description="a whole number of 1 or more")]
Flag = Annotated[bool, Strict(), Field(description="true or false")]
Text = Annotated[str, Field(description="a text")]
PathText = Annotated[
    str, BeforeValidator(_path), AfterValidator(_check_path), Field(min_length=1, description="a path")
]


def read(kind: type[T], written: Mapping[str, Any], of: str = "") -> tuple[T | None, list[str]]:
    """A dataclass from the values that fit its fields, and what is wrong with the others.

    A problem says what would do and what was found: `weight is a finite number of 0 or more; found -1`. A validator
    that has more to say raises a ValueError of one or several texts.

    Args:
        of: what the values belong to, for the texts.

    Returns:
        The object, its defaults in place of what is wrong; None where it has none.
    """
    written = {key: value for key, value in written.items() if isinstance(key, str)}  # `unknown_keys` names the others
    try:
        return _adapter(kind).validate_python(written), []
    except ValidationError as error:
        wrong = {str(one["loc"][0]): one for one in reversed(error.errors())}
    hints = get_type_hints(kind, include_extras=True)
    problems: list[str] = []
    for name, one in reversed(wrong.items()):
        texts = getattr(one.get("ctx", {}).get("error"), "args", ())
        if one["type"] == "missing":
            texts = (f"missing key {name!r}",)
        problems += texts or [f"{name}{of and f' of {of}'} is {_expected(hints[name], written[name])}"]
    rest = {name: value for name, value in written.items() if name not in wrong}
    return (read(kind, rest)[0] if len(rest) < len(written) else None), problems


def unknown_keys(
    written: Iterable[Any], names: Iterable[str], text: str = "unknown key {!r}", listed_as: str = "Keys"
) -> list[str]:
    """A problem for each key that is not among the names.

    Args:
        text: how a problem begins, `{!r}` for the key.
        listed_as: what introduces the list of names at the end; empty leaves the list out.
    """
    names = list(names)
    problems = [f"{text.format(key)}.{nearest(str(key), names)}" for key in written if key not in names]
    if problems and listed_as:
        problems[-1] += f" {listed_as}: {', '.join(names) or 'none'}"
    return problems


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _expected(hint: Any, found: Any) -> str:
    """What a field takes, beside what was found."""
    for part in parts_of(hint):
        if get_origin(part) is Literal:
            choices = get_args(part)
            return f"one of {', '.join(choices)}; found {shown(found)}.{nearest(str(found), choices)}"
        for extra in reversed(getattr(part, "__metadata__", ())):
            if isinstance(extra, FieldInfo) and extra.description:
                return f"{extra.description}; found {shown(found)}"
    raise TypeError(f"a field of type {hint} does not say what it takes")


def parts_of(hint: Any) -> Iterator[Any]:
    """A type, and the types that it is made of."""
    yield hint
    for part in get_args(hint):
        yield from parts_of(part)

"""Arguments that have to be in a range or among some words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, nearest


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}; found {value!r}.{nearest(str(value), choices)}")


def check_above_0(name: str, value: Any) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is above 0; found {value!r}")


def check_number_above_0(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} is a number above 0; found {value!r}")


def check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is a whole number of {least} or more; found {value!r}")


def check_range(name: str, value: float, low: float, high: float, open_end: bool = False) -> None:
    if not (low <= value < high if open_end else low <= value <= high):
        raise ConfigError(f"{name} lies in [{low}, {high}{')' if open_end else ']'}; found {value!r}")

"""Courses of a weight or an argument over a run or a stage: pure functions of progress in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import ConfigError, nearest

_KEYS = {
    "linear": ("start", "end", "begin", "finish"),
    "cosine": ("start", "end", "begin", "finish"),
    "warmup": ("fraction",),
    "step": ("values", "at"),
}


@dataclass(frozen=True)
class Schedule:
    """How a number goes over a run, or over the stage of its entry.

    Args:
        type: `linear` and `cosine` go from `start` to `end` between the progress `begin` and `finish`, and stay
            outside; `warmup` rises linearly from 0 to `end` over the first `fraction`; `step` holds `values[i]` from
            `at[i - 1]` to `at[i]`.
        start, end: values; where left out, 0 and the entry's own value.
        begin, finish, fraction: progress in [0, 1].
        values, at: one value more than places, which rise.
    """

    type: str
    start: float = 0.0
    end: float = 0.0
    begin: float = 0.0
    finish: float = 1.0
    fraction: float = 0.1
    values: tuple[float, ...] = ()
    at: tuple[float, ...] = ()

    def __call__(self, progress: float) -> float:
        """The value at `progress`, from 0 at the first step to 1 at the end."""
        if self.type == "step":
            return self.values[sum(progress >= place for place in self.at)]
        begin, finish = (0.0, self.fraction) if self.type == "warmup" else (self.begin, self.finish)
        if progress >= finish:
            return self.end
        part = max(0.0, progress - begin) / (finish - begin)
        part = part if self.type != "cosine" else (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part

    @property
    def lowest(self) -> float:
        """The least value of the course."""
        return min(self.values) if self.type == "step" else min(self.start, self.end)

    @property
    def highest(self) -> float:
        """The greatest value of the course."""
        return max(self.values) if self.type == "step" else max(self.start, self.end)

    def scaled(self, factor: float) -> Schedule:
        """The same course with every value multiplied."""
        values = tuple(value * factor for value in self.values)
        return replace(self, start=self.start * factor, end=self.end * factor, values=values)


def parse_schedule(course: Any, own: Any) -> Schedule:
    """A schedule from its name or a mapping with `type`; `own` is the entry's own value of what is scheduled.

    Raises:
        ConfigError: what is wrong with it.
    """
    options = {"type": course} if isinstance(course, str) else course
    if not isinstance(options, Mapping) or str(options.get("type")) not in _KEYS:
        found = options.get("type") if isinstance(options, Mapping) else options
        raise ConfigError(f"type is one of {', '.join(_KEYS)}; found {found!r}.{nearest(str(found), _KEYS)}")
    kind = options["type"]
    unknown = [key for key in options if key not in ("type", *_KEYS[kind])]
    if unknown:
        near = nearest(str(unknown[0]), _KEYS[kind])
        raise ConfigError(f"{kind} has no key {unknown[0]!r}.{near} Keys: {', '.join(_KEYS[kind])}")
    values: dict[str, Any] = {key: value for key, value in options.items() if key != "type"}
    if kind != "step" and "end" not in values:
        if own is None:
            raise ConfigError(f"{kind} ends at the entry's own value, and args have none: set it there, or give end")
        values["end"] = own
    if kind == "step" and not ("values" in values and "at" in values):
        raise ConfigError("step needs values and at: [1.0, 0.0] and [0.5] hold 1.0 up to half of the run, then 0.0")
    for key, value in values.items():
        numbers = value if key in ("values", "at") else [value]
        if not isinstance(numbers, (list, tuple)) or not all(map(_is_number, numbers)):
            what = "a list of numbers" if key in ("values", "at") else "a number"
            raise ConfigError(f"{key} is {what}; found {value!r}")
        values[key] = tuple(float(n) for n in numbers) if key in ("values", "at") else float(value)
    schedule = Schedule(kind, **values)
    places = (schedule.begin, schedule.finish, schedule.fraction, *schedule.at)
    if any(not 0 <= place <= 1 for place in places):
        raise ConfigError(f"begin, finish, fraction and at are progress in [0, 1]; found {course!r}")
    if kind in ("linear", "cosine") and schedule.begin >= schedule.finish or not schedule.fraction:
        raise ConfigError(f"it takes some time from begin to finish; found {course!r}")
    if kind == "step" and (len(schedule.values) != len(schedule.at) + 1 or list(schedule.at) != sorted(schedule.at)):
        raise ConfigError(f"step has one value more than places, which rise; found {course!r}")
    return schedule


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def described(schedule: Schedule) -> str:
    """One line for a plan."""
    shown = {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.name in _KEYS[schedule.type]}
    shown = {"end": schedule.end, **shown} if schedule.type == "warmup" else shown
    return f"{schedule.type}({', '.join(f'{key}={value}' for key, value in shown.items())})"

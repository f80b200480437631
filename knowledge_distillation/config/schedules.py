"""Courses of a weight or an argument over a run or a stage: pure functions of progress in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError, nearest, shown
from .validation import Fraction, Number, read, unknown_keys

SCHEDULE_KEYS = {
    "linear": ("start", "end", "begin", "finish"),
    "cosine": ("start", "end", "begin", "finish"),
    "warmup": ("fraction",),
    "step": ("values", "at"),
}
Progress = Annotated[Fraction, Field(description="progress in [0, 1]")]


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

    type: Literal["linear", "cosine", "warmup", "step"]
    start: Number = 0.0
    end: Number = 0.0
    begin: Progress = 0.0
    finish: Progress = 1.0
    fraction: Progress = 0.1
    values: Annotated[tuple[Number, ...], Field(description="a list of numbers")] = ()
    at: Annotated[tuple[Progress, ...], Field(description="a list of places in [0, 1]")] = ()

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
    options = dict(course) if isinstance(course, Mapping) else {"type": course}
    kind = options.pop("type", None)
    if not isinstance(kind, str) or kind not in SCHEDULE_KEYS:
        raise ConfigError(
            f"type is one of {', '.join(SCHEDULE_KEYS)}; found {shown(kind)}.{nearest(str(kind), SCHEDULE_KEYS)}"
        )
    problems = unknown_keys(options, SCHEDULE_KEYS[kind], f"{kind} has no key {{!r}}")
    if kind == "step" and not {"values", "at"} <= set(options):
        problems.append("step needs values and at: [1.0, 0.0] and [0.5] hold 1.0 up to half of the run, then 0.0")
    elif kind != "step" and own is None and "end" not in options:
        problems.append(f"{kind} ends at the entry's own value, and args have none: set it there, or give end")
    elif kind != "step":
        options.setdefault("end", own)
    schedule, wrong = read(Schedule, {"type": kind, **options})
    problems += wrong
    if not problems and schedule is not None:
        if kind in ("linear", "cosine") and schedule.begin >= schedule.finish or not schedule.fraction:
            problems.append(f"it takes some time from begin to finish; found {shown(course)}")
        at = list(schedule.at)
        if kind == "step" and (len(schedule.values) != len(at) + 1 or at != sorted(at)):
            problems.append(f"step has one value more than places, which rise; found {shown(course)}")
    if problems or schedule is None:
        raise ConfigError("; ".join(problems))
    return schedule


def described(schedule: Schedule) -> str:
    """One line for a plan."""
    shown = {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.name in SCHEDULE_KEYS[schedule.type]}
    shown = {"end": schedule.end, **shown} if schedule.type == "warmup" else shown
    return f"{schedule.type}({', '.join(f'{key}={value}' for key, value in shown.items())})"

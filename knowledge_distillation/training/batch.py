"""One batch, ready for students, teachers and losses."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..teachers.cached import CpuInputs


class Batch(NamedTuple):
    """One batch, ready: what each student and each teacher takes by name, and all that losses may ask for.

    `teachers_on_cpu` is what cached teachers know its samples by.
    """

    students: dict[str, dict[str, Any]]
    teachers: dict[str, dict[str, Any]]
    context: dict[str, Any]
    teachers_on_cpu: dict[str, CpuInputs]

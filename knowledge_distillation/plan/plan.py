"""The bound, checked, printable form of a config on its models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from torch import nn

from ..features.source import Source

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("entry", "teacher", "student", "projection", "loss", "mask", "weight", "memory")


@dataclass
class Plan:
    """The bound, checked, printable form of a config on its models.

    `students` and `teachers` say by name how the features of each model are taken; the student's own name, and that
    of a teacher that is alone, is empty. `rows` holds one row per entry under `COLUMNS`; `notes` everything else worth
    knowing; `unreached` the names of the student's parameters that no entry reaches, and `idle` all parameters that
    train nothing in this plan: of students, projections and losses.
    """

    students: dict[str, Source]
    teachers: dict[str, Source]
    rows: list[tuple[str, ...]]
    notes: list[str]
    unreached: list[str]
    idle: list[nn.Parameter]

    def close(self) -> None:
        """Take every hook off all models."""
        for source in (*self.students.values(), *self.teachers.values()):
            source.close()

    def __str__(self) -> str:
        rows = [
            row  # a cell that names several features has several lines
            for cells in [COLUMNS, *self.rows]
            for row in zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
        ]
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, *self.notes])

    def rich_table(self) -> Table:
        """The same for a terminal, the teacher's side of an entry above the student's."""
        from rich import box
        from rich.table import Table

        table = Table(title="plan", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        projected = any(row[COLUMNS.index("projection")] != "-" for row in self.rows)
        columns = ("", "teacher\nstudent", "shape", *["projection"][:projected], "loss", "mask", "weight", "memory")
        for column in columns:
            right = column in ("weight", "memory")
            table.add_column(column, justify="right" if right else "left", no_wrap=column.startswith("teacher"))
        for entry, teacher, student, projection, loss, mask, weight, memory in self.rows:
            sides = [line.partition(" ") for line in f"{teacher}\n{student}".split("\n")]
            features, shapes = ("\n".join(side[part] for side in sides) for part in (0, 2))
            name, _, args = loss.partition("(")
            lines = (entry, features, shapes, *[projection][:projected], f"{name}\n{args.removesuffix(')')}")
            table.add_row(*lines, mask, weight, memory)
        return table

"""Which columns of a table hold the text and the label."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads: one of text, or two for pairs; and the label's, None where there is none."""

    text: tuple[str, ...]
    label: str | None = None

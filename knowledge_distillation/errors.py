"""The errors a caller may want to catch; each is also the builtin one would expect."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_MOST_LINES = 50  # of one error


class DistillationError(Exception):
    """Every error this package raises on purpose."""


class ConfigError(DistillationError, ValueError):
    """Something asked for in a config, a recipe or an argument does not fit."""


class DataError(DistillationError, ValueError):
    """A data set, a file or a batch is not what was promised."""


class CheckpointError(DistillationError, RuntimeError):
    """An output directory or a checkpoint does not belong to this run."""


class WriteError(CheckpointError, OSError):
    """Something of a run cannot be written, as where a disk is full."""


def shown(value: object, longest: int = 300) -> str:
    """A value as it is written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def listed(texts: Sequence[str], most: int = 4) -> str:
    """The first texts, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def nearest(name: str, candidates: Iterable[str]) -> str:
    """` Nearest: x.` for the closest candidate, or nothing where none is close."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5) if len(name) <= 300 else []
    return f" Nearest: {found[0]}." if found else ""


def raise_all(error: type[DistillationError], where: str, problems: Sequence[tuple[int, str]]) -> None:
    """Raise every problem found in a numbered list as one error; return where there is none."""
    if problems:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        first = sorted(problems, key=lambda p: p[0])[:_MOST_LINES]
        lines = "".join(f"\n  [{index}] {text}" for index, text in first)
        more = f"\n  and {len(problems) - len(first)} more" if len(problems) > len(first) else ""
        raise error(f"{count} in {where}{lines}{more}")

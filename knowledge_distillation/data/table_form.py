"""How a table is written in a file of text: what parts its cells, and whether quotes hold them together."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .text_lines import lines_of

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
_SEEN_LINES, _SEEN_CHARACTERS = 1000, 1_000_000  # of the beginning
_LONGEST_CELL = 1 << 24  # characters; a longer one is a quote that nobody closed


@dataclass(frozen=True)
class Form:
    """How a file writes its rows: what parts the cells, whether quotes hold cells together, what follows a comma."""

    delimiter: str
    quoted: bool
    spaced: bool = False

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The cells of each row, none of a blank line; csv.Error where quotes are not closed or misplaced."""
        if not self.quoted:
            return (
                line.removesuffix("\n").removesuffix("\r").split(self.delimiter) if line.strip("\r\n") else []
                for line in lines
            )
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # a setting of the process: only ever raised
        return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced)


def form_of(path: Path) -> Form:
    """How a file is written, as its beginning shows."""
    lines: list[str] = []
    characters = 0
    for line in islice(lines_of(path), _SEEN_LINES):
        lines.append(line)
        characters += len(line)
        if characters > _SEEN_CHARACTERS:
            break
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = max(DELIMITERS, key=lambda one: _fit(lines, one, own))
    if _fit(lines, delimiter, own) == (0.0, 0):
        delimiter = own
    spaced = any(cell.startswith(" ") for row in _parsed(lines[:1], delimiter)[0] for cell in row)
    return Form(delimiter, delimiter != "\t" or _has_quotes(lines), spaced)


def _fit(lines: list[str], delimiter: str, own: str) -> tuple[float, int]:
    """How many of the rows have as many cells as the header, and how many it has; nothing where it has one alone."""
    rows = [row for row in _parsed(lines, delimiter)[0] if row]
    if not rows or len(rows[0]) < 2:
        return 0.0, 0
    share = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
    return (share, len(rows[0])) if delimiter == own or share > 0.9 else (0.0, 0)


def _parsed(lines: list[str], delimiter: str) -> tuple[list[list[str]], bool]:
    """The rows of some lines up to the first that cannot be one; and whether there is none such."""
    rows: list[list[str]] = []
    try:
        for row in Form(delimiter, quoted=True).rows(lines):
            rows.append(row)
    except csv.Error:
        return rows, False
    return rows, True


def _has_quotes(lines: list[str]) -> bool:
    """Whether quotes around cells of a TSV file are its writer's: they hold a tab, a line end or another quote."""
    rows, are_whole = _parsed(lines, "\t")
    if not rows or not any(cell.startswith('"') for line in lines for cell in line.split("\t")):
        return False
    plain = [line.rstrip("\r\n").split("\t") for line in lines]
    widths, plain_widths = ({len(row) for row in some if row} for some in (rows, plain))
    if not are_whole or len(widths) > 1:
        return False
    header = plain[0]
    has_twice = any('"' in cell for row in rows for cell in row) and any('""' in line for line in lines)
    return has_twice or len(plain_widths) > 1 or all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in header)

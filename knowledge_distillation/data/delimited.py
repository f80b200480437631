"""Rows of CSV and TSV files: how they are written is seen from their beginning, and no row is filled up or cut."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, listed, shown
from .arrow_cache import batched
from .column_types import Batch
from .text_lines import lines_of

if TYPE_CHECKING:
    import pyarrow as pa

_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
_SEEN_LINES, _SEEN_CHARACTERS = 1000, 1_000_000  # of the beginning
_LONGEST_CELL = 1 << 24  # characters; a longer one is a quote that nobody closed
_WHOLE = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d{1,3})?$"
_MOST_VALUES = 50  # of a column of classes, when it is asked whether a header is missing


@dataclass(frozen=True)
class Form:
    """How a file writes its rows: what parts the cells, whether quotes hold cells together, what follows a comma."""

    delimiter: str
    quoted: bool
    spaced: bool = False


def table_batches(path: Path, names: Sequence[str] | None = None) -> Iterator[Batch]:
    """The cells of a CSV or TSV file as texts.

    The first line names the columns, unless `names` does: then it is a row like the others, where it is not these
    names. TSV has no quotes, as in GLUE, unless they are clearly used.

    Raises:
        DataError: no header, two columns of one name, a row with more or fewer cells, a quote that is not closed.
    """
    form = form_of(path)
    rows = _numbered_rows(path, form)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty")
    header = [cell.strip() for cell in first[1]]
    columns = _checked_header(path, header) if names is None else list(names)
    if names is not None and header != columns:
        rows = chain([first], rows)
    unnamed = names is None
    for places, held in batched(_of_width(path, rows, columns, form)):
        cells = dict(zip(columns, map(list, zip(*held, strict=True)), strict=True))
        if unnamed:
            _check_no_header_is_a_value(path, cells)
        unnamed = False
        yield Batch(cells, places)


def cells_as_array(cells: list[str], wanted: pa.DataType | None) -> pa.Array:
    """Texts as whole numbers, numbers or texts: as what all of them are, written the way that such numbers write.

    An empty cell is a missing number, and an empty text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pa.array(cells, pa.string())
    if wanted == pa.string() or any(cell and not re.match(_NUMBER, cell) for cell in cells[:16]):
        return texts
    filled = pc.filter(texts, pc.not_equal(texts, ""))
    kind = pa.string()
    if not len(filled):
        kind = pa.null()
    elif pc.all(pc.match_substring_regex(filled, _WHOLE)).as_py():
        kind = pa.int64()
    elif pc.all(pc.match_substring_regex(filled, _NUMBER)).as_py():
        kind = pa.float64()
    if kind == pa.string():
        return texts
    if wanted is not None and (kind == pa.null() or (kind, wanted) == (pa.int64(), pa.float64())):
        kind = wanted
    if kind == pa.null():
        return pa.nulls(len(texts))
    return pc.replace_with_mask(texts, pc.equal(texts, ""), pa.scalar(None, pa.string())).cast(kind)


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
    delimiter = max(_DELIMITERS, key=lambda one: _fit(lines, one, own))
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
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # a setting of the process: only ever raised
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
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


def _numbered_rows(path: Path, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, and the line that it begins at."""
    if not form.quoted:
        for number, line in enumerate(lines_of(path), 1):
            if line.strip("\r\n"):
                yield number, line.removesuffix("\n").removesuffix("\r").split(form.delimiter)
        return
    reader = csv.reader(lines_of(path), delimiter=form.delimiter, strict=True, skipinitialspace=form.spaced)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {begin}: {_said(error, begin, reader.line_num)}") from None


def _said(error: csv.Error, begin: int, end: int) -> str:
    if "unexpected end" in str(error) or "field limit" in str(error):
        return (
            'a quote (") is opened in the row that begins here, and not closed. Close it, or write quotes inside a '
            'cell twice ("")'
        )
    if "expected after" in str(error):
        until = f" and ends at line {end}" if end > begin else ""
        return (
            f"in the row that begins here{until} text follows a closing quote. Close quotes where a cell ends, and "
            'write quotes inside a cell twice ("")'
        )
    return "a carriage return stands inside a row. Line ends of old Macs? tr '\\r' '\\n' makes new ones of them"


def _of_width(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: list[str], form: Form
) -> Iterator[tuple[int, list[str], int]]:
    width = len(columns)
    for place, row in rows:
        if len(row) != width:
            found = f"found {len(row)} column{'s' * (len(row) != 1)}, expected {width} ({listed(columns, 8)})"
            name = _DELIMITERS[form.delimiter]
            hint = (
                f"Put cells that hold a {name} in quotes" if form.quoted else f"A {name} parts cells, without quotes"
            )
            raise DataError(f"{path}, line {place}: {found}. {hint}")
        if row == columns:
            raise DataError(f"{path}, line {place}: the header stands there again. Leave that line out")
        yield place, row, sum(map(len, row))


def _checked_header(path: Path, header: list[str]) -> list[str]:
    numbers = [name for name in header if re.match(_NUMBER, name)]
    if numbers and header != [str(place) for place in range(len(header))]:
        raise _no_header(path, header, numbers[0])
    columns = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        places = listed([str(place) for place, name in enumerate(columns, 1) if name == twice[0]])
        raise DataError(f"{path}, line 1: columns {places} are both called {twice[0]!r}. Give each a name of its own")
    return columns


def _check_no_header_is_a_value(path: Path, cells: dict[str, list[str]]) -> None:
    """A header that is one of the few values below it is a row."""
    for name, values in cells.items():
        counts = Counter(values[:1000])
        if counts[name] > 1 and len(counts) <= min(_MOST_VALUES, len(values) // 2):
            raise _no_header(path, list(cells), name)


def _no_header(path: Path, header: list[str], value: str) -> DataError:
    names = ",".join(["text", "label", *(f"column{place}" for place in range(3, len(header) + 1))][: len(header)])
    cells = listed([shown(cell, 40) for cell in header], 8)
    return DataError(
        f"{path}, line 1: {cells} would name the columns, and {shown(value, 40)} is a value: the file has no header. "
        f"Name the columns in their order, as in --columns {names}, or on a first line"
    )

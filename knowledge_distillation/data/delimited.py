"""Rows of CSV and TSV files: how they are written is seen from their beginning, and no row is filled up or cut."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, listed, shown
from .arrow_cache import CHARACTERS, ROWS
from .column_types import Batch
from .table_faults import first_fault
from .table_form import form_of
from .text_lines import lines_of

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 64  # of which one may be of a million characters
_WHOLE = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d{1,3})?$"
_MOST_VALUES = 50  # of a column of classes, when it is asked whether a header is missing


def table_batches(path: Path, names: Sequence[str] | None = None) -> Iterator[Batch]:
    """The cells of a CSV or TSV file as texts.

    The first line names the columns, unless `names` does: then it is a row like the others, where it is not these
    names. TSV has no quotes, as in GLUE, unless they are clearly used.

    Raises:
        DataError: no header, two columns of one name, a row with more or fewer cells, a quote that is not closed.
    """
    form = form_of(path)
    rows = form.rows(lines_of(path))
    columns, has_header, read = list(names or ()), names is None, 0
    try:
        first = next((row for row in rows if row), None)
        if first is None:
            raise DataError(f"{path} is empty")
        header = [cell.strip() for cell in first]
        columns = columns or _checked_header(path, header)
        has_header = has_header or header == columns
        for held in _blocks(rows if has_header else chain([first], rows)):
            if {*map(len, held)} != {len(columns)} or columns in held:
                raise first_fault(path, form, columns, has_header)
            cells = dict(zip(columns, zip(*held, strict=True), strict=True))
            if names is None and not read:
                _check_no_header_is_a_value(path, cells)
            yield Batch(cells, range(read + 1, read + len(held) + 1), "row")
            read += len(held)
    except csv.Error:
        raise first_fault(path, form, columns, has_header) from None


def _blocks(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """Rows that are not blank: many short ones together, or few long ones."""
    held: list[list[str]] = []
    characters = 0
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        held += [row for row in some if row]
        characters += sum(map(len, chain.from_iterable(some)))
        if len(held) >= ROWS or characters > CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


def cells_as_array(cells: Sequence[str], wanted: pa.DataType | None) -> pa.Array:
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


def _check_no_header_is_a_value(path: Path, cells: Mapping[str, Sequence[str]]) -> None:
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

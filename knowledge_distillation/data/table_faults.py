"""What is wrong with a table, and in which line: asked once it is known that something is."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, listed
from .table_form import DELIMITERS, Form
from .text_lines import lines_of


def first_fault(path: Path, form: Form, columns: Sequence[str], has_header: bool) -> DataError:
    """The error of the first row that is none, found by reading row by row.

    Args:
        has_header: whether the first row names the columns.
    """
    reader = form.rows(lines_of(path))
    begin, is_header = 1, has_header
    try:
        for number, row in enumerate(reader, 1):
            if row and not is_header:
                fault = _fault(row, form, columns)
                if fault:
                    return DataError(f"{path}, line {begin}: {fault}")
            is_header = is_header and not row
            begin = getattr(reader, "line_num", number) + 1
    except csv.Error as error:
        return DataError(f"{path}, line {begin}: {_of_quotes(error, begin, getattr(reader, 'line_num', begin))}")
    return DataError(f"{path} changed while it was read")


def _fault(row: list[str], form: Form, columns: Sequence[str]) -> str:
    if len(row) != len(columns):
        name = DELIMITERS[form.delimiter]
        hint = f"Put cells that hold a {name} in quotes" if form.quoted else f"A {name} parts cells, without quotes"
        found = f"found {len(row)} column{'s' * (len(row) != 1)}"
        return f"{found}, expected {len(columns)} ({listed(list(columns), 8)}). {hint}"
    return "the header stands there again. Leave that line out" if row == list(columns) else ""


def _of_quotes(error: csv.Error, begin: int, end: int) -> str:
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

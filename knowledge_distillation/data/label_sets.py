"""Columns that hold several labels for each row: lists, texts joined by a separator, or a column for each label."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, listed, nearest, shown
from .columns import label_columns

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATORS = (",", ";", "|", "\t")  # that are guessed
_STEP = 1000  # rows that are looked at together
_NUMBERS = re.compile(r"\d+( +\d+)*")
_YES_OR_NO = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

Labels = Callable[[dict[str, Any], int], list[str]]  # a row's columns and its place -> its labels


def columns_of(rows: Dataset, written: str) -> tuple[str, ...]:
    """The columns that a name stands for: a column, or several joined by commas.

    Raises:
        DataError: one of them is none.
    """
    names = rows.column_names
    columns = tuple(label_columns(written, names))
    for name in columns:
        if name not in names:
            raise DataError(f"the rows have no column {name!r}. They have: {', '.join(names)}.{nearest(name, names)}")
    return columns


def reader_of(rows: Dataset, written: str, separator: str | None = None) -> Labels:
    """How each row's labels are read; which way follows from the column.

    An empty text or list, and a missing value, is a row with no label. Numbers are labels by the way they are written.

    Args:
        written: a column, or several of 0 and 1 joined by commas, whose names are then the labels.
        separator: between the labels of one text; None guesses it.

    Raises:
        DataError: more than one separator would do.
    """
    columns = columns_of(rows, written)
    if len(columns) > 1:
        return lambda row, place: [name for name in columns if _is_yes(row[name], name, place)]
    (column,) = columns
    feature: Any = rows.features[column]
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)  # of a ClassLabel, whose values are numbers
    if inner is not feature:
        return lambda row, place: [names[one] if names else _plain(one) for one in row[column] or []]
    if names:
        return lambda row, place: [] if row[column] is None else [names[row[column]]]
    if getattr(feature, "dtype", "") not in ("string", "large_string"):
        return lambda row, place: [] if row[column] is None else [_plain(row[column])]
    found = _guessed(rows, column) if separator is None else separator
    return lambda row, place: _parts(row[column], found)


def labels_in(rows: Dataset, written: str, separator: str | None = None) -> Iterator[list[str]]:
    """The labels of each row, in the order of the rows."""
    read = reader_of(rows, written, separator)
    for place, row in enumerate(rows.select_columns([*columns_of(rows, written)])):
        yield read(row, place)


def names_of_file(path: str | Path) -> tuple[str, ...]:
    """The lines of a file, each the name of the class of its number.

    Raises:
        DataError: it cannot be read, or a name stands there twice.
    """
    try:
        names = tuple(line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the names of the classes cannot be read from {path}: {error}") from error
    names = tuple(filter(None, names))
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None or len(names) < 2:
        wrong = "has no two lines" if twice is None else f"has {twice!r} twice"
        raise DataError(f"{path} {wrong}: a file of class names has one a line, in the order of their numbers")
    return names


def sorted_names(found: set[str]) -> tuple[str, ...]:
    """Texts by the alphabet; by size where all are whole numbers."""
    if all(name.isdecimal() for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _guessed(rows: Dataset, column: str) -> str | None:
    """The one separator that the texts of a column have between labels; None where there is no such text.

    Raises:
        DataError: they have several.
    """
    found: dict[str, str] = {}
    all_numbers = True
    for batch in rows.select_columns([column]).iter(_STEP):
        for text in map(_bare, filter(None, batch[column])):
            found |= {one: text for one in SEPARATORS if one in text and one not in found}
            all_numbers = all_numbers and bool(_NUMBERS.fullmatch(text))
    if len(found) > 1:
        seen = " and ".join(f"{one!r} in {shown(text, 80)}" for one, text in found.items())
        raise DataError(f"column {column!r} has {seen}: say by which one labels are joined (separator)")
    return next(iter(found), " " if all_numbers else None)


def _parts(text: str | None, separator: str | None) -> list[str]:
    if separator == "":
        raise ConfigError("separator is a text of one character or more")
    bare = _bare(text or "")
    parts = bare.split(separator) if separator else [bare]
    return [_unquoted(part.strip()) for part in parts if part.strip()]


def _bare(text: str) -> str:
    """A text without the brackets that a list has when it is written into a table."""
    text = text.strip()
    return text[1:-1].strip() if text[:1] == "[" and text[-1:] == "]" else text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _plain(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _is_yes(value: Any, column: str, place: int) -> bool:
    said = _YES_OR_NO.get(str(value).strip().lower())
    if said is None:
        raise DataError(f"row {place} has {shown(value)} in column {column!r}, where 0 or 1 was expected")
    return said


def unknown_label(label: str, where: str, names: tuple[str, ...]) -> DataError:
    return DataError(f"{where} has the label {shown(label)}, which is none of {listed(names)}.{nearest(label, names)}")

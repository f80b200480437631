"""Rows of JSON: lines of objects, a list of them, columns, or articles with questions as in SQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, listed, shown
from .arrow_cache import batched
from .column_types import Batch
from .text_lines import lines_of

if TYPE_CHECKING:
    import pyarrow as pa

_SHAPES = 'lines of {"text": …, "label": …}, a list of such objects, {"text": […], "label": […]}, or SQuAD\'s layout'


def json_batches(path: Path) -> Iterator[Batch]:
    """The rows of a JSON file; one of lines is read by the line, any other whole.

    Raises:
        DataError: what is no JSON, with its line; what is no row.
    """
    by_line = _has_lines(path)
    rows = _of_lines(path) if by_line else _of_document(path)
    for places, held in batched(rows):
        names = dict.fromkeys(name for row in held for name in row)
        yield Batch({name: [row.get(name) for row in held] for name in names}, places, "line" if by_line else "row")


def values_as_array(values: list[Any], wanted: pa.DataType | None) -> pa.Array:
    """Values in the given type where it holds all of them, else in their own.

    Raises:
        ArrowInvalid, ArrowTypeError: there is no type for all.
    """
    import pyarrow as pa

    array = pa.array(values)
    if wanted is None or array.type == wanted:
        return array
    both = [pa.schema([("column", one)]) for one in (wanted, array.type)]
    try:
        holds_all = pa.unify_schemas(both, promote_options="permissive").field(0).type == wanted
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return array
    return pa.array(values, wanted) if holds_all else array


def _has_lines(path: Path) -> bool:
    """Whether the first line that is not blank is an object by itself."""
    first = next((line for line in lines_of(path) if line.strip()), None)
    if first is None:
        raise DataError(f"{path} is empty")
    if path.suffix.lower() != ".json":
        return not first.lstrip().startswith("[")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    others = sum(1 for _ in islice((line for line in lines_of(path) if line.strip()), 2))
    return isinstance(row, dict) and (others > 1 or not any(isinstance(value, (list, dict)) for value in row.values()))


def _of_lines(path: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            what = getattr(error, "msg", str(error))
            raise DataError(
                f"{path}, line {number}: no JSON: {what} at column {getattr(error, 'colno', 1)}. Each line is one "
                "object"
            ) from None
        yield number, _row(path, f"line {number}", row), len(line)


def _of_document(path: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    text = "".join(lines_of(path))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON: {error.msg} at column {error.colno}") from None
    for number, row in enumerate(_rows_in(path, document), 1):
        yield number, _row(path, f"row {number}", row), 1000


def _rows_in(path: Path, document: Any) -> Iterator[Any]:
    if isinstance(document, list):
        return iter(document)
    if isinstance(document, dict):
        lists = {name: value for name, value in document.items() if isinstance(value, list)}
        articles = lists.get("data", [])
        if articles and all(isinstance(one, dict) and "paragraphs" in one for one in articles):
            return _questions(path, articles)
        records = [name for name, value in lists.items() if value and all(isinstance(one, dict) for one in value)]
        if len(records) == 1:
            return iter(lists[records[0]])
        if len(records) > 1:
            raise DataError(f"{path} holds several lists of rows, {listed(records)}: give each a file of its own")
        columns = document if lists.keys() == document.keys() else _by_index(document)
        if columns:
            return _of_columns(path, columns)
    raise DataError(f"{path} holds {shown(document, 80)}, and no rows: expected {_SHAPES}")


def _by_index(document: dict[str, Any]) -> dict[str, list[Any]]:
    """The columns of {"text": {"0": …, "1": …}, …}, as pandas writes a table."""
    values = list(document.values())
    if not values or not all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return {}
    return {name: list(value.values()) for name, value in document.items()}


def _of_columns(path: Path, columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path} holds columns of different lengths: {lengths}")
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _row(path: Path, place: str, row: Any) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise DataError(f"{path}, {place}: found {shown(row, 80)}, and no object with names: expected {_SHAPES}")
    return row


def _questions(path: Path, articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each question; `answers` as `datasets` has them, left out where nothing is answered."""
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(article["paragraphs"]):
            where = f"{path}: article {number}, paragraph {place}"
            for asked in paragraph.get("qas", ()):
                if "context" not in paragraph or "question" not in asked:
                    raise DataError(f"{where} lacks {'question' if 'context' in paragraph else 'context'!r}")
                row = {
                    "id": str(asked.get("id", "")),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": asked["question"],
                }
                if "answers" in asked:
                    row["answers"] = {
                        key: [one.get(key) for one in asked["answers"]] for key in ("text", "answer_start")
                    }
                yield row

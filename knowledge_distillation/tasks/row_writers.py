"""Rows to a file as they come, in the format that its ending says; the file is there once all of them are."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from .parquet_rows import ParquetRows

Columns = Mapping[str, list[Any]]  # of some rows
Write = Callable[[Columns], None]


@contextmanager
def row_writer(path: Path) -> Iterator[Write]:
    """A function that takes columns of some rows, and writes them after those before.

    Lists stand in CSV and TSV as JSON. Nothing is left where the block fails; a file that was there stays then.

    Raises:
        DataError: the ending is not one of `WRITERS`, or the file cannot be written.
    """
    check_ending(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WRITERS[path.suffix.lower()](temporary) as write:
            yield write
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_ending(path: Path) -> None:
    """See that a path can be written to: what a long prediction should not find out at its end.

    Raises:
        DataError: it ends in something else, or is a folder.
    """
    if path.suffix.lower() not in WRITERS:
        raise DataError(f"{path}: rows are written to files that end in {', '.join(WRITERS)}")
    if path.is_dir():
        raise DataError(f"{path} is a folder; rows are written to a file")


@contextmanager
def _delimited(path: Path, delimiter: str) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")

        def write(columns: Columns) -> None:
            if not file.tell():
                writer.writerow(columns)
            writer.writerows(zip(*([_cell(value) for value in column] for column in columns.values()), strict=True))

        yield write


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


@contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(columns: Columns) -> None:
            for row in zip(*columns.values(), strict=True):
                file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str) + "\n")

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    rows = ParquetRows(path)
    try:
        yield rows.write
    finally:
        rows.close()


WRITERS: dict[str, Callable[[Path], Any]] = {
    ".csv": lambda path: _delimited(path, ","),
    ".tsv": lambda path: _delimited(path, "\t"),
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}

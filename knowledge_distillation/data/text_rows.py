"""Rows of plain text, one a line; and of sentences in CoNLL's columns, a word and its tags a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..errors import DataError, listed
from .arrow_cache import batched
from .column_types import Batch
from .text_lines import lines_of


def line_batches(path: Path) -> Iterator[Batch]:
    """Each line that is not blank as `text`."""
    lines = ((number, line.rstrip("\r\n"), len(line)) for number, line in enumerate(lines_of(path), 1) if line.strip())
    for places, texts in batched(lines):
        yield Batch({"text": texts}, places)


def sentence_batches(path: Path, names: Sequence[str] | None = None) -> Iterator[Batch]:
    """Each sentence: its words as `tokens`, the last of the columns as `tags`, those between as `column2`, ….

    Columns are parted by a tab where the first lines have one, else by white space; a blank line ends a sentence.

    Raises:
        DataError: a line with more or fewer columns than the first.
    """
    columns: list[str] = list(names or ())
    for places, sentences in batched(_sentences(path, columns)):
        yield Batch({name: [sentence[at] for sentence in sentences] for at, name in enumerate(columns)}, places)


def _sentences(path: Path, columns: list[str]) -> Iterator[tuple[int, list[list[str]], int]]:
    """The columns of each sentence; `columns` are named by the first line where nobody named them."""
    tab = "\t" if any("\t" in line for line in islice(lines_of(path), 100)) else None
    begin = 0
    words: list[list[str]] = []
    for number, line in enumerate(lines_of(path), 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            if words:
                yield begin, [list(column) for column in zip(*words, strict=True)], 20 * len(words)
            words = []
            continue
        if line.startswith("-DOCSTART-"):
            continue
        if tab and line.startswith("# ") and tab not in line:
            continue
        cells = line.split(tab)
        columns[:] = columns or _names(len(cells))
        if len(cells) != len(columns) or not cells[0]:
            raise DataError(
                f"{path}, line {number}: found {len(cells)} column{'s' * (len(cells) != 1)}, expected {len(columns)} "
                f"({listed(columns)}) parted by {'a tab' if tab else 'white space'}: each line is a word with its "
                "tags, a blank line ends a sentence"
            )
        begin = begin if words else number
        words.append(cells)
    if words:
        yield begin, [list(column) for column in zip(*words, strict=True)], 20 * len(words)


def _names(count: int) -> list[str]:
    return ["tokens", *(f"column{place}" for place in range(2, count)), *(["tags"] if count > 1 else [])]

"""Texts put one after the other and cut into blocks of one length, as language models are trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import DataError, nearest, shown

if TYPE_CHECKING:
    from datasets import Dataset

Tokens = Mapping[str, list[list[int]]]  # column -> of each text, one number for each token; one of them `input_ids`


def texts_as_blocks(
    rows: Dataset, column: str, tokens: Callable[[list[str]], Tokens], length: int, together: bool = True
) -> Dataset:
    """The tokens of texts in blocks, with `attention_mask` and `length`; blank texts are left out.

    Args:
        rows: the texts are in one of their columns; the others are left out.
        tokens: texts -> their tokens, uncut.
        length: tokens of a block. Every thousand texts end with what is left, a shorter one: no token is lost.
        together: False makes a block of each text, and cuts what is longer.

    Raises:
        DataError: there is no such column, a row has no text, or all texts are blank.
    """
    if column not in rows.column_names:
        near = nearest(column, rows.column_names)
        raise DataError(f"the rows have no column {column!r}. They have: {', '.join(rows.column_names)}.{near}")

    def cut(texts: list[Any], places: list[int]) -> dict[str, Any]:
        of_texts = tokens([text for text in map(text_of, texts, places, [column] * len(texts)) if text.strip()])
        made = {name: _cut(values, length, together) for name, values in of_texts.items()}
        return {
            **made,
            "attention_mask": [[1] * len(ids) for ids in made["input_ids"]],
            "length": [len(ids) for ids in made["input_ids"]],
        }

    read = {"input_columns": column, "batched": True, "with_indices": True}
    blocks = rows.map(cut, **read, remove_columns=rows.column_names, desc="Tokenizing")
    if len(blocks) == 0:
        raise DataError(f"column {column!r} has no text: all of its {len(rows)} rows are blank")
    return blocks


def text_of(value: Any, place: int, column: str) -> str:
    """A value that is a text.

    Raises:
        DataError: it is none; the row is named.
    """
    if not isinstance(value, str):
        raise DataError(f"row {place} has {shown(value, 80)} in column {column!r}, where text was expected")
    return value


def _cut(of_texts: list[list[int]], length: int, together: bool) -> list[list[int]]:
    if not together:
        return [list(values[:length]) for values in of_texts]
    values = list(chain.from_iterable(of_texts))
    return [values[start : start + length] for start in range(0, len(values), length)]

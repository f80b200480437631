"""Columns that have a number for each token of a row, and how they become one tensor with the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

TOKENS, LABELS = "input_ids", "labels"
PADDED_BY_TOKENIZER = ("attention_mask", "token_type_ids", "special_tokens_mask")
_OF_LABELS = (LABELS, "label", "label_ids")


@dataclass(frozen=True)
class PadTokens:
    """Rows of tokens into one batch: a tokenizer pads what it knows; other columns with a number for each token
    (`completion_mask`, a weight), or for each label of a decoder, are padded with 0 on the same side.

    Args:
        tokenizer: has a padding token.
        labelled: rows have class numbers or ids as labels, one per token: -100 pads them.
        padding, max_length: as in the collators of transformers.
    """

    tokenizer: Any
    labelled: bool
    padding: bool | str = True
    max_length: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

        collator = DataCollatorForSeq2Seq if self.labelled else DataCollatorWithPadding
        columns = _others(rows, self.labelled)
        known = [{key: value for key, value in row.items() if key not in columns} for row in rows]
        batch = collator(self.tokenizer, padding=self.padding, max_length=self.max_length)(known)
        for name, of in columns.items():
            batch[name] = self._padded([row[name] for row in rows], batch[of].shape[1])
        return batch

    def _padded(self, values: list[Any], width: int) -> Tensor:
        """(rows, width), with 0 where a row has no token."""
        padded = np.zeros((len(values), width), dtype=np.result_type(*(np.asarray(one).dtype for one in values)))
        for row, one in zip(padded, values, strict=True):
            start = width - len(one) if self.tokenizer.padding_side == "left" else 0
            row[start : start + len(one)] = one
        return torch.from_numpy(padded)


def uneven(lengths: Mapping[str, Sequence[int]], of: Sequence[str]) -> tuple[int, str] | None:
    """The first row whose mask is not as long as its tokens, and what is wrong with it; None where there is none.

    Args:
        lengths: how many values each row has, by column: `input_ids`, masks of it, labels where they are of tokens.
        of: the columns that a mask may be as long as.
    """
    for name, found in lengths.items():
        wanted = [lengths[TOKENS]] if name in PADDED_BY_TOKENIZER else [lengths[one] for one in of if one in lengths]
        if name in of or not is_mask(name) or any(list(found) == list(one) for one in wanted):
            continue
        if name not in PADDED_BY_TOKENIZER and len(set(found)) == 1 and len(found) > 1:
            continue  # says something else
        rows = zip(found, *wanted, strict=True)
        place = next(place for place, (size, *sizes) in enumerate(rows) if size not in sizes)
        return place, f"has {found[place]} values of {name!r} for {lengths[TOKENS][place]} tokens"
    return None


def is_mask(name: str) -> bool:
    """Whether a column says something of each token, by its name."""
    return name in PADDED_BY_TOKENIZER or name.endswith(("_mask", "_masks"))


def _others(rows: Sequence[Mapping[str, Any]], labelled: bool) -> dict[str, str]:
    """Columns with a number for each token, or for each label, that no tokenizer pads; and which of the two."""
    if any(row.keys() != rows[0].keys() for row in rows):
        return {}  # the tokenizer says it
    of = (TOKENS, LABELS) if labelled else (TOKENS,)
    names = [name for name, first in rows[0].items() if name in of or _is_numbers(first)]
    lengths = {name: [len(row[name]) for row in rows] for name in names if name in of or name not in _OF_LABELS}
    problem = uneven(lengths, of)
    if problem:
        raise DataError("row {} {}".format(*problem))
    others = (name for name in lengths if name not in (*of, *PADDED_BY_TOKENIZER))
    as_long = {name: [one for one in of if lengths[one] == lengths[name]] for name in others}
    return {name: found[0] for name, found in as_long.items() if found}


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list, an array or a tensor of numbers in one dimension."""
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], (bool, int, float))
    return isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1 and np.asarray(value).dtype.kind in "biuf"

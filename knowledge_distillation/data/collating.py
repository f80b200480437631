"""Rows into one batch: padded to the longest of them, or to the next of a few lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, DistillationError
from .token_budget import edges
from .token_columns import PadTokens

Collator = Callable[..., Any]


def default_collator(processing_class: Any, row: Any) -> Collator:
    """What pads rows such as `row` with their tokenizer; without one, rows have to be of one length.

    Raises:
        ConfigError: the tokenizer has no padding token.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processing_class, PreTrainedTokenizerBase):
        return _unpadded
    if processing_class.pad_token is None:
        raise ConfigError(
            f"{type(processing_class).__name__} has no padding token, so rows of different length cannot become a "
            "batch: set its pad_token, or give a data_collator"
        )
    return PadTokens(processing_class, _labels_tokens(row))


@dataclass(frozen=True)
class PadToBucket:
    """Pads each batch to the next of `edges(…, multiple, longest)`, so that batches come in few shapes.

    Labels, which have a length of their own for models with a decoder, are padded to the same one.
    """

    collator: Any  # pads up to a max_length, as those of transformers do
    multiple: int
    longest: int

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        padded = ("input_ids", "labels") if _labels_tokens(rows[0]) else ("input_ids",)
        longest = max(len(row[name]) for row in rows for name in padded)
        edge = int(edges([longest], self.multiple, self.longest)[0])
        return replace(self.collator, padding="max_length", max_length=edge)(rows)


@dataclass(frozen=True)
class NamingRows:
    """Another collator, whose errors say which rows lack what others of the batch have."""

    collator: Collator

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collator(rows)
        except Exception as error:
            odd = _odd_rows(rows)
            if not odd:
                raise
            said = error if isinstance(error, DistillationError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{'; '.join(odd[:4])} ({said})") from error


def _odd_rows(rows: list[Any]) -> list[str]:
    """What is missing in which rows."""
    if not all(isinstance(row, Mapping) for row in rows):
        return []
    keys = dict.fromkeys(key for row in rows for key in row)
    missing = {number: [key for key in keys if row.get(key) is None] for number, row in enumerate(rows)}
    return [
        f"row {number} has no {', '.join(map(repr, names))}"
        + (f" (idx {rows[number]['idx']})" if "idx" in rows[number] else "")
        for number, names in missing.items()
        if names
    ]


def _labels_tokens(row: Any) -> bool:
    """Whether a row has class numbers or ids as labels, one per token, which have to be padded as tokens are."""
    labels = np.asarray(row.get("labels")) if isinstance(row, Mapping) else np.empty(())
    return labels.ndim == 1 and labels.dtype.kind in "iu"


def _unpadded(rows: list[Any]) -> Any:
    from torch.utils.data import default_collate
    from transformers import default_data_collator

    try:
        return default_collate(rows) if isinstance(rows[0], (tuple, list)) else default_data_collator(rows)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"rows cannot become one batch: {error}. Rows of different length are padded where processing_class is "
            "their tokenizer, or by a data_collator"
        ) from error

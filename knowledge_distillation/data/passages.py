"""Questions on passages as tokens: windows of a passage, where its answer stands in them, and batches of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from .words import fitting_stride

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_QUESTION = 64  # tokens, as in BERT's SQuAD; never more than half of a window
OUTSIDE = (-1, -1)  # the characters of a token that is not of the passage
_FILL = {"passage_mask": False, "offsets": OUTSIDE}  # of padding


def passage_windows(
    questions: Sequence[str],
    passages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
) -> dict[str, list[Any]]:
    """Each question with its passage as tokens; one that is too long becomes several windows, which overlap.

    Args:
        max_length: of a window in tokens, with the question and special ones.
        stride: by how many tokens neighbours overlap; never more than half of a window's passage.
    Returns:
        What the tokenizer gives, and for each window `row`, `number` (of the window in its row), `offsets` (of each
        token its first character in the passage and the one after its last; -1, -1 of all others), `passage_mask`
        (where an answer may be: at a token of the passage, or at [CLS] where there is one, which says that there is
        no answer in this window), and `cls` (the place of [CLS]; -100 where there is none).
    Raises:
        DataError: a tokenizer that does not say where in a text a token stands.
        ConfigError: nothing of a passage fits into `max_length`.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say where in a text a token stands: a fast tokenizer is needed"
        )
    longest = min(LONGEST_QUESTION, (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2)
    encoded = tokenizer(
        _cut(questions, tokenizer, longest),
        list(passages),
        truncation="only_second",
        max_length=max_length,
        stride=fitting_stride(tokenizer, max_length, stride, beside=longest),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    columns: dict[str, list[Any]] = {
        **encoded,
        **{name: [] for name in ("row", "number", "offsets", "passage_mask", "cls")},
    }
    number, before, after = 0, 0, 0
    for window, (row, ids) in enumerate(zip(rows, encoded["input_ids"], strict=True)):
        number = number + 1 if window and rows[window - 1] == row else 0
        if number == 0:  # of other windows not every tokenizer says what is question and what passage
            sides = encoded.sequence_ids(window)
            before = sides.index(1) if 1 in sides else len(ids)
            after = sides[::-1].index(1) if 1 in sides else 0
        of_passage = [before <= place < len(ids) - after for place in range(len(ids))]
        cls = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else -100
        columns["row"].append(row)
        columns["number"].append(number)
        columns["offsets"].append(
            [pair if inside else OUTSIDE for pair, inside in zip(offsets[window], of_passage, strict=True)]
        )
        columns["passage_mask"].append([inside or place == cls for place, inside in enumerate(of_passage)])
        columns["cls"].append(cls)
    return columns


def place_of_answer(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of an answer, which is from character `start` to before `end`.

    None where the window does not have all of it.
    """
    places = [place for place, pair in enumerate(offsets) if pair[0] >= 0]
    if not places or offsets[places[0]][0] > start or offsets[places[-1]][1] < end:
        return None
    first = bisect_right(places, start, key=lambda place: offsets[place][1])
    last = bisect_left(places, end, key=lambda place: offsets[place][0]) - 1
    return (places[first], places[last]) if first <= last else None


@dataclass
class PadWithPassage:
    """Pads windows of passages, with what says where the passage is.

    Args:
        tokenizer: of the models.
        padding, max_length: as its `pad` takes them.
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        known = [{name: value for name, value in row.items() if name not in _FILL} for row in rows]
        padded = self.tokenizer.pad(known, padding=self.padding, max_length=self.max_length, return_tensors="pt")
        length = padded["input_ids"].shape[1]
        return {**padded, **{name: self._column(rows, name, length) for name in _FILL if name in rows[0]}}

    def _column(self, rows: list[Mapping[str, Any]], name: str, length: int) -> Tensor:
        fills = [[_FILL[name]] * (length - len(row[name])) for row in rows]
        left = self.tokenizer.padding_side == "left"
        sides = [
            fill + list(row[name]) if left else list(row[name]) + fill for row, fill in zip(rows, fills, strict=True)
        ]
        return torch.tensor(sides)


def _cut(questions: Sequence[str], tokenizer: Any, longest: int) -> list[str]:
    """The questions, each up to so many tokens."""
    stripped = [question.strip() for question in questions]
    encoded = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True)
    return [
        question[: offsets[longest - 1][1]] if len(offsets) > longest else question
        for question, offsets in zip(stripped, encoded["offset_mapping"], strict=True)
    ]

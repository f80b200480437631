"""Words that are tagged: where they stand in a text, and windows of them as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # of Chinese and Japanese, which have no spaces
_WORD = re.compile(rf"[{_SIGNS}]|[@#]?[^\W{_SIGNS}]+(?:['’.,\-][^\W{_SIGNS}]+)*|[^\w\s]")


class Word(NamedTuple):
    """A word, and the characters of the text where it stands: from `start` to before `end`."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words and punctuation marks of a text; "don't", "3.5", "well-known" and "@name" are one each."""
    return [Word(found.group(), found.start(), found.end()) for found in _WORD.finditer(text)]


def word_windows(
    words: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> dict[str, list[Any]]:
    """Rows of words as tokens; a row that is too long becomes several windows, of which neighbours overlap.

    Where a tokenizer takes a space for a part of the word behind it, as that of GPT-2 does, each word has one.

    A word counts once: in the first window that has it before the last half of an overlap, so that no word is without
    what stands around it. One of which a tokenizer makes nothing, such as a control character, is an unknown token.

    Args:
        max_length: of a window in tokens, special ones included.
        stride: by how many tokens neighbours overlap; never more than half of a window.
    Returns:
        What the tokenizer gives, and for each window `row`, `number` (of the window in its row), `words` (of each
        token the number of the word it belongs to; None where that is none, or counts in another window), and `first`
        (whether a token is the first one of its word).
    Raises:
        DataError: a tokenizer that does not say which word a token belongs to, or makes nothing of a word.
        ConfigError: no word fits into `max_length`.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which word a token belongs to: a fast tokenizer is needed"
        )
    stride = fitting_stride(tokenizer, max_length, stride)
    before = "" if _pieces(tokenizer, "a") == _pieces(tokenizer, " a") else " "
    encoded = tokenizer(
        [[before + word for word in row] for row in words],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    rows: list[int] = encoded.pop("overflow_to_sample_mapping")
    of_tokens = [encoded.word_ids(window) for window in range(len(rows))]
    whole = _without_gaps(words, rows, of_tokens, tokenizer)
    if whole is not None:
        return word_windows(whole, tokenizer, max_length, stride)
    columns: dict[str, list[Any]] = {**encoded, "row": rows, "number": [], "words": [], "first": []}
    for _, of_row in groupby(range(len(rows)), key=rows.__getitem__):
        windows = [of_tokens[window] for window in of_row]
        for number, counted in enumerate(_counted(windows, stride // 2)):
            columns["number"].append(number)
            columns["words"].append([word if word in counted else None for word in windows[number]])
            columns["first"].append([word in counted and counted[word] == n for n, word in enumerate(windows[number])])
    return columns


def _pieces(tokenizer: Any, word: str) -> list[int]:
    return tokenizer([word], is_split_into_words=True)["input_ids"]


def _counted(windows: Sequence[Sequence[Any]], context: int) -> Iterator[dict[int, int]]:
    """For each window of a row the words that count in it, and the place of the first token of each.

    Args:
        windows: of each token the number of its word.
        context: tokens at the end of all windows but the last in which no word counts that begins there.
    """
    last = -1
    for number, words in enumerate(windows, start=1):
        places = [place for place, word in enumerate(words) if word is not None]
        end = len(words) if number == len(windows) else places[len(places) - context :][0] if context else len(words)
        firsts = {words[place]: place for place in reversed(places) if words[place] > last}
        counted = {word: place for word, place in firsts.items() if place < end}
        last = max(counted, default=last)
        yield counted


def fitting_stride(tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, beside: int = 0) -> int:
    """The overlap of windows, at most half of what they hold beside special tokens, and beside so many of others.

    Raises:
        ConfigError: they hold nothing.
    """
    special = tokenizer.num_special_tokens_to_add(pair=beside > 0)
    room = max_length - special - beside
    if room < 2:
        raise ConfigError(f"max_length is {max_length}, of which {special + beside} tokens are taken already")
    return min(stride, room // 2)


def _without_gaps(
    words: Sequence[Sequence[str]], rows: list[int], of_tokens: list[list[int | None]], tokenizer: Any
) -> list[list[str]] | None:
    """The words with an unknown token for each that has no token; None where each has one."""
    seen: list[set[int | None]] = [set() for _ in words]
    for row, numbers in zip(rows, of_tokens, strict=True):
        seen[row].update(numbers)
    gaps = [(row, number) for row, line in enumerate(words) for number in range(len(line)) if number not in seen[row]]
    if not gaps:
        return None
    unknown, (row, number) = tokenizer.unk_token, gaps[0]
    if unknown is None or words[row][number] == unknown:
        raise DataError(
            f"the tokenizer makes nothing of the word {shown(words[row][number])}, and has no unknown token"
        )
    whole = [list(line) for line in words]
    for row, number in gaps:
        whole[row][number] = unknown
    return whole

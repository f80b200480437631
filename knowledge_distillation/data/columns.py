"""Which columns of a table hold the text and the label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, listed, nearest

if TYPE_CHECKING:
    from datasets import Dataset

_TEXTS = (
    *("text", "texts", "sentence", "review", "content", "comment", "body", "tweet", "message", "document", "post"),
    *("utterance", "query", "tokens", "words", "description", "messages", "conversations"),
)
_CHATS = ("messages", "conversations")  # lists of turns
_PAIRS = (
    *(("question1", "question2"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2")),
    *(("sentence_a", "sentence_b"), ("text_a", "text_b"), ("question", "context"), ("question", "sentence")),
    *(("question", "passage"), ("question", "answer"), ("query", "passage"), ("query", "document")),
    *(("q1", "q2"), ("s1", "s2"), ("anchor", "positive"), ("source", "target"), ("instruction", "output")),
    *(("prompt", "response"), ("prompt", "completion"), ("#1 string", "#2 string")),
)
_LABELS = (
    *("label", "labels", "stars", "rating", "score", "class", "target", "category", "sentiment", "tags", "ner_tags"),
    *("gold_label", "is_duplicate", "intent", "emotion", "topic", "answers", "similarity", "quality", "y"),
)
_ID = re.compile(r"(unnamed: \d+|index|idx|_?id|uid|uuid|guid|row|.*[ _-](id|idx|index)|#\d* ?id|.*[a-z]ID)")
_SEEN = 1000  # rows, when it is asked whether numbers only count them


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads: one of text, or two for pairs; and the label's, None where there is none."""

    text: tuple[str, ...]
    label: str | None = None


def guess_columns(
    rows: Dataset,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    texts: tuple[int, int] = (1, 2),
    labelled: bool = True,
) -> tuple[Columns, tuple[str, ...]]:
    """The columns that are named, and where none is, those for which there is one way only; and what was guessed.

    A well-known name is taken (text, sentence, review, question1 and question2, …; label, stars, score, …), else the
    only column of texts, and the only other one as the label. What numbers the rows is never guessed.

    Args:
        text: the columns of text: a name, several parted by commas, or a list.
        label: the column of labels; or several, parted by commas, of labels that apply or not.
        texts: the fewest and the most columns of text that the task reads.
        labelled: whether a label is needed; else only a named one is taken.

    Raises:
        ConfigError: a named column that is not there, or more columns of text than the task reads; nothing named, and
            more than one way or none.
    """
    there = list(rows.column_names)
    named = named_columns(text, there)
    for name in [*named, *label_columns(label, there)]:
        if name not in there:
            raise ConfigError(f"there is no column {name!r}.{nearest(name, there)} Columns: {_list(there)}")
    _check_named(named, label, texts)
    notes = []
    found = label
    if labelled and label is None:
        found = _one_of(_LABELS, [name for name in there if name not in named], "label", "--label")
    if not named:
        named = _guessed_texts(rows, found, texts)
        notes.append(f"text: column{'s' * (len(named) > 1)} {' and '.join(map(repr, named))}")
    if labelled and label is None:
        found = found or _only_other(rows, named)
        notes.append(f"label: column {found!r}")
    return Columns(tuple(named), found), ("; ".join(notes),) if notes else ()


def label_columns(label: str | None, there: Sequence[str]) -> list[str]:
    """The columns that a label names: one, or where none is called so, those between its commas."""
    if label is None:
        return []
    return [label] if label in there else [name.strip() for name in label.split(",")]


def known_label(rows: Dataset) -> str | None:
    """The one column that has a well-known name of labels; None where none has, or several."""
    found = [name for name in rows.column_names if name.lower() in _LABELS]
    return found[0] if len(found) == 1 else None


def named_columns(text: str | Sequence[str] | None, there: list[str]) -> list[str]:
    if text is None:
        return []
    if isinstance(text, str):
        return [text] if text in there else [name.strip() for name in text.split(",") if name.strip()]
    return list(text)


def _check_named(named: list[str], label: str | None, texts: tuple[int, int]) -> None:
    fewest, most = texts
    if named and not fewest <= len(named) <= most:
        reads = str(most) if fewest == most else f"{fewest} to {most}"
        raise ConfigError(f"text names {len(named)} columns ({_list(named)}); the task reads {reads}")
    if len(set(named)) < len(named):
        raise ConfigError(f"text names a column twice: {_list(named)}")
    if label is not None and {*label_columns(label, named)} & {*named}:
        raise ConfigError(f"column {label!r} is named both as text and as label")


def _one_of(known: Sequence[str], there: list[str], what: str, option: str) -> str | None:
    found = [name for name in there if name.lower() in known]
    if len(found) > 1:
        raise ConfigError(
            f"columns {_list(found)} could each be the {what}: name it, as in {option} {found[0]}. Columns: "
            f"{_list(there)}"
        )
    return found[0] if found else None


def _guessed_texts(rows: Dataset, label: str | None, texts: tuple[int, int]) -> list[str]:
    labels = label_columns(label, rows.column_names)
    kinds = {name: _kind_of_text(rows.features[name]) for name in rows.column_names if name not in labels}
    readable = [name for name, kind in kinds.items() if kind or name.lower() in _CHATS]
    ways = _known_texts(readable, texts)
    if len(ways) > 1:
        found = " or ".join(" and ".join(map(repr, way)) for way in ways)
        raise ConfigError(_say(f"the text could be {found}", rows, texts, ways[0]))
    if ways:
        return ways[0]
    known = known_label(rows)
    others = [name for name in readable if kinds[name] != "null" and name != known and not _numbers_rows(rows, name)]
    if texts[0] <= len(others) <= (texts[1] if texts[0] > 1 else 1):
        return others
    found = f"columns {_list(others)} hold text, and more than one way is open" if others else "no column holds text"
    raise ConfigError(_say(found, rows, texts, others))


def _known_texts(readable: list[str], texts: tuple[int, int]) -> list[list[str]]:
    """The columns of well-known names, in each way that a task of so many texts can read them."""
    fewest, most = texts
    lower = {name.lower(): name for name in readable}
    pairs = [[lower[one] for one in pair] for pair in _PAIRS if all(one in lower for one in pair)]
    pairs = pairs if fewest <= 2 <= most else []
    in_pairs = {name for pair in pairs for name in pair}
    singles = [name for name in readable if name.lower() in _TEXTS and name not in in_pairs] if fewest == 1 else []
    return [*pairs, *([name] for name in singles)]


def _only_other(rows: Dataset, text: list[str]) -> str:
    there = list(rows.column_names)
    others = [name for name in there if name not in text and not _numbers_rows(rows, name)]
    if len(others) == 1:
        return others[0]
    found = f"columns {_list(others)} could each be the label" if others else "no column is left for the label"
    example = f"--label {others[0]}" if others else "--label NAME"
    raise ConfigError(f"{found}: name it, as in {example}. Columns: {_list(there)}")


def _say(what: str, rows: Dataset, texts: tuple[int, int], example: list[str]) -> str:
    names = ",".join(example[: max(texts[0], 1)]) or "NAME"
    pair = " (or --text FIRST,SECOND for pairs)" if texts[0] == 1 < texts[1] else ""
    return f"{what}: name it, as in --text {names}{pair}. Columns: {_list(rows.column_names)}"


def _kind_of_text(feature: Any) -> str:
    """The type of a column of texts, or of lists of words, or of nothing at all; "" of any other."""
    dtype = str(getattr(getattr(feature, "feature", feature), "dtype", ""))
    return dtype if dtype in ("string", "large_string", "null") else ""


def _numbers_rows(rows: Dataset, name: str) -> bool:
    """Whether a column only tells rows apart: by its name, or since it counts them."""
    if _ID.fullmatch(name.lower()) or name.endswith("ID"):
        return True
    feature: Any = rows.features[name]
    if getattr(feature, "names", None) or not str(getattr(feature, "dtype", "")).startswith("int"):
        return False
    first = rows[:_SEEN][name]
    return len(first) > 2 and all(b is not None and a is not None and b - a == 1 for a, b in pairwise(first))


def _list(names: Sequence[str]) -> str:
    return listed(list(names), 12)

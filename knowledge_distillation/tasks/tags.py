"""The tags of words: which there are, their order as classes, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError, listed, nearest, shown
from ..evaluation.entities import OUTSIDE, parts_of

if TYPE_CHECKING:
    from datasets import Dataset

_PREFIXES = "SBIELU"  # in the order of the classes of a type


def tags_of(splits: Mapping[str, Dataset], column: str) -> tuple[str, ...]:
    """The tags in the order of their numbers: those of a list of ClassLabel, else what stands in the column.

    O comes first, then type by type; a type has every prefix that one of them has, for a row that training lacks.

    Args:
        splits: "train", and others whose tags have to be among those of it.

    Raises:
        DataError: a row without tags, one tag only, or one that is not in "train".
    """
    declared = declared_tags(splits["train"], column)
    if declared:
        return tuple(declared)
    tags = {split: _tags_in(rows, column, split) for split, rows in splits.items()}
    names = tuple(_in_order(tags["train"]))
    if len(names) < 2:
        raise DataError(f"column {column!r} holds {listed(names) or 'no tag'} alone: there is nothing to tell apart")
    for split, others in tags.items():
        unseen = sorted(others - {*names})
        if unseen:
            raise DataError(
                f"column {column!r} of the {split} rows holds {listed(unseen)}, of which there is no training row."
                f"{nearest(unseen[0], names)} Training has: {listed(names)}"
            )
    return names


def declared_tags(rows: Dataset, column: str) -> list[str] | None:
    """The names of a list of ClassLabel."""
    return getattr(getattr(rows.features[column], "feature", None), "names", None)


def tag_numbers(
    tags: Any, words: int, place: int, names: Sequence[str], declared: Sequence[str] | None = None
) -> list[int]:
    """The class numbers of the tags of a row, which has so many words.

    Raises:
        DataError: there are more or fewer of them, or one that is none of the names.
    """
    if not isinstance(tags, (list, tuple)) or len(tags) != words:
        found = f"{len(tags)} tags" if isinstance(tags, (list, tuple)) else f"{shown(tags)} as its tags"
        raise DataError(f"row {place} has {words} words and {found}")
    numbers = {name: number for number, name in enumerate(names)}
    said = [declared[tag] if declared and isinstance(tag, int) else str(tag) for tag in tags]
    unknown = next((name for name in said if name not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"row {place} has the tag {shown(unknown)}, which is none of {listed(names)}.{nearest(unknown, names)}"
        )
    return [numbers[name] for name in said]


def going_on(names: Sequence[str]) -> list[int]:
    """Of each tag the number of what the next piece of its word has: of a B its I where there is one, else itself."""
    numbers = {name: number for number, name in enumerate(names)}
    inner = [f"I-{kind}" if prefix == "B" else name for name in names for prefix, kind in [parts_of(name)]]
    return [numbers.get(name, number) for number, name in enumerate(inner)]


def _tags_in(rows: Dataset, column: str, split: str) -> set[str]:
    found: set[str] = set()
    for place, tags in enumerate(rows[column]):
        if not isinstance(tags, (list, tuple)) or None in tags:
            raise DataError(
                f"row {place} of the {split} rows has {shown(tags)} in column {column!r}: a list of tags is needed"
            )
        found.update(map(str, tags))
    return found


def _in_order(tags: set[str]) -> Iterator[str]:
    plain = {tag for tag in tags if tag == OUTSIDE or parts_of(tag)[1] == tag}
    parts = {parts_of(tag) for tag in tags - plain}
    prefixes, kinds = sorted({one for one, _ in parts}, key=_PREFIXES.index), sorted({kind for _, kind in parts})
    yield from plain & {OUTSIDE}
    yield from (f"{prefix}-{kind}" for kind in kinds for prefix in prefixes)
    yield from sorted(plain - {OUTSIDE}, key=lambda tag: (int(tag) if tag.isdecimal() else -1, tag))

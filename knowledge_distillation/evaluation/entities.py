"""Entities in the tags of words, and their precision, recall and F1.

A tag is `O`, or a prefix and a type such as `B-person`: B begins an entity, I goes on, E (or L) ends it, S (or U) is
one by itself. An entity begins where a tag other than O

- is a B or an S,
- follows an O, an E or an S, or the start of the sentence,
- or has another type than the tag before it;

it goes on to the word before the next O or the next beginning. So tags that break their own scheme, an I without a B,
are read as well as they can be, and IOB, BIO and IOBES need not be told apart. Tags without a prefix (`NOUN`) are an
entity for each word, as by conlleval's option for raw tags.

Source: Tjong Kim Sang and Buchholz, Introduction to the CoNLL-2000 Shared Task: Chunking, 2000, whose script conlleval
has these rules; seqeval in its default mode repeats them for IOB, BIO and IOBES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..losses.labels import IGNORED_LABEL
from .scoring import CLASSES, Answer, Targets, Task, Totals

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)")
_ALONE, _LAST = "SU", "EL"


class Entity(NamedTuple):
    """A type, and its words: from `start` to before `end`."""

    type: str
    start: int
    end: int


def parts_of(tag: str) -> tuple[str, str]:
    """Prefix and type: ("O", "") outside; S where a tag has no prefix."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(tag)
    return (found[1], found[2]) if found else ("S", tag)


def entities_of(tags: Iterable[str]) -> list[Entity]:
    """The entities of a sentence, in their order."""
    found: list[Entity] = []
    before, type_before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, kind = parts_of(tag)
        begins = prefix in "B" + _ALONE or before in OUTSIDE + _LAST + _ALONE or kind != type_before
        if prefix != OUTSIDE:
            start = place if begins else found.pop().start
            found.append(Entity(kind, start, place + 1))
        before, type_before = prefix, kind
    return found


def entity_scores(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall of all entities together, and the share of words whose tag is right; each in [0, 1].

    An entity is right where type, start and end are. A share of nothing is 0.

    Args:
        said, true: the tags of each sentence, as predicted and as they are.
    """
    found, right, entities, alike = 0, 0, 0, 0
    for of_model, of_data in zip(said, true, strict=True):
        mine, theirs = set(entities_of(of_model)), set(entities_of(of_data))
        found, right, entities = found + len(mine), right + len(mine & theirs), entities + len(theirs)
        alike += sum(one == other for one, other in zip(of_model, of_data, strict=True))
    return {
        "f1": 2 * right / max(found + entities, 1),
        "precision": right / max(found, 1),
        "recall": right / max(entities, 1),
        "accuracy": alike / max(sum(map(len, true)), 1),
    }


def entity_task(names: Sequence[str]) -> Task:
    """How tags are scored: words are tokens with a label, in windows of sentences that `window` of the batch names.

    Args:
        names: the tags in the order of their numbers.
    """
    return Task(_answer, CLASSES.agreement, partial(_scores, names), CLASSES.agreed)


def _answer(logits: Tensor, targets: Targets) -> Answer:
    predictions = logits.argmax(-1).int().cpu()
    sums: Totals = {}
    if targets.labels is not None:
        labels, said = targets.labels.cpu().numpy(), predictions.numpy()
        counted = labels != IGNORED_LABEL
        sums = {
            "windows": targets.inputs["window"].tolist(),
            "said": [row[of_row] for row, of_row in zip(said, counted, strict=True)],
            "true": [row[of_row] for row, of_row in zip(labels, counted, strict=True)],
        }
    return Answer(predictions, logits.shape[-1], sums)


def _scores(names: Sequence[str], sums: Totals) -> dict[str, float]:
    """The scores of whole sentences, put together from their windows."""
    if not sums:
        return {}
    sentences: dict[int, list[int]] = {}
    for place in sorted(range(len(sums["windows"])), key=sums["windows"].__getitem__):
        sentences.setdefault(sums["windows"][place][0], []).append(place)
    said, true = (
        [
            [_name(names, number) for number in np.concatenate([sums[side][place] for place in places])]
            for places in sentences.values()
        ]
        for side in ("said", "true")
    )
    return entity_scores(said, true)


def _name(names: Sequence[str], number: int) -> str:
    """The name of a class; its number where a model has more of them than the data."""
    return names[number] if number < len(names) else str(number)

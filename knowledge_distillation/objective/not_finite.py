"""Why a loss on logits is infinite or no number, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Entry
from ..features.deferred import HeadLogits, materialized

ONE_SIDED = (
    "a class whose logit is -inf has probability 0, and where only one model leaves it out a loss may be infinite: "
    "leave out the same classes in both, or take a loss that stays finite (js_divergence, skewed_kl, "
    "skewed_reverse_kl, total_variation)"
)


def why_not_finite(entry: Entry, student: Iterable[Any], teacher: Iterable[Any]) -> str:
    """What makes a loss infinite or no number, to be added to a message; empty where the features do not tell."""
    sides = {"student": (entry.student, student), "teacher": (entry.teacher, teacher)}
    broken, missing = [], []
    for who, (names, features) in sides.items():
        for name, feature in zip(names, features, strict=False):
            other, infinite = 0, 0
            for rows in _some_at_a_time(feature):
                infinite += int((rows == -torch.inf).sum())
                other += int((~torch.isfinite(rows) & (rows != -torch.inf)).sum())
            broken += [f"the {who}'s {name} holds nan or inf in {other} places"] if other else []
            missing += [f"the {who}'s {name} is -inf in {infinite} places"] if infinite else []
    if broken:
        return ": " + " and ".join(broken)
    return f": {' and '.join(missing)}; {ONE_SIDED}" if missing else ""


def _some_at_a_time(feature: Any) -> Iterator[Tensor]:
    """Logits of a head sample by sample, which are too many to be there at once; others whole."""
    with torch.no_grad():
        if isinstance(feature, HeadLogits):
            for hidden in feature.hidden:
                yield replace(feature, hidden=hidden[None]).tensor()
        else:
            yield from materialized([feature])

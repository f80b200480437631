"""What has to hold of two models' tokens, and what a plan says of them: labels, masks, vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import listed
from ..features.label_shift import label_shift
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from .probe import Probe


def other_shifts(
    loss_model: MultiLayerBasedDistillationLoss, probes: Iterable[Probe], labels: Any
) -> Iterator[tuple[int, str]]:
    """The entries that compare logits, position by position, of models whose positions are for different tokens."""
    ours = loss_model.label_shift
    if ours is None or not ours.by_loss:
        return
    for probe in probes:
        readers = [
            e
            for f, entries in probe.readers.items()
            if probe.name or probe.teacher
            for e in entries
            if f.output == "logits"
        ]
        theirs = label_shift(probe.model, probe.inputs, labels) if readers else None
        if theirs is None or not theirs.by_loss or theirs.shifted == ours.shifted:
            continue
        for entry in readers:
            yield entry.index, f"the student says that {ours}, the {probe.title} that {theirs}: map other features"


def unshared(
    loss_model: MultiLayerBasedDistillationLoss, probes: Iterable[Probe], tokenizer: Any
) -> Iterator[tuple[int, str]]:
    """The entries with `vocabulary: shared` that would leave out classes which the tokenizer has."""
    entries = _entries_of(tokenizer)
    for index, name, classes, compared in _narrowed(loss_model, probes):
        if entries > classes:
            yield index, f"{name}: {compared}, and the tokenizer has {entries} entries: no class of it may be left out"


def notes_of_classes(
    loss_model: MultiLayerBasedDistillationLoss, probes: Iterable[Probe], tokenizer: Any
) -> list[str]:
    """Which classes of how many are compared, of entries with `vocabulary: shared`."""
    entries = _entries_of(tokenizer)
    why = (
        f": all {entries} of the tokenizer are among them"
        if entries
        else ", and no tokenizer is given to check them by"
    )
    return [f"{name}: {compared}{why}" for _, name, _, compared in _narrowed(loss_model, probes)]


def _narrowed(
    loss_model: MultiLayerBasedDistillationLoss, probes: Iterable[Probe]
) -> Iterator[tuple[int, str, int, str]]:
    """Number, name, classes, and these in words, of entries that compare fewer classes than a side has."""
    probes = list(probes)
    ours, theirs = (
        {f: v for p in probes if bool(p.teacher) is one for f, v in p.features.items()} for one in (False, True)
    )
    theirs = {**ours, **theirs}  # students may teach as well
    for bound in loss_model.bound.values():
        entry = bound.entry
        if entry.vocabulary == "same":
            continue
        sides = ((ours, entry.student), (theirs, entry.teacher))
        widths = list(dict.fromkeys(side[name].shape[-1] for side, names in sides for name in names))
        if len(widths) > 1:
            of = " and ".join(map(str, widths))
            yield entry.index, entry.name, bound.classes, f"the first {bound.classes} of {of} classes are compared"


def _entries_of(tokenizer: Any) -> int:
    return len(tokenizer) if hasattr(tokenizer, "__len__") else 0


def notes_of_tokens(loss_model: MultiLayerBasedDistillationLoss, context: Mapping[str, Any]) -> list[str]:
    """Which tokens count for which entries, and how many of the batch do."""
    notes, shift = [], loss_model.label_shift
    labelled = [bound for bound in loss_model.bound.values() if bound.items.marks or "labels" in bound.context_keys]
    if shift is not None and labelled:
        notes.append(f"student: {shift}")
    groups: dict[str, list[str]] = {}
    for bound in loss_model.bound.values():
        items = bound.items
        if "labels" in items.marks and "labels" not in context:  # an answer's place in a row marks no tokens
            continue
        rows = items.masks(context).rows
        if rows is not None and not bool(rows.any()):
            by = f", by {' and '.join(one.split()[0] for one in items.marks)}" if items.marks else ""
            notes.append(
                f"warning: nothing of the first batch counts for {bound.entry.name}{by}: it learns nothing there"
            )
        if items.rows is None and not items.marks or rows is not None and rows.dim() < 2:
            continue
        keys = [items.rows] if items.rows and "mask" in items.rows else []
        counted = "all" if rows is None else f"{int(rows.bool().sum())} of {rows.numel()}"
        by = f", by {' and '.join((*keys, *items.marks))}" if keys or items.marks else ""
        groups.setdefault(f"{counted} tokens of the first batch count{by}", []).append(bound.entry.name)
    for text, names in groups.items():
        notes.append(f"{text}: for {listed(names, 3)}")
    return notes

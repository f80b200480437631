"""One model on the probe batch: what it takes of it, how its features are taken, and these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config.entry import Entry, Feature
from ..features.adaptors import AdaptedOutput, OutputAdaptor
from ..features.capture import Capture, Location
from ..features.catalogue import Catalogue, catalogue
from ..features.deferred import Deferred
from ..features.inputs import first_rows, on_first_batch
from ..features.kinds import kind_by_name
from ..features.preserve import preserved
from ..features.signature import forward_parameters
from ..features.source import Source
from ..objective.loss import takes_parts
from ..objective.loss_model import OWN_LOSS
from ..teachers.frozen import FrozenTeacher

Problems = list[tuple[int, str]]  # of entries, by their number


@dataclass
class Probe:
    """One model on the probe batch.

    `name` is that by which features name the model, empty for the student and for a teacher that is alone; `title` is
    how messages call it. `readers` are the entries that read each of its features.
    """

    name: str
    title: str
    model: nn.Module
    inputs: dict[str, Any]  # what its `forward` takes
    readers: Mapping[Feature, list[Entry]]
    teacher: FrozenTeacher | None = None  # where it is one
    source: Source = field(init=False)
    features: dict[Feature, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Take the features in one pass: a teacher's are detached."""
        take = self.source.features
        with on_first_batch(self.title, self.inputs):
            self.features = self.teacher.features(take, self.inputs) if self.teacher else take(self.inputs)
        if self.teacher:
            shapes = {feature: value.shape for feature, value in self.features.items()}
            self.source.shapes = {feature: torch.empty(shape, device="meta") for feature, shape in shapes.items()}
        deferred = [str(feature) for feature in self.source.kinds if isinstance(self.features[feature], Deferred)]
        if deferred:
            self.source.notes.append(f"{', '.join(deferred)}: compared part by part, never kept whole")


def readers_of(entries: Iterable[Entry], teacher: str, student: str | None = None) -> dict[Feature, list[Entry]]:
    """The entries that read each of the features of the model that is a teacher, or a student, of that name."""
    readers: dict[Feature, list[Entry]] = {}
    for entry in entries:
        learns_by = [feature for feature in entry.student if feature.model == student]
        teaches_by = [feature for feature in entry.teacher if feature.model == teacher]
        for feature in dict.fromkeys(learns_by + teaches_by):
            readers.setdefault(feature, []).append(entry)
    return readers


def source_of(
    probe: Probe, adaptor: OutputAdaptor | None, problems: Problems, known: MutableMapping[nn.Module, Catalogue]
) -> Source:
    """How the features that entries read of a model are taken; features it does not have become problems.

    Args:
        known: the names of models that were bound before, to which those of this one are added.
    """
    if adaptor is not None:
        return _adapted(probe, adaptor)
    if probe.model not in known:
        with on_first_batch(probe.title, probe.inputs):
            known[probe.model] = catalogue(probe.model, first_rows(probe.inputs))
    names = known[probe.model]
    places: dict[Feature, Location] = {}
    kinds: dict[Feature, str] = {}
    canonical: dict[Feature, Feature] = {}
    maps, heads = [], []
    notes = list(names.notes)
    for feature, readers in probe.readers.items():
        offer = names.find(feature)
        if offer is None:
            problem = _no_own_loss(feature, probe) or names.explain(feature, probe.title)
            problems.append((readers[0].index, problem))
            continue
        if offer.problem:
            problems.append((readers[0].index, f"{feature}: {offer.problem}"))
            continue
        kind = offer.kind
        places[feature], kinds[feature] = offer.location, kind
        if names.canonical(feature) in names.offers:
            canonical[feature] = names.canonical(feature)
        if offer.location.pooling:
            canonical[feature] = names.canonical(feature)
            notes.append(names.said_of(feature))
        if not all(takes_parts(entry, kind) for entry in readers):
            continue
        if offer.head:
            places[feature] = offer.head
            heads.append(feature)
            notes.append(
                f"{feature}: {offer.shape[-1]} classes are compared some tokens at a time, and the logits not kept"
            )
        elif offer.location.source == "attention":
            maps.append(feature)
    capture = Capture(probe.model, places, deferred=maps)
    depth = _depth(names, places, capture.stop_early) if places else "not at all"
    return Source(capture, kinds, notes, depth, canonical=canonical, heads=frozenset(heads))


def _adapted(probe: Probe, adaptor: OutputAdaptor) -> Source:
    with preserved(probe.model):
        features = AdaptedOutput(probe.model, adaptor, list(probe.readers), probe.inputs, probe.title)
        kinds = {feature: kind_by_name(feature, tensor) for feature, tensor in features(probe.inputs).items()}
    note = f"the {probe.title}'s output adaptor takes its whole output"
    return Source(features, kinds, [note], "whole, for its output adaptor")


def _no_own_loss(feature: Feature, probe: Probe) -> str | None:
    """Why a model computes no loss of its own, where that is the feature."""
    if feature[:2] != OWN_LOSS or "labels" in probe.inputs:
        return None
    if probe.teacher:
        return f"{feature}: only a student is given labels to compute a loss from"
    takes = "labels" in forward_parameters(probe.model)[0]
    why = "the batch has no 'labels'" if takes else f"the forward of {type(probe.model).__name__} takes no 'labels'"
    return f"{feature} is what the {probe.title} computes from labels, and {why}"


def _depth(names: Catalogue, places: Mapping[Feature, Location], stops_early: bool) -> str:
    """How deep a model runs when it stops after the last of `places`."""
    if not stops_early:
        return "whole"
    last = max(place.order for place in places.values())
    parts = []
    for stack in ("encoder_layer", "decoder_layer", "layer"):
        depth = names.depth(stack)
        orders = [names.offers[Feature(f"{stack}{n}", "hidden_states")].location.order for n in range(1, depth + 1)]
        if depth:
            begun = sum(order <= last for order in orders)
            inside = next((n for n, order in enumerate(orders, 1) if order > last), depth)
            touched = any(
                offer.location.order <= last for f, offer in names.offers.items() if f.layer == f"{stack}{inside}"
            )
            parts.append(f"{max(begun, inside if touched else begun)} of {depth} {stack.replace('_', ' ')}s")
    logits = names.offers.get(Feature("output", "logits"))
    whole = logits is not None and logits.location.order <= last
    return ", ".join(parts) + (", and the head" if whole else "") if parts else "to the deepest mapped module"

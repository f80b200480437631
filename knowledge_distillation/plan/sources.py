"""How the features of one model are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..config.entry import Entry, Feature
from ..errors import ConfigError
from ..features.adaptors import AdaptedOutput
from ..features.batch_context import kind_by_name
from ..features.capture import Capture, Location, forward_parameters
from ..features.catalogue import Catalogue, Known, catalogue
from ..features.deferred import Deferred
from ..features.inputs import Inputs, first_rows, on_first_batch
from ..features.kinds import probe_kinds
from ..features.preserve import preserved
from ..features.source import Source
from ..objective.loss import takes_parts
from ..objective.loss_model import OWN_LOSS


def _said_of_deferred(source: Source, features: Mapping[Feature, Any]) -> list[str]:
    deferred = [str(feature) for feature in source.kinds if isinstance(features.get(feature), Deferred)]
    return [f"{', '.join(deferred)}: compared part by part, never kept whole"] if deferred else []


def _source(
    model: nn.Module,
    inputs: dict[str, Any],
    asked: Mapping[Feature, list[Entry]],
    who: str,
    adaptor: Any,
    problems: list[tuple[int, str]],
) -> Source:
    if adaptor is not None:
        return _adapted(model, inputs, asked, who, adaptor)
    with on_first_batch(who, inputs):
        names = catalogue(model, first_rows(inputs))
    known: dict[Feature, Known] = {}
    for feature, readers in asked.items():
        found = names.find(feature)
        if found is None:
            why = _no_own_loss(feature, inputs, model, who) or names.explain(feature, who)
            problems.append((readers[0].index, why))
        else:
            known[feature] = found
    places = {feature: one.location for feature, one in known.items()}
    kinds = {feature: one.kind for feature, one in known.items() if one.kind}
    unclear = {feature: place for feature, place in places.items() if feature not in kinds}
    kinds |= _probe(model, unclear, inputs, asked, problems)
    places = {feature: place for feature, place in places.items() if feature in kinds}
    deferred = [
        feature
        for feature, place in places.items()
        if place.source == "attention" and all(takes_parts(entry, kinds[feature]) for entry in asked[feature])
    ]
    heads = {
        feature: head
        for feature in places
        if (head := known[feature].head) and all(takes_parts(entry, kinds[feature]) for entry in asked[feature])
    }
    places |= heads
    source = Source(Capture(model, places, deferred=deferred), kinds, list(names.notes), heads=frozenset(heads))
    source.canonical = {
        feature: names.canonical(feature) for feature in places if names.canonical(feature) in names.known
    }
    for feature in heads:
        classes = known[feature].shape[-1]
        source.notes.append(
            f"{feature}: {classes} classes are compared some tokens at a time, and the logits not kept"
        )
    source.ran = _depth(names, places, source.features.stop_early) if places else "not at all"  # type: ignore[union-attr]
    return source


def _no_own_loss(feature: Feature, inputs: Inputs, model: nn.Module, who: str) -> str | None:
    """Why a model computes no loss of its own, where that is what was asked for."""
    if feature[:2] != OWN_LOSS or "labels" in inputs:
        return None
    if who.startswith("teacher"):
        return f"{feature}: only a student is given labels to compute a loss from"
    takes = "labels" in forward_parameters(model)[0]
    why = "the batch has no 'labels'" if takes else f"the forward of {type(model).__name__} takes no 'labels'"
    return f"{feature} is what the {who} computes from labels, and {why}"


def _probe(
    model: nn.Module,
    unclear: Mapping[Feature, Location],
    inputs: dict[str, Any],
    asked: Mapping[Feature, list[Entry]],
    problems: list[tuple[int, str]],
) -> dict[Feature, str]:
    kinds: dict[Feature, str] = {}
    for feature, place in unclear.items():
        try:
            kinds |= probe_kinds(model, {feature: place}, first_rows(inputs))
        except (ConfigError, KeyError, IndexError, TypeError) as error:
            problems.append((asked[feature][0].index, f"{feature}: {error}"))
    return kinds


def _adapted(
    model: nn.Module, inputs: dict[str, Any], asked: Mapping[Feature, list[Entry]], who: str, adaptor: Any
) -> Source:
    with preserved(model):
        features = AdaptedOutput(model, adaptor, list(asked), inputs, who)
        kinds = {feature: kind_by_name(feature, tensor) for feature, tensor in features(inputs).items()}
    return Source(
        features, kinds, [f"the {who}'s output adaptor takes its whole output"], "whole, for its output adaptor"
    )


def _depth(names: Catalogue, places: Mapping[Feature, Location], stops_early: bool) -> str:
    """How deep a model runs when it stops after the last of `places`."""
    if not stops_early:
        return "whole"
    last = max(place.order for place in places.values())
    parts = []
    for stack in ("encoder_layer", "decoder_layer", "layer"):
        depth = names.depth(stack)
        orders = [names.known[Feature(f"{stack}{n}", "hidden_states")].location.order for n in range(1, depth + 1)]
        if depth:
            begun = sum(order <= last for order in orders)
            inside = next((n for n, order in enumerate(orders, 1) if order > last), depth)
            touched = any(
                known.location.order <= last for f, known in names.known.items() if f.layer == f"{stack}{inside}"
            )
            parts.append(f"{max(begun, inside if touched else begun)} of {depth} {stack.replace('_', ' ')}s")
    logits = names.known.get(Feature("output", "logits"))
    whole = logits is not None and logits.location.order <= last
    return ", ".join(parts) + (", and the head" if whole else "") if parts else "to the deepest mapped module"

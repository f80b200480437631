"""Which attention map is which: of what layer, and of an encoder, a decoder, or from the one to the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import ConfigError
from . import attention
from .capture import Location
from .inputs import shape_of
from .measure import Measures
from .trace import Trace, is_same

_CROSS = re.compile(r"cross|encoder_attn|encdec|enc_dec", re.IGNORECASE)
_TUPLES = {  # of a model's own output -> the stack and the prefix of their maps
    "attentions": ("layer", ""),
    "encoder_attentions": ("encoder_layer", ""),
    "decoder_attentions": ("decoder_layer", ""),
    "cross_attentions": ("decoder_layer", "cross_"),
}
_NOWHERE = Location.order


def named_attention(
    trace: Trace, measures: Measures, orders: Mapping[str, Sequence[int]], model: nn.Module, problems: list[str]
) -> Iterator[tuple[Feature, Location]]:
    """The features of attention and their places.

    Args:
        orders: when each hidden state of a stack is computed, the embedding first.
        problems: where it is written what a model hands out in place of maps.
    """
    named: set[tuple[str, str]] = set()
    mixed: list[str] = []
    for stack, times in orders.items():
        groups: dict[str, list[tuple[Location, Any]]] = {"": [], "cross_": []}
        for place, tensors in trace.attentions:
            belongs = _belongs(place, stack, times)
            if not belongs and len(orders) > 1:
                continue
            prefix = _prefix(place, measures)
            if prefix is not None:
                groups[prefix].append((place, tensors))
            elif belongs:
                mixed.append(place.path)
        for prefix, every in groups.items():
            own = [call for call in every if _belongs(call[0], stack, times)]
            # Stages of several blocks have their blocks numbered, also those before the first state that comes out.
            group = own if _one_each(times, [place for place, _ in own]) else every
            for layer, (place, tensors) in _layers(stack, times, [place for place, _ in group], group):
                named.add((stack, prefix))
                for output in attention.STATES + attention.MAPS:
                    if output in tensors:
                        yield Feature(layer, prefix + output), replace(place, item=output)
    for key, (stack, prefix) in _TUPLES.items():
        stack = stack if stack in orders else next(iter(orders), "")
        maps = trace.fields.get(key)
        if stack and (stack, prefix) not in named and isinstance(maps, (tuple, list)):
            for feature, place in _handed_out(trace, measures, key, stack, prefix, orders[stack], model, problems):
                named.add((stack, prefix))
                yield feature, place
    if mixed and ("decoder_layer", "") not in named:
        problems.append(f"the map of {mixed[0]} is over both stacks at once, which has no name")


def _belongs(place: Location, stack: str, times: Sequence[int]) -> bool:
    """Whether a call of attention is one of a stack's layers: it comes between its embedding and its last state."""
    if _NOWHERE not in times and list(times) == sorted(times):
        return times[0] < place.order < times[-1]
    return stack == "layer" or ("decoder" in place.path) == (stack == "decoder_layer")


def _one_each(times: Sequence[int], places: Sequence[Location]) -> bool:
    """Whether no layer has more than one of these calls."""
    numbers = [sum(time < place.order for time in times) for place in places]
    return len(set(numbers)) == len(numbers)


def _prefix(place: Location, measures: Measures) -> str | None:
    """Empty for attention of a stack to itself, `cross_` for that to another; None for both at once."""
    grown = measures.grown(replace(place, item="attention"))
    by_name = "cross_" if _CROSS.search(place.path) else ""
    if measures.images or grown is None or not any(grown[2:]):  # keys of a picture may be fewer than its queries
        return by_name
    queries, keys = grown[2:]
    if queries == keys:  # two stacks of one input change alike
        return "" if measures.by and measures.decoder_by else by_name
    if measures.by and measures.decoder_by and keys == measures.by + measures.decoder_by:
        return None
    return "cross_"


def _layers(
    stack: str, times: Sequence[int], places: Sequence[Location], group: Sequence[Any]
) -> Iterator[tuple[str, Any]]:
    """The layer of each of a group of calls; `block` and its number where layers have several, or not all have one."""
    ordered = _NOWHERE not in times and list(times) == sorted(times)
    numbers = [sum(time < place.order for time in times) for place in places] if ordered else []
    if ordered and len(set(numbers)) == len(numbers):
        yield from ((f"{stack}{number}", one) for number, one in zip(numbers, group, strict=True))
    elif len(group) == len(times) - 1:
        yield from ((f"{stack}{number}", one) for number, one in enumerate(group, start=1))
    if stack == "layer" and len(group) != len(times) - 1:
        yield from ((f"block{number}", one) for number, one in enumerate(group, start=1))


def _handed_out(
    trace: Trace,
    measures: Measures,
    key: str,
    stack: str,
    prefix: str,
    times: Sequence[int],
    model: nn.Module,
    problems: list[str],
) -> Iterator[tuple[Feature, Location]]:
    """The maps of a model outside the interface, taken where they enter their dropout module, or as they come out."""
    maps = trace.fields[key]
    layer = stack if len(maps) == len(times) - 1 else "block"
    if layer == "block" and stack != "layer":
        problems.append(f"{key}: {len(maps)} maps for {len(times) - 1} layers have no names")
        return
    for number, tensor in enumerate(maps, start=1):
        field = Location("field", item=f"{key}[{number - 1}]")
        if not isinstance(tensor, Tensor):
            continue
        if not _is_map(measures, field, prefix):
            problem = f"{key} of shape {shape_of(tensor)} are no maps of queries and keys"
            if problem not in problems:
                problems.append(problem)
            continue
        yield Feature(f"{layer}{number}", f"{prefix}attention"), _before_dropout(trace, tensor, model) or field


def _is_map(measures: Measures, place: Location, prefix: str) -> bool:
    """Whether a tensor has queries and keys: those of one stack change by the same number, but for a picture's."""
    try:
        kind, grown = measures.kind(place, "attention"), measures.grown(place)
    except ConfigError:
        return False
    if measures.images or grown is None:  # a picture's keys may be fewer than its queries, or in windows
        return len(measures.shape(place)) >= 4
    return kind == "attention" and (bool(prefix) or grown[2] == grown[3])


def _before_dropout(trace: Trace, tensor: Tensor, model: nn.Module) -> Location | None:
    """Where a map enters the dropout module that gives it out."""
    for place, value in trace.outputs:
        in_place = is_same(value, tensor) or (not tensor.is_meta and value.data_ptr() == tensor.data_ptr())
        if in_place and "Dropout" in type(model.get_submodule(place.path)).__name__:
            return Location(
                "input", place.path, 0, place.call, place.order, tensor.shape[1] if value.dim() == 3 else 0
            )
    return None

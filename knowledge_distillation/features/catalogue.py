"""The catalogue: every name a model offers, and where in a forward pass it lives.

Nothing is known of model families here. One traced pass over a few rows shows which module holds each of the model's
own `hidden_states` and `attentions`, in the mode (training or not) in which the features will be taken, so a name is
that tensor by construction: `layer4.hidden_states` is `hidden_states[4]`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import nearest
from . import attention
from .capture import Location, accepted_flags
from .kinds import kind_by_rank
from .preserve import preserved

LARGE_VOCABULARY = 8192
_ATTENTION_OUTPUTS = (*attention.STATES, *attention.MAPS)
_CROSS = re.compile(r"cross|encoder_attn|encdec|enc_dec", re.IGNORECASE)
_MODULE_OUTPUT = re.compile(r"(output|input)(?:\[(\w+)\])?")
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)  # a layer each, in a model that does not say what its layers are
_STACKS = {
    "layer": "hidden_states",
    "encoder_layer": "encoder_hidden_states",
    "decoder_layer": "decoder_hidden_states",
}
_LAYER = re.compile(r"((?:encoder_|decoder_)?layer|block)(-?\d+)")


@dataclass(frozen=True)
class Offer:
    """One feature a model offers: its location, its kind, its shape on the traced rows.

    `head` is the linear module it comes from, of features with `LARGE_VOCABULARY` classes or more that come from one.
    """

    location: Location
    kind: str
    shape: tuple[int, ...]
    head: Location | None = None


@dataclass
class Catalogue:
    """All names of one model.

    `notes` says where the model offers less than others, and why; `orders` when each module last gave out a tensor.
    """

    model_type: str
    offers: dict[Feature, Offer] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    orders: dict[str, int] = field(default_factory=dict)

    def depth(self, stack: str = "layer") -> int:
        """The number of layers of a stack (`layer`, `encoder_layer`, `decoder_layer`, `block`)."""
        matches = (_LAYER.fullmatch(feature.layer) for feature in self.offers)
        return max((int(match[2]) for match in matches if match and match[1] == stack), default=0)

    def canonical(self, feature: Feature) -> Feature:
        """`bert_layer4` and `layer4` are one layer; `layer-1` counts from the end."""
        prefix = self.model_type.replace("-", "_") + "_"
        layer = feature.layer.removeprefix(prefix).removeprefix(f"{self.model_type}_")
        match = _LAYER.fullmatch(layer)
        if match and int(match[2]) < 0:
            layer = f"{match[1]}{self.depth(match[1]) + 1 + int(match[2])}"
        return Feature(layer, feature.output)

    def find(self, feature: Feature) -> Offer | None:
        """Where `feature` lives; None where the model has no such name. A module path is a layer as well."""
        offer = self.offers.get(self.canonical(feature))
        module = _MODULE_OUTPUT.fullmatch(feature.output)
        if offer or not module or feature.layer not in self.modules:
            return offer
        item = int(module[2]) if module[2] and module[2].isdigit() else module[2]
        order = self.orders.get(feature.layer, Location.order)
        return Offer(Location(module[1], feature.layer, item, order=order), "", ())

    def explain(self, feature: Feature, owner: str) -> str:
        """Why `feature` was not found, and the nearest name that would be."""
        prefix = self.model_type.replace("-", "_") + "_"
        prefix = prefix if feature.layer.startswith(prefix) else ""
        match = _LAYER.fullmatch(feature.layer.removeprefix(prefix))
        depth = self.depth(match[1]) if match else 0
        if match and depth and not 1 <= int(self.canonical(feature).layer.removeprefix(match[1])) <= depth:
            number = max(1, depth) if int(match[2]) > 0 else 1
            close = Feature(f"{prefix}{match[1]}{number}", feature.output)
            hint = f" Nearest: {close}." if self.find(close) else ""
            return f"{feature}: the {owner} has {depth} layers.{hint}"
        outputs = [name.output for name in self.offers if name.layer == self.canonical(feature).layer]
        if outputs:
            near = nearest(feature.output, outputs)
            notes = f" ({'; '.join(self.notes)})" if feature.output in _ATTENTION_OUTPUTS and self.notes else ""
            return f"{feature}: this layer of the {owner} offers {', '.join(outputs)}.{near}{notes}"
        names = [str(Feature(prefix + name.layer, name.output)) for name in self.offers]
        paths = [f"{path}.output" for path in self.modules]
        near = nearest(str(feature), names) or nearest(str(feature), paths)
        return f"{feature}: the {owner} has no such feature.{near}"


def catalogue(model: nn.Module, inputs: Mapping[str, Any]) -> Catalogue:
    """Trace one pass of `model` over `inputs` (a few rows are enough) and name what it holds.

    The pass runs without gradient in the model's present mode; buffers and random state are put back.
    """
    config = getattr(model, "config", None)
    names = Catalogue(getattr(config, "model_type", ""), modules=frozenset(path for path, _ in model.named_modules()))
    with preserved(model):
        trace = _trace(model, inputs)
    if not trace.interface and any(getattr(trace.output, f"{side}attentions", None) for side in ("", "encoder_")):
        names.notes.append(
            "attention does not go through transformers' attention interface, it runs as the model has it"
        )
    names.orders = {place.path: place.order for place, _ in trace.outputs}
    stacks = _stacks(trace.output)
    for stack, states in stacks.items():
        _name_hidden_states(names, trace, stack, states)
    if not stacks and not names.model_type:
        _name_plain_layers(names, trace, model)
    _name_attention(names, trace, stacks)
    _name_fields(names, trace, model, inputs)
    return names


# --- tracing -----------------------------------------------------------------------------------------------------


@dataclass
class _Trace:
    """What one pass shows: its output, and every tensor that a module is given or gives out, in order."""

    output: Any
    interface: bool
    dropouts: frozenset[str]
    outputs: list[tuple[Location, Tensor]]
    inputs: list[tuple[Location, Tensor]]
    attentions: list[tuple[Location, Mapping[str, Tensor]]]


def _trace(model: nn.Module, inputs: Mapping[str, Any]) -> _Trace:
    paths = {module: path for path, module in model.named_modules()}
    dropouts = frozenset(path for module, path in paths.items() if "Dropout" in type(module).__name__)
    trace = _Trace(None, attention.offers_interface(model), dropouts, [], [], [])
    calls: Counter[tuple[str, str]] = Counter()
    clock = itertools.count()

    def place_of(source: str, module: nn.Module) -> Location:
        path = paths[module]
        calls[path, source] += 1
        return Location(source, path, None, calls[path, source] - 1, next(clock))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = place_of("input", module)
        arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        trace.inputs += [(replace(place, item=k), v) for k, v in arguments.items() if isinstance(v, Tensor)]

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        place = place_of("output", module)
        items = enumerate(output) if isinstance(output, tuple) else [(None, output)]
        trace.outputs += [(replace(place, item=k), v) for k, v in items if isinstance(v, Tensor)]

    def attend(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        trace.attentions.append((place_of("attention", module), dict(tensors)))

    with ExitStack() as stack:
        stack.callback(attention.switch_on(model))
        stack.enter_context(attention.observe(frozenset(attention.MAPS), attend))
        for module, path in paths.items():
            if path:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after).remove)
        flags = accepted_flags(model)
        trace.output = model(**inputs, **flags | {name: True for name in flags if name.startswith("output_")})
    return trace


def _stacks(output: Any) -> dict[str, Sequence[Tensor]]:
    """Name of a stack of layers -> its hidden states, the embedding first."""
    present = {stack: getattr(output, name, None) for stack, name in _STACKS.items()}
    return {stack: states for stack, states in present.items() if isinstance(states, tuple) and states}


def _name_hidden_states(names: Catalogue, trace: _Trace, stack: str, states: Sequence[Tensor]) -> None:
    for number, tensor in enumerate(states):
        place = _holder(trace, tensor) or Location("field", item=f"{_STACKS[stack]}[{number}]")
        offer = Offer(place, kind_by_rank(tensor), tuple(tensor.shape))
        if number:
            names.offers[Feature(f"{stack}{number}", "hidden_states")] = offer
        else:
            names.offers[Feature(stack.replace("layer", "embedding_layer"), "embedding")] = offer


def _name_plain_layers(names: Catalogue, trace: _Trace, model: nn.Module) -> None:
    """The layers of a model that says none: its linear maps and convolutions, numbered each time one of them runs."""
    modules = dict(model.named_modules())
    runs = [(place, value) for place, value in trace.outputs if isinstance(modules[place.path], _WEIGHTED)]
    for number, (place, value) in enumerate(runs, start=1):
        names.offers[Feature(f"layer{number}", "hidden_states")] = Offer(place, "", tuple(value.shape))


def _holder(trace: _Trace, tensor: Tensor) -> Location | None:
    """The last module that gives out `tensor`, else the first that is given it."""
    same = [place for place, value in trace.outputs if _is_same(value, tensor)]
    inputs = [place for place, value in trace.inputs if _is_same(value, tensor)]
    return same[-1] if same else inputs[0] if inputs else None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.dtype == other.dtype


def _name_attention(names: Catalogue, trace: _Trace, stacks: Mapping[str, Sequence[Tensor]]) -> None:
    calls = trace.attentions if trace.interface and trace.attentions else _dropped_maps(trace)
    cross = [bool(_CROSS.search(place.path)) for place, _ in calls]
    for stack, states in stacks.items():
        mine = [
            (call, is_cross)
            for call, is_cross in zip(calls, cross, strict=True)
            if stack == "layer" or ("decoder" in call[0].path) == (stack == "decoder_layer")
        ]
        for prefix, group in (("", [c for c, x in mine if not x]), ("cross_", [c for c, x in mine if x])):
            layer = stack if len(group) == len(states) - 1 else "block"
            if layer == "block" and stack != "layer":
                continue
            for number, (place, tensors) in enumerate(group, start=1):
                _add_attention(names, f"{layer}{number}", prefix, place, tensors)


def _add_attention(names: Catalogue, layer: str, prefix: str, place: Location, tensors: Mapping[str, Tensor]) -> None:
    for output in _ATTENTION_OUTPUTS:
        if output in tensors:
            where = replace(place, item=output) if place.source == "attention" else place
            kind = "attention" if output in attention.MAPS else "heads"
            names.offers[Feature(layer, prefix + output)] = Offer(where, kind, tuple(tensors[output].shape))


def _dropped_maps(trace: _Trace) -> list[tuple[Location, dict[str, Tensor]]]:
    """For a model outside the interface: its attention maps, taken where they enter their dropout module."""
    maps = []
    for key in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        for number, tensor in enumerate(getattr(trace.output, key, None) or ()):
            heads = tensor.shape[1] if tensor.dim() == 4 else 0
            place = next((p for p, value in trace.outputs if value.data_ptr() == tensor.data_ptr()), None)
            if place and place.path in trace.dropouts:
                flat = next(value for p, value in trace.outputs if p is place).dim() == 3
                place = Location("input", place.path, 0, place.call, place.order, heads if flat else 0)
            else:
                place = Location("field", item=f"{key}[{number}]")
            maps.append((place, {"attention": tensor}))
    return maps


def _name_fields(names: Catalogue, trace: _Trace, model: nn.Module, inputs: Mapping[str, Any]) -> None:
    lengthy = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim() == 2]
    output = trace.output
    if isinstance(output, Tensor):
        output = {"logits": output}
    elif isinstance(output, (tuple, list)):
        output = dict(enumerate(output))
    for key, value in output.items() if isinstance(output, Mapping) else ():
        if isinstance(value, Tensor) and (value.dim() or key == "loss"):
            place = _holder(trace, value) or Location("field", item=str(key))
            grows = value.dim() == 2 and any(value.shape in (t.shape, (t.numel(), value.shape[1])) for t in lengthy)
            kind = "" if grows else kind_by_rank(value)  # "": seen from two lengths, when it is asked for
            head = _head(trace, model, value) if kind == "tokens" else None
            names.offers[Feature("output", str(key))] = Offer(place, kind, tuple(value.shape), head)


def _head(trace: _Trace, model: nn.Module, logits: Tensor) -> Location | None:
    """The plain linear module whose product these logits are, where they are of many classes."""
    holders = [place for place, value in trace.outputs if _is_same(value, logits)]
    place = next((place for place in holders if type(model.get_submodule(place.path)) is nn.Linear), None)
    if place is None or logits.shape[-1] < LARGE_VOCABULARY:
        return None
    head = model.get_submodule(place.path)
    hidden = next(value for p, value in trace.inputs if (p.path, p.call) == (place.path, place.call))
    product = nn.functional.linear(hidden, head.weight, head.bias)  # type: ignore[arg-type]
    same = torch.allclose(product, logits, rtol=1e-2, atol=1e-2)  # not where it was changed in place
    return replace(place, source="head") if same else None

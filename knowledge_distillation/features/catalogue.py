"""The catalogue: every name a model offers, and where in a forward pass it lives.

Nothing is known of model families here. One traced pass over a few rows shows which module holds each of the model's
own `hidden_states` and `attentions`, in the mode (training or not) in which the features will be taken, so a name is
that tensor by construction: `layer4.hidden_states` is `hidden_states[4]`. Kinds are measured by passes of other sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..config.pooling import SENTENCE, Pooling, pooling_in
from ..errors import ConfigError, nearest
from . import attention
from .attention_names import named_attention
from .capture import Location
from .kinds import declared_kind
from .measure import Measures, measure, shows_attention
from .pooling import pooling_of
from .signature import inner_model
from .trace import EAGER, WITHOUT, Trace, is_same

LARGE_VOCABULARY = 8192
_ATTENTION_OUTPUTS = tuple(
    f"{prefix}{name}" for prefix in ("", "cross_") for name in attention.STATES + attention.MAPS
)
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
    `problem` says why it has no kind: it is no tensor, or one that no mask fits.
    """

    location: Location
    kind: str
    shape: tuple[int, ...]
    head: Location | None = None
    problem: str = ""


@dataclass
class Catalogue:
    """All names of one model.

    `notes` says where the model offers less than others, and why; `orders` when each module last gave out a tensor;
    `inside` what the paths of a wrapped model begin with; `no_attention` why attention is offered nowhere; `pooling`
    how the model's own sentence embeddings are pooled, and what says so, or the error that it cannot be told.
    """

    model_type: str
    measures: Measures
    offers: dict[Feature, Offer] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    orders: dict[str, int] = field(default_factory=dict)
    inside: str = ""
    no_attention: str = ""
    pooling: tuple[Pooling, str] | ConfigError = (Pooling(), "")

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
        output = feature.output
        if (place := self._embedding(feature)) and place.location.pooling:
            output = f"{SENTENCE}[{place.location.pooling}]"
        return Feature(layer, output)

    def find(self, feature: Feature) -> Offer | None:
        """Where `feature` lives; None where the model has no such name. A module path is a layer as well."""
        offer = self.offers.get(self.canonical(feature)) or self._embedding(feature)
        module = _MODULE_OUTPUT.fullmatch(feature.output)
        path = feature.layer if feature.layer in self.modules else f"{self.inside}{feature.layer}"
        if offer or not module or path not in self.modules:
            return offer
        item = int(module[2]) if module[2] and module[2].isdigit() else module[2]
        return self.offer(Location(module[1], path, item, order=self.orders.get(path, Location.order)))

    def last_states(self) -> Feature | None:
        """The hidden states that come out at the end: of the encoder, where there is a decoder as well."""
        names = [
            *(Feature("output", name) for name in ("encoder_last_hidden_state", "last_hidden_state")),
            *(Feature(f"{stack}{self.depth(stack)}", "hidden_states") for stack in ("encoder_layer", "layer")),
        ]
        return next((name for name in names if name in self.offers and self.offers[name].kind == "tokens"), None)

    def said_of(self, feature: Feature) -> str:
        """What a sentence embedding is made of, in words."""
        offer, states = self._embedding(feature), self.last_states()
        assert offer is not None and offer.location.pooling is not None
        how, asked = offer.location.pooling, pooling_in(feature.output)
        told = asked is not None and asked.mode is not None and asked.normalize is not None
        why = "" if told or isinstance(self.pooling, ConfigError) else f", {self.pooling[1]}"
        words = {"mean": "the mean", "weighted_mean": "the mean by place", "cls": "the first", "last": "the last"}
        length = "of length 1" if how.normalize else "not normalised"
        return f"{feature}: {words[how.mode]} of the tokens of {states}, {length}{why}"

    def _embedding(self, feature: Feature) -> Offer | None:
        """The sentence embedding of this name, unless the model gives out one of its own."""
        plain = Feature(feature.layer, feature.output)
        states = self.last_states()
        if feature.layer != "output" or states is None or plain in self.offers:
            return None
        place, hidden = self.offers[states].location, self.offers[states].shape
        shape = (hidden[0], *hidden[2:])
        try:
            asked = pooling_in(feature.output)
            if asked is None:
                return None
            if isinstance(self.pooling, ConfigError) and asked.mode is None:
                raise self.pooling
        except ConfigError as error:
            return Offer(place, "", shape, problem=str(error))
        own = Pooling() if isinstance(self.pooling, ConfigError) else self.pooling[0]
        return Offer(replace(place, pooling=asked.of(own)), "vector", shape)

    def offer(self, place: Location, declared: str = "", head: Location | None = None) -> Offer:
        """What stands at a place, with its kind as it was measured."""
        shape: tuple[int, ...] = ()
        try:
            shape = tuple(self.measures.shape(place))
            return Offer(place, self.measures.kind(place, declared), shape, head)
        except ConfigError as error:
            return Offer(place, "", shape, problem=str(error))

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
            before = Feature(match[1].replace("layer", "embedding_layer"), "embedding")
            first = f" They count from 1; before the first stands {before}." if match[2] == "0" else ""
            return f"{feature}: the {owner} has {depth} layer{'s' * (depth != 1)}.{first or hint}"
        outputs = [name.output for name in self.offers if name.layer == self.canonical(feature).layer]
        if outputs and self._embedding(feature._replace(output=SENTENCE)):
            outputs.append(SENTENCE)
        if outputs:
            near = nearest(feature.output, outputs)
            why = "; ".join([*self.notes, *filter(None, [self.no_attention])])
            notes = f" ({why})" if feature.output in _ATTENTION_OUTPUTS and why else ""
            return f"{feature}: this layer of the {owner} offers {', '.join(outputs)}.{near}{notes}"
        names = [str(Feature(prefix + name.layer, name.output)) for name in self.offers]
        paths = [f"{path}.output" for path in self.modules]
        near = nearest(str(feature), names) or nearest(str(feature), paths)
        return f"{feature}: the {owner} has no such feature.{near}"


def catalogue(model: nn.Module, inputs: Mapping[str, Any]) -> Catalogue:
    """Trace a model over `inputs` (a few rows are enough) and name what it holds.

    Four passes without gradient, one of them in the model's present mode, or more where attention comes out otherwise
    than by transformers' interface. The random state, buffers and modules are put back, but for what the model itself
    changes of its modules at these inputs.
    """
    inner, inside = inner_model(model)
    trace, measures, way, said = measure(model, inputs)
    model_type = getattr(getattr(inner, "config", None), "model_type", "").rpartition(".")[2]  # of our own: bilstm
    names = Catalogue(model_type, measures, inside=inside)
    names.modules = frozenset(path for path, _ in model.named_modules())
    names.orders = trace.orders
    stacks = _stacks(trace.fields)
    for stack, states in stacks.items():
        _name_hidden_states(names, trace, stack, states)
    if not stacks and not names.model_type:
        _name_plain_layers(names, trace, model)
    _name_attention(names, trace, stacks, model, way, said)
    _name_fields(names, trace, model)
    try:
        names.pooling = pooling_of(model)
    except ConfigError as error:  # of consequence only where it is asked for
        names.pooling = error
    return names


def _stacks(fields: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    """Name of a stack of layers -> its hidden states, the embedding first."""
    present = {stack: fields.get(name) for stack, name in _STACKS.items()}
    return {
        stack: states
        for stack, states in present.items()
        if isinstance(states, tuple) and states and not any(isinstance(state, tuple) for state in states)
    }


def _name_hidden_states(names: Catalogue, trace: Trace, stack: str, states: Sequence[Tensor]) -> None:
    for number, tensor in enumerate(states):
        # The embedding as the layers get it: with a picture in the batch it may be another than without.
        place = holder(trace, tensor, given_first=not number)
        offer = names.offer(place or Location("field", item=f"{_STACKS[stack]}[{number}]"), "tokens")
        names.offers[Feature(f"{stack}{number}", "hidden_states") if number else _embedding(stack)] = offer


def _name_plain_layers(names: Catalogue, trace: Trace, model: nn.Module) -> None:
    """The layers of a model that says none: its linear maps and convolutions, numbered each time one of them runs."""
    modules = dict(model.named_modules())
    runs = [place for place, _ in trace.outputs if isinstance(modules[place.path], _WEIGHTED)]
    for number, place in enumerate(runs, start=1):
        names.offers[Feature(f"layer{number}", "hidden_states")] = names.offer(place)


def holder(trace: Trace, tensor: Tensor, given_first: bool = False) -> Location | None:
    """The last module that gives out `tensor`, else the first that is given it; or the other way round."""
    same = [place for place, value in trace.outputs if is_same(value, tensor)][-1:]
    inputs = [place for place, value in trace.inputs if is_same(value, tensor)][:1]
    return next(iter(inputs + same if given_first else same + inputs), None)


def _name_attention(
    names: Catalogue, trace: Trace, stacks: Mapping[str, Sequence[Tensor]], model: nn.Module, way: str, said: str
) -> None:
    """Name the maps, and say where there are none, or others than one expects."""
    orders = {
        stack: [
            names.offers[Feature(f"{stack}{n}", "hidden_states") if n else _embedding(stack)].location.order
            for n in range(len(states))
        ]
        for stack, states in stacks.items()
    }
    problems: list[str] = []
    for feature, place in named_attention(trace, names.measures, orders, model, problems):
        offer = names.offer(replace(place, eager=way == EAGER), declared_kind(feature.output))
        if not offer.problem:
            names.offers.setdefault(feature, offer)
    offered = any(feature.output in _ATTENTION_OUTPUTS for feature in names.offers)
    names.notes += problems
    if way == EAGER and offered:
        names.notes.append(
            "where an attention map is mapped the whole model computes attention eagerly: any other way to its maps "
            "would change its outputs"
        )
    elif shows_attention(trace) and not trace.attentions:
        names.notes.append(
            "attention does not go through transformers' attention interface, it runs as the model has it"
        )
    if way == WITHOUT and said:
        names.notes.append(f"attention is not offered: {said}")
    elif not offered:
        names.no_attention = "no pass shows a map of queries and keys: this model has none, or hands none out"


def _embedding(stack: str) -> Feature:
    return Feature(stack.replace("layer", "embedding_layer"), "embedding")


def _name_fields(names: Catalogue, trace: Trace, model: nn.Module) -> None:
    for key, value in trace.fields.items():
        if isinstance(value, Tensor) and (value.dim() or key == "loss"):
            offer = names.offer(holder(trace, value) or Location("field", item=key), "tokens")
            head = _head(trace, model, value) if offer.kind == "tokens" else None
            names.offers[Feature("output", key)] = replace(offer, head=head)


def _head(trace: Trace, model: nn.Module, logits: Tensor) -> Location | None:
    """The plain linear module whose product these logits are, where they are of many classes."""
    holders = [place for place, value in trace.outputs if is_same(value, logits)]
    place = next((place for place in holders if type(model.get_submodule(place.path)) is nn.Linear), None)
    if place is None or logits.shape[-1] < LARGE_VOCABULARY:
        return None
    head = model.get_submodule(place.path)
    hidden = next(value for p, value in trace.inputs if (p.path, p.call) == (place.path, place.call))
    product = nn.functional.linear(hidden, head.weight, head.bias)  # type: ignore[arg-type]
    # Not where it was changed in place.
    same = product.is_meta or torch.allclose(product, logits, rtol=1e-2, atol=1e-2)
    return replace(place, source="head") if same else None

"""One traced pass: every tensor that a module is given or gives out, in order, and every call of attention."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import attention
from .capture import Location
from .signature import accepted_flags

# How a model's attention maps come out of a pass: of transformers' interface or as the model hands them out, of eager
# attention throughout, or not at all.
BY_INTERFACE, EAGER, WITHOUT = "interface", "eager", "without"

Place = tuple[str, str, Any, int]  # source, path, item and call of a location
Shapes = dict[Place, "torch.Size | type"]  # of tensors; of anything else its type


@dataclass
class Trace:
    """What one pass shows. Tensors are kept where `keep` is set, and shapes in any case."""

    keep: bool = True
    output: Any = None
    outputs: list[tuple[Location, Tensor]] = field(default_factory=list)
    inputs: list[tuple[Location, Tensor]] = field(default_factory=list)
    attentions: list[tuple[Location, Mapping[str, Tensor]]] = field(default_factory=list)
    shapes: Shapes = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)  # when each module last gave out a tensor

    @property
    def fields(self) -> dict[str, Any]:
        """The model's own output by name: by number where it is a tuple, `logits` where it is a tensor."""
        if isinstance(self.output, Tensor):
            return {"logits": self.output}
        if isinstance(self.output, Mapping):
            return {str(key): value for key, value in self.output.items()}
        if isinstance(self.output, (tuple, list)):
            return {str(key): value for key, value in enumerate(self.output)}
        return {}

    def note(self, place: Location, value: Any) -> None:
        self.shapes[key_of(place)] = value.shape if isinstance(value, Tensor) else type(value)

    def note_items(self, place: Location, values: Any) -> list[tuple[Location, Tensor]]:
        """Note what a module gives out, whole and item by item; returns the tensors, but not those by name."""
        self.note(place, values)
        items = (
            dict(enumerate(values.values() if isinstance(values, Mapping) else values)) if _has_items(values) else {}
        )
        for item, value in {**items, **(values if isinstance(values, Mapping) else {})}.items():
            self.note(replace(place, item=item), value)
        found = items if isinstance(values, tuple) else {None: values}
        return [(replace(place, item=item), value) for item, value in found.items() if isinstance(value, Tensor)]


def traced(model: nn.Module, inputs: Mapping[str, Any], way: str, keep: bool = True) -> Trace:
    """One pass, in the model's present mode. A pass that changes the model's own modules is run once more."""
    before = list(model.modules())
    trace = _traced(model, inputs, way, keep)
    return trace if before == list(model.modules()) else _traced(model, inputs, way, keep)


def _traced(model: nn.Module, inputs: Mapping[str, Any], way: str, keep: bool) -> Trace:
    paths = {module: path for path, module in model.named_modules()}
    trace = Trace(keep)
    calls: Counter[tuple[str, str]] = Counter()
    clock = itertools.count()

    def place_of(source: str, module: nn.Module) -> Location:
        path = paths[module]
        calls[path, source] += 1
        return Location(source, path, None, calls[path, source] - 1, next(clock))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = place_of("input", module)
        arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        trace.note(place, args[0] if args else None)  # `path.input` is the first argument
        for item, value in arguments.items():
            trace.note(replace(place, item=item), value)
            if keep and isinstance(value, Tensor):
                trace.inputs.append((replace(place, item=item), value))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        place = place_of("output", module)
        tensors = trace.note_items(place, output)
        if tensors:
            trace.orders[place.path] = place.order
        trace.outputs += tensors if keep else []

    def attend(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        place = place_of("attention", module)
        trace.note_items(place, tensors)
        trace.attentions.append((place, dict(tensors) if keep else {}))

    with ExitStack() as stack:
        stack.callback(_switched(model, way))
        if way == BY_INTERFACE:
            stack.enter_context(attention.observe(frozenset(attention.MAPS), attend))
        for module, path in paths.items():
            if path:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after).remove)
        trace.output = model(**inputs, **flags(model, way))
    for key, value in trace.fields.items():
        trace.shapes |= dict(_shapes_of_field(key, value))
    return trace


def flags(model: nn.Module, way: str) -> dict[str, Any]:
    """With which flags a model shows all that it has."""
    accepted = accepted_flags(model)
    wanted = {"output_hidden_states": True, "output_attentions": way != WITHOUT}
    return accepted | {key: value for key, value in wanted.items() if key in accepted}


def key_of(place: Location) -> Place:
    return place.source, place.path, place.item, place.call


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one place in memory, in one form; those of the meta device have none, but storages."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta or other.is_meta:
        return one is other or one.untyped_storage()._cdata == other.untyped_storage()._cdata
    return one.data_ptr() == other.data_ptr()


def _switched(model: nn.Module, way: str) -> Any:
    if way == WITHOUT:
        return lambda: None
    return attention.switch_on(model, attention.EAGER if way == EAGER else attention.IMPLEMENTATION)


def _shapes_of_field(key: str, value: Any) -> Iterator[tuple[Place, Any]]:
    yield ("field", "", key, 0), value.shape if isinstance(value, Tensor) else type(value)
    for number, item in enumerate(value) if isinstance(value, (tuple, list)) else ():
        if isinstance(item, Tensor):
            yield ("field", "", f"{key}[{number}]", 0), item.shape


def _has_items(values: Any) -> bool:
    return isinstance(values, (tuple, list, Mapping))

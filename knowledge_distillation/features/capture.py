"""Take named tensors out of one forward pass, and nothing else: hooks where a tensor is wanted, none elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.pooling import Pooling
from ..errors import DistillationError
from . import attention
from .deferred import HeadLogits
from .pooling import pooled
from .signature import accepted_flags


@dataclass(frozen=True)
class Location:
    """Where a tensor appears during a forward pass.

    Args:
        source: `output` or `input` of a module, `attention` (a tensor of an attention call), `head` (the logits of a
            linear module, as `HeadLogits`), or `field` (of the model's own output, which then has to be complete).
        path: the module's path; empty for a field.
        item: which item of a tuple of outputs, which argument (position or name), which field, or which tensor of an
            attention call; None where the output is the tensor.
        call: which call of the module, for modules that run more than once in a pass.
        order: place in the sequence of the pass; a location with a smaller one is computed earlier.
        heads: set where a module holds a map as (batch * heads, length, keys) and it has to be unfolded.
        eager: the whole model has to compute its attention eagerly for it.
        pooling: how the hidden states that stand there become one vector for each text; None leaves them as they are.
    """

    source: str
    path: str = ""
    item: int | str | None = None
    call: int = 0
    order: int = 1 << 62
    heads: int = 0
    eager: bool = False
    pooling: Pooling | None = None


class _Stop(Exception):
    """Raised out of a forward pass when all that was wanted has been taken."""


class Capture:
    """`capture(inputs)` runs the model and returns the tensor of each wanted key.

    Args:
        model: the module to run; hooks stay on it until `close()`.
        wanted: key -> Location.
        stop_early: leave the pass as soon as the last wanted tensor is there.
        deferred: keys of attention maps that may be given as an `AttentionMap`; large ones then are.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Mapping[Any, Location],
        stop_early: bool = True,
        deferred: Collection[Any] = (),
    ) -> None:
        self.model, self.flags = model, accepted_flags(model)
        self._fields = {key: str(place.item) for key, place in wanted.items() if place.source == "field"}
        for name in ("hidden_states", "attentions"):  # makes the model fill the tuples that fields are taken from
            if any(f"{name}[" in item for item in self._fields.values()):
                self.flags[f"output_{name}"] = True
        self.stop_early = stop_early and not self._fields and not _recomputes(model)
        self._pooling = {key: place.pooling for key, place in wanted.items() if place.pooling is not None}
        self._hooked = {key: place for key, place in wanted.items() if place.source != "field"}
        self._values: dict[Any, Any] | None = None  # of the present pass
        self._calls: Counter[Hashable] = Counter()
        self._undo = ExitStack()
        # A model that hands out its own maps may have them built by the interface.
        self._maps = frozenset(attention.MAPS if self.flags.get("output_attentions") else ())
        if any(place.eager for place in wanted.values()):
            self._undo.callback(attention.switch_on(model, attention.EAGER))
        elif self._maps or any(place.source == "attention" for place in self._hooked.values()):
            self._undo.callback(attention.switch_on(model))
        for path, source in dict.fromkeys((place.path, place.source) for place in self._hooked.values()):
            places = {key: at for key, at in self._hooked.items() if (at.path, at.source) == (path, source)}
            self._undo.callback(self._hook(model.get_submodule(path), source, places, deferred))

    def __call__(self, inputs: Mapping[str, Any]) -> dict[Any, Tensor]:
        values, _ = self.run(inputs)
        return values

    def run(self, inputs: Mapping[str, Any]) -> tuple[dict[Any, Tensor], Any]:
        """The wanted tensors, and the model's output (None where the pass was left early)."""
        self._values, output = {}, None
        self._calls.clear()
        try:
            with attention.observe(self._maps, lambda module, tensors: None):
                output = self.model(**inputs, **self.flags)
        except _Stop:
            pass
        finally:
            values, self._values = self._values, None
        missing = self._hooked.keys() - values.keys()
        if missing:
            names = ", ".join(sorted(map(str, missing)))
            raise DistillationError(
                f"{names}: not computed in this pass, though it was when the names were found. A model that skips "
                "layers at random (layerdrop) has to keep the mapped ones"
            )
        values |= {key: _field(output, item) for key, item in self._fields.items()}
        for key, pooling in self._pooling.items():
            values[key] = pooled(values[key], inputs.get("attention_mask"), pooling)
        return values, output

    def close(self) -> None:
        """Remove every hook and put the model's attention implementation back."""
        self._undo.close()

    def _hook(
        self, module: nn.Module, source: str, places: Mapping[Any, Location], deferred: Collection[Any]
    ) -> Callable[[], None]:
        """Keep what stands at these places of a module, at each of its calls; returns what takes the hook off."""

        def take(module: nn.Module, values: Any) -> None:
            if self._values is None:  # a pass of somebody else, or a recomputation during backward
                return
            call = self._calls[module, source]
            self._calls[module, source] += 1
            for key, place in places.items():
                if place.call == call:
                    value = _value(module, values, place)
                    self._values[key] = value.unflatten(0, (-1, place.heads)) if place.heads else value
            # To leave before the head is to leave after the last layer: layers can be computed again during backward.
            stop = self.stop_early or (source == "head" and not self._fields)
            if stop and len(self._values) == len(self._hooked):
                raise _Stop

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(module, {**dict(enumerate(args)), **kwargs})

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            take(module, output)

        if source == "attention":
            names = frozenset(str(place.item) for place in places.values())
            whole = {place.item for key, place in places.items() if key not in deferred}
            return attention.tap(module, names, take, names - whole)
        if source == "output":
            return module.register_forward_hook(after).remove
        return module.register_forward_pre_hook(before, with_kwargs=True).remove


def _value(module: nn.Module, values: Any, place: Location) -> Any:
    """What stands at a place; `values` is a module's output, or its arguments or tensors by position and name."""
    if place.source == "head":
        return _head_logits(module, values[0] if 0 in values else values["input"])
    if place.source == "input":
        return values[place.item or 0]
    return values if place.item is None else values[place.item]


def _head_logits(head: Any, hidden: Tensor) -> HeadLogits:
    kind = hidden.device.type
    mixed = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    return HeadLogits(hidden, head.weight, head.bias, torch.get_autocast_dtype(kind) if mixed else hidden.dtype)


def _field(output: Any, item: str) -> Tensor:
    """A field of a model's output: `logits`, `hidden_states[3]`, or the position in a tuple."""
    name, _, position = item.partition("[")
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (Mapping, tuple, list)):
        value = output[name] if isinstance(output, Mapping) else output[int(name)]
    else:
        value = getattr(output, name)
    return value[int(position[:-1])] if position else value


def _recomputes(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on: a pass left early could not be recomputed."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

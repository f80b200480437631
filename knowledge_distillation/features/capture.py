"""Take named tensors out of one forward pass, and nothing else: hooks where a tensor is wanted, none elsewhere."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DistillationError
from . import attention
from .deferred import HeadLogits


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
    """

    source: str
    path: str = ""
    item: int | str | None = None
    call: int = 0
    order: int = 1 << 62
    heads: int = 0


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
        self._deferred = frozenset(deferred)
        self.fields = {key: place for key, place in wanted.items() if place.source == "field"}
        self.model, self.flags = model, accepted_flags(model) | self._field_flags()
        self.stop_early = stop_early and not self.fields and not _recomputes(model)
        self._pending = {key: place for key, place in wanted.items() if place.source != "field"}
        self._taken: dict[Any, Tensor] | None = None
        self._calls: Counter[Hashable] = Counter()
        self._undo: list[Callable[[], None]] = []
        self._install()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[Any, Tensor]:
        taken, _ = self.run(inputs)
        return taken

    def run(self, inputs: Mapping[str, Any]) -> tuple[dict[Any, Tensor], Any]:
        """The taken tensors, and the model's output (None where the pass was left early)."""
        self._taken, output = {}, None
        self._calls.clear()
        try:
            output = self.model(**inputs, **self.flags)
        except _Stop:
            pass
        finally:
            taken, self._taken = self._taken, None
        missing = self._pending.keys() - taken.keys()
        if missing:
            names = ", ".join(sorted(map(str, missing)))
            raise DistillationError(
                f"{names}: not computed in this pass, though it was when the names were found. A model that skips "
                "layers at random (layerdrop) has to keep the mapped ones"
            )
        for key, place in self.fields.items():
            taken[key] = pick_field(output, place.item)
        return taken, output

    def close(self) -> None:
        """Remove every hook and put the model's attention implementation back."""
        while self._undo:
            self._undo.pop()()

    def _field_flags(self) -> dict[str, bool]:
        """The `output_…` flags that make the model fill the tuples some fields are taken from."""
        items = [str(place.item) for place in self.fields.values()]
        names = ("hidden_states", "attentions")
        return {f"output_{name}": True for name in names if any(f"{name}[" in item for item in items)}

    def _install(self) -> None:
        modules = dict(self.model.named_modules())
        at: dict[tuple[str, str], list[tuple[Any, Location]]] = {}
        for key, place in self._pending.items():
            at.setdefault((place.path, place.source), []).append((key, place))
        if any(source == "attention" for _, source in at):
            self._undo.append(attention.use(self.model))  # type: ignore[arg-type]
        for (path, source), keys in at.items():
            module = modules[path]
            if source == "attention":
                take = self._attention_tap(keys)
                names = frozenset(str(place.item) for _, place in keys)
                whole = {place.item for key, place in keys if key not in self._deferred}
                attention.tap(module, names, take, names - whole)
                self._undo.append(partial(attention.untap, module, take))
            elif source == "head":
                handle = module.register_forward_pre_hook(self._head_hook(keys), with_kwargs=True)
                self._undo.append(handle.remove)
            elif source == "input":
                handle = module.register_forward_pre_hook(self._input_hook(keys), with_kwargs=True)
                self._undo.append(handle.remove)
            else:
                self._undo.append(module.register_forward_hook(self._output_hook(keys)).remove)

    def _attention_tap(self, keys: list[tuple[Any, Location]]) -> attention.Take:
        def take(module: nn.Module, tensors: Mapping[str, Any]) -> None:
            self._take(keys, (module, "attention"), lambda place: tensors[str(place.item)])

        return take

    def _input_hook(self, keys: list[tuple[Any, Location]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._take(keys, (module, "input"), lambda place: pick_argument(args, kwargs, place.item))

        return hook

    def _head_hook(self, keys: list[tuple[Any, Location]]) -> Callable[..., None]:
        def hook(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["input"]
            self._take(keys, (module, "head"), lambda place: _head_logits(module, hidden))
            if not self.fields and self._taken is not None and len(self._taken) == len(self._pending):
                raise _Stop  # after the last layer, so that layers can be computed again during backward

        return hook

    def _output_hook(self, keys: list[tuple[Any, Location]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._take(keys, (module, "output"), lambda place: pick_item(output, place.item))

        return hook

    def _take(self, keys: list[tuple[Any, Location]], counter: Hashable, pick: Callable[[Location], Any]) -> None:
        if self._taken is None:  # a pass of somebody else, or a recomputation during backward
            return
        call = self._calls[counter]
        self._calls[counter] += 1
        for key, place in keys:
            if place.call == call:
                tensor = pick(place)
                self._taken[key] = tensor.unflatten(0, (-1, place.heads)) if place.heads else tensor
        if self.stop_early and len(self._taken) == len(self._pending):
            raise _Stop


def _head_logits(head: nn.Linear, hidden: Tensor) -> HeadLogits:
    kind = hidden.device.type
    mixed = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    return HeadLogits(hidden, head.weight, head.bias, torch.get_autocast_dtype(kind) if mixed else hidden.dtype)


def pick_item(output: Any, item: Any) -> Any:
    """The tensor of a module's output: the output itself, or one item of a tuple or mapping."""
    return output if item is None else output[item]


def pick_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], item: Any) -> Any:
    return kwargs[item] if isinstance(item, str) else args[item or 0]


def pick_field(output: Any, item: Any) -> Tensor:
    """A field of a model's output: `logits`, `hidden_states[3]`, or the position in a tuple."""
    name, _, position = str(item).partition("[")
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        value = output[name]
    elif isinstance(output, (tuple, list)):
        value = output[int(name)]
    else:
        value = getattr(output, name)
    return value[int(position[:-1])] if position else value


def accepted_flags(model: nn.Module) -> dict[str, Any]:
    """The flags that keep a forward pass lean and its output whole, as far as the model takes them."""
    named, any_keyword = forward_parameters(model)
    lean = {"use_cache": False, "output_hidden_states": False, "output_attentions": False, "return_dict": True}
    takes_all = any_keyword and hasattr(model, "config")
    return {k: v for k, v in lean.items() if k in named or (takes_all and k != "use_cache")}


def forward_parameters(model: nn.Module) -> tuple[list[str], bool]:
    """The names of `forward`'s parameters in order, and whether it takes any other keyword."""
    function = getattr(model.forward, "__func__", model.forward)
    parameters = _parameters(function)[1 if function is not model.forward else 0 :]
    inner: Any = getattr(model, "get_base_model", None)
    if inner is not None and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return forward_parameters(inner())  # a wrapper that hands everything on
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def positional(model: nn.Module) -> list[str]:
    """The names of `forward`'s parameters that a tensor can be given for by its place: not switches, on or off."""
    parameters = _parameters(getattr(model.forward, "__func__", model.forward))
    switches = {p.name for p in parameters if isinstance(p.default, bool)}
    return [name for name in forward_parameters(model)[0] if name not in switches]


@lru_cache(maxsize=64)  # asked for at each batch
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def _recomputes(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on: a pass left early could not be recomputed."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

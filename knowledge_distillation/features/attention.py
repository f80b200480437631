"""An attention implementation for transformers that hands out the tensors of chosen attention modules.

Every module runs fused scaled-dot-product attention, as ever; only a module that is tapped for its map builds the map,
and a large one only where it cannot be deferred.
It plugs into transformers' public `AttentionInterface` in the place of "sdpa", and not under a name of its own: some
models choose their mask by the name of the implementation, in their own code, and know no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention_by_parts import attend
from .deferred import AttentionMap, Deferred, attention_scores, masked_scores

IMPLEMENTATION = "sdpa"
EAGER = "eager"  # for models outside the interface whose maps change their outputs under any other
MAPS = ("attention", "attention_scores")
STATES = ("query", "key", "value")
SMALL = 1 << 23  # values of a map up to which it is built, although it might be deferred

Take = Callable[[nn.Module, Mapping[str, Any]], None]


class Tap(NamedTuple):
    """`take` is called with the module and a mapping that holds what is `wanted`: tensors, or some as `Deferred`."""

    wanted: frozenset[str]
    take: Take
    deferred: frozenset[str] = frozenset()


_taps: WeakKeyDictionary[nn.Module, list[Tap]] = WeakKeyDictionary()
_observers: list[Tap] = []
# Each model that runs with this implementation: how many asked for it, and the own settings of its configurations.
_users: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[PreTrainedConfig, str | None]]]] = WeakKeyDictionary()
_modules: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # those of the users, with their number


def sdpa_with_maps(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it; the map is returned, and handed out, only where it is tapped.

    Args:
        query: (batch, heads, length, head width); `key` and `value` may have fewer heads (grouped queries).
        attention_mask: None, or boolean (True attends) or additive, broadcastable to (batch, heads, length, keys).
    """
    takers = [*_taps.get(module, ()), *_observers]
    small = query[..., 0].numel() * key.shape[2] <= SMALL
    wanted = frozenset().union(*(tap.wanted if small else tap.wanted - tap.deferred for tap in takers))
    softcap = kwargs.get("softcap")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    result: tuple[Tensor, Tensor | None]
    tensors: dict[str, Tensor | Deferred] = {"query": query, "key": key, "value": value}
    whole = softcap is not None or bool(wanted.intersection(MAPS))
    # In bf16 a processor is faster without the fused form.
    by_parts = query.device.type == "cpu" and query.dtype is torch.bfloat16 and dropout < 1
    if by_parts and not whole and position_bias is None and not torch.compiler.is_compiling():
        result = attend(query, key, value, attention_mask, causal, scaling, dropout), None
    elif whole:
        scores = attention_scores(query, key, scaling, position_bias, softcap)
        probabilities = torch.softmax(masked_scores(scores, attention_mask, causal), dim=-1, dtype=torch.float32)
        tensors |= {"attention_scores": scores, "attention": probabilities}
        dropped = nn.functional.dropout(probabilities.to(value.dtype), dropout, module.training)
        context = dropped @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        result = context.transpose(1, 2).contiguous(), probabilities
    else:
        result = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs
        )
    if not whole and any(tap.deferred for tap in takers):
        query, key = _as_multiplied(query), _as_multiplied(key)
        for name in MAPS:
            tensors[name] = AttentionMap(
                query, key, attention_mask, causal, scaling, position_bias, scores=name == "attention_scores"
            )
    for tap in takers:
        tap.take(module, tensors)
    return result


def _for_users(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What stands in the place of "sdpa": for the modules of all other models it is what it was."""
    function = sdpa_with_maps if module in _modules else sdpa_attention_forward
    return function(module, *args, **kwargs)


def is_faster(model: nn.Module) -> bool:
    """Whether a model that computes in bf16 where it is gains by this implementation, without any tap."""
    device = next((p.device.type for p in model.parameters()), "")
    if device != "cpu" or not offers_interface(model):
        return False
    return all(config._attn_implementation == IMPLEMENTATION for config in _configs(model))


def _as_multiplied(tensor: Tensor) -> Tensor:
    """In the type in which autocast multiplies it."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def tap(
    module: nn.Module, wanted: frozenset[str], take: Take, deferred: frozenset[str] = frozenset()
) -> Callable[[], None]:
    """Hand out the `wanted` tensors of one attention module at each of its calls, until what is returned is called.

    Args:
        deferred: maps among them that may be handed out as an `AttentionMap`, which they are where they are large.
    """
    new = Tap(wanted, take, deferred)
    _taps.setdefault(module, []).append(new)

    def untap() -> None:
        others = [tap for tap in _taps.pop(module) if tap is not new]
        if others:
            _taps[module] = others

    return untap


@contextmanager
def observe(wanted: frozenset[str], take: Take) -> Iterator[None]:
    """Within the context, hand out the `wanted` tensors of every attention module."""
    observer = Tap(wanted, take)
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def offers_interface(model: nn.Module) -> bool:
    """Whether the model, or a part of it, computes attention through transformers' interface, with dot products."""
    return any(map(_offers, model.modules()))


def _offers(part: nn.Module) -> bool:
    return isinstance(part, PreTrainedModel) and part._can_set_attn_implementation() and part._supports_sdpa


def _configs(model: nn.Module, everywhere: bool = False) -> list[PreTrainedConfig]:
    """The configurations of the parts of a model that offer the interface, or of all: each once."""
    found: dict[bool, dict[int, PreTrainedConfig]] = {True: {}, False: {}}

    def look(module: nn.Module, offers: bool | None) -> None:
        if isinstance(module, PreTrainedModel):
            offers = everywhere or _offers(module)
        config = getattr(module, "config", None)
        if offers is not None and isinstance(config, PreTrainedConfig):
            found[offers][id(config)] = config
        for child in module.children():
            look(child, offers)

    look(model, None)  # what is wrapped around a model may show its config
    return [config for key, config in found[True].items() if key not in found[False]]


def switch_on(model: nn.Module, implementation: str = IMPLEMENTATION) -> Callable[[], None]:
    """Switch the parts of a model that offer the interface to this implementation, or all of it to eager attention.

    Returns what puts the model's own settings back, once the last user is done.
    """
    if model not in _users:
        configs = _configs(model, everywhere=implementation == EAGER)
        if not configs:
            return lambda: None
        _users[model] = 0, [(config, config._attn_implementation) for config in configs]
    users, own = _users[model]
    _users[model] = users + 1, own
    for config, _ in own:
        # What transformers sets as well: the public setter would reach the parts that do not offer the interface.
        config._attn_implementation_internal = implementation
    modules = list(model.modules())
    for module in modules:
        _modules[module] = _modules.get(module, 0) + 1
    AttentionInterface.register(IMPLEMENTATION, _for_users)

    def restore() -> None:
        for module in modules:
            _modules[module] -= 1
            if not _modules[module]:
                del _modules[module]
        users, own = _users.pop(model)
        if users > 1:
            _users[model] = users - 1, own
        else:
            for config, setting in own:
                config._attn_implementation_internal = setting
        if not _users:
            AttentionInterface.register(IMPLEMENTATION, sdpa_attention_forward)

    return restore

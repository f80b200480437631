"""The repeated layers of models under torch.compile, one by one, so that hooks between them stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import attention

BACKEND = "inductor"


def compile_layers(models: Mapping[str, nn.Module], device: torch.device) -> tuple[list[str], Callable[[], None]]:
    """Compile the forward of every repeated layer into which nobody looks; say of each model how many these are.

    A hook on a layer itself sees its inputs and outputs as before. A layer with a hook or a tap inside stays as it is,
    and so does a model that recomputes its layers or whose attention is observed.

    Returns:
        A note for each model, and what puts every layer's own forward back.
    Raises:
        ConfigError: torch.compile does not work on this machine.
    """
    see_that_it_works(device)
    changed: list[nn.Module] = []
    notes = []
    for who, model in models.items():
        layers = list(dict.fromkeys(repeated_layers(model)))
        free = [layer for layer in layers if not _is_watched(layer)] if _can_be_compiled(model) else []
        for layer in free:
            if layer not in changed:  # of a model that teaches and learns
                layer.forward = _Compiled(layer)
                changed.append(layer)
        notes.append(f"{who}: {len(free)} of {len(layers)} layers are compiled{_reason(model, layers, free)}")

    def restore() -> None:
        for layer in changed:
            del layer.forward

    return notes, restore


class _Compiled:
    """The compiled forward of a layer. A copy of the layer has its own forward, as it is without compiling."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.forward = torch.compile(layer.forward, backend=BACKEND, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.layer, "forward")


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of the model's outermost lists of modules of one class."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from repeated_layers(child)


def see_that_it_works(device: torch.device) -> None:
    """Compile something small.

    Raises:
        ConfigError: it failed, as where there is no compiler.
    """

    def small(x: Tensor) -> Tensor:
        return x * 2 + 1

    try:
        torch.compile(small, backend=BACKEND, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # whatever the compiler raises
        first = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(
            f"torch_compile: torch.compile does not work here: {type(error).__name__}: {first}"
        ) from error


def _can_be_compiled(model: nn.Module) -> bool:
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not checkpointed and not attention.is_used(model)


def _is_watched(layer: nn.Module) -> bool:
    """Whether a module inside the layer has a hook, apart from those that transformers puts there."""
    inside = (module for module in layer.modules() if module is not layer)
    hooks = (hook for m in inside for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


def _reason(model: nn.Module, layers: list[nn.Module], free: list[nn.Module]) -> str:
    if len(free) == len(layers):
        return ""
    if attention.is_used(model):
        return ": its attention is looked into"
    return ": features are taken from within the others" if free or _can_be_compiled(model) else ": it recomputes them"

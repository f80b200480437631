"""What a model's `forward` takes, seen through whatever is wrapped around the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_ANYTHING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def inner_model(model: nn.Module) -> tuple[nn.Module, str]:
    """The model that a wrapper hands everything on to, and what its module paths begin with there.

    Wrappers are those of PEFT, and modules whose `forward` takes `*args` or `**kwargs` alone around one model
    (DataParallel). Any other model is its own.
    """
    prefix = ""
    while (inside := _inside(model)) and _hands_all_on(model):
        name, model = inside
        prefix += f"{name}."
    return model, prefix


def forward_parameters(model: nn.Module) -> tuple[list[str], bool]:
    """The names of `forward`'s parameters in order, and whether it takes any other keyword.

    Those of the model inside a wrapper are among them where the wrapper takes any keyword.
    """
    parameters = _own_parameters(model)
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
    inside = _inside(model) if any_keyword or _hands_all_on(model) else None
    if inside is not None:
        names, any_keyword = forward_parameters(inside[1])
        named += [name for name in names if name not in named]
    return named, any_keyword


def positional(model: nn.Module) -> list[str]:
    """The names of `forward`'s parameters that a tensor can be given for by its place: not switches, on or off."""
    parameters = _own_parameters(inner_model(model)[0])
    switches = {p.name for p in parameters if isinstance(p.default, bool)}
    return [name for name in forward_parameters(model)[0] if name not in switches]


def accepted_flags(model: nn.Module) -> dict[str, Any]:
    """The flags that keep a forward pass lean and its output whole, as far as the model takes them.

    What a model's forward has on by itself stays on: it may compute with it.
    """
    named, any_keyword = forward_parameters(model)
    inner = inner_model(model)[0]
    lean = {"use_cache": False, "output_hidden_states": False, "output_attentions": False, "return_dict": True}
    takes_all = any_keyword and hasattr(inner, "config")
    on = {p.name for p in _own_parameters(inner) if p.default is True and p.name.startswith("output_")}
    return {k: v or k in on for k, v in lean.items() if k in named or (takes_all and k != "use_cache")}


def _own_parameters(model: nn.Module) -> tuple[inspect.Parameter, ...]:
    """Those of `forward`; of a class made of transformers' whose own names none, those of the class that it is of."""
    function = getattr(model.forward, "__func__", model.forward)
    own = _parameters(function)[1 if function is not model.forward else 0 :]
    kinds = {parameter.kind for parameter in own}
    hands_up = isinstance(model, PreTrainedModel) and inspect.Parameter.VAR_KEYWORD in kinds <= {*_ANYTHING}
    if not hands_up:
        return own
    above = (_parameters(vars(kind)["forward"])[1:] for kind in type(model).__mro__[1:] if "forward" in vars(kind))
    return next((named for named in above if not {p.kind for p in named} <= {*_ANYTHING}), own)


@lru_cache(maxsize=64)  # asked for at each batch
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def _hands_all_on(model: nn.Module) -> bool:
    """Whether `forward` names nothing that it takes, or is PEFT's."""
    kinds = {p.kind for p in _own_parameters(model)}
    return hasattr(model, "get_base_model") or (bool(kinds) and kinds <= {*_ANYTHING})


def _inside(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The path and the model around which a module is wrapped; None where it is no wrapper, or of several models."""
    if isinstance(model, PreTrainedModel):
        return None
    base: Any = getattr(model, "get_base_model", None)
    if base is not None:
        inside = base()
        return next(((path, part) for path, part in model.named_modules() if part is inside and path), None)
    children = list(model.named_children())
    found: list[tuple[str, nn.Module]] = [
        (name, child) for name, child in children if isinstance(child, PreTrainedModel)
    ]
    if not found and _hands_all_on(model):
        found = children
    return found[0] if len(found) == 1 else None

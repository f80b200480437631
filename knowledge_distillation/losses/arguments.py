"""What a loss can be called with, and what is wrong with an entry's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import nearest
from .table import _FROM_DATASET, FILLED, Loss


def parameters_of(loss: Loss) -> list[inspect.Parameter] | None:
    """The parameters of a loss's call beyond its two tensors; None where Python cannot tell."""
    try:
        parameters = _signature(loss)[2:]
    except (TypeError, ValueError):
        return None
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def constructor_parameters(loss: Loss) -> list[inspect.Parameter]:
    """The parameters of the constructor of a loss with state beyond its two tensors; none where it has no state."""
    if not isinstance(loss, type):
        return []
    parameters = list(inspect.signature(loss).parameters.values())
    return [p for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def takes_any_keyword(loss: Loss) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _signature(loss))


def _signature(loss: Loss) -> list[inspect.Parameter]:
    if isinstance(loss, type):
        return list(inspect.signature(loss.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    return list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values())


def check_arguments(name: str, loss: Loss, args: Mapping[str, Any], context: Iterable[str]) -> str | None:
    """What is wrong with the arguments of an entry, or None. `context` are the keywords the loss model can fill."""
    parameters = parameters_of(loss)
    if parameters is None:
        return None
    parameters = [*constructor_parameters(loss), *parameters]
    known = [p.name for p in parameters if p.name not in FILLED]
    shown = (p for p in parameters if p.name in known)
    takes = ", ".join(p.name + (f"={p.default}" if p.default is not p.empty else "") for p in shown)
    for key in args:
        if key not in known and not takes_any_keyword(loss):
            near = nearest(key, known)
            return f"loss {name} takes no argument {key!r}.{near} It takes: {takes or 'no arguments'}"
    offered = {*args, *context, "teacher_model", "teacher_features"}
    for p in parameters:
        if p.default is p.empty and p.name not in offered:
            hint = f". {_FROM_DATASET}" if p.name in ("num_samples", "sample_index") else ""
            where = f"which is neither in args nor a key of the batch ({', '.join(context)})"
            return f"loss {name} needs {p.name!r}, {where}{hint}"
    return None

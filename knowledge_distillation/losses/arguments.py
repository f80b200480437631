"""What a loss can be called with, and what is wrong with an entry's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..errors import nearest

MASKS = ("mask", "key_mask", "teacher_mask")
# Keywords that are never arguments of an entry: the loss model fills them.
FILLED = (*MASKS, "labels", "teacher_model", "teacher_features", "losses", "weights")

_FROM_DATASET = (
    "With train_dataset the rows are numbered by themselves; with a train_dataloader give num_samples in args, and in "
    "each batch sample_index, the place of each row in the training set"
)


_OF_QUERIES = "Give in each batch a query, equal numbers for the rows of one query: the task `reranking` does"


class Signature(NamedTuple):
    """What a loss takes beyond its two sides, by name.

    `call` is taken at each step, `constructor` when a class of a loss with state is built. `any_keyword`: others as
    well, or Python cannot tell.
    """

    call: Mapping[str, inspect.Parameter]
    constructor: Mapping[str, inspect.Parameter]
    any_keyword: bool

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Those of the constructor and of the call."""
        return {**self.constructor, **self.call}


def signature_of(loss: Callable[..., Any]) -> Signature:
    """The signature of a function, a module, or the class of a module."""
    try:
        constructor = _parameters(loss) if isinstance(loss, type) else []
        of_forward = isinstance(loss, (type, nn.Module))
        call = _parameters(loss.forward if of_forward else loss)  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        return Signature({}, {}, True)
    call = call[1:] if isinstance(loss, type) else call  # a class has no self yet
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in call)
    return Signature(_beyond_the_sides(call), _beyond_the_sides(constructor), any_keyword)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _beyond_the_sides(parameters: list[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def check_arguments(name: str, signature: Signature, args: Mapping[str, Any], context: Iterable[str]) -> str | None:
    """What is wrong with the arguments of an entry, or None. `context` are the keywords the loss model can fill."""
    parameters = signature.parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in FILLED}
    takes = ", ".join(key if value is inspect.Parameter.empty else f"{key}={value}" for key, value in defaults.items())
    for key in args:
        if key not in defaults and not signature.any_keyword:
            near = nearest(key, defaults)
            return f"loss {name} takes no argument {key!r}.{near} It takes: {takes or 'no arguments'}"
    offered = {*args, *context, "teacher_model", "teacher_features"}
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in offered:
            hint = f". {_FROM_DATASET}" if key in ("num_samples", "sample_index") else ""
            hint = f". {_OF_QUERIES}" if key == "query" else hint
            where = f"which is neither in args nor a key of the batch ({', '.join(context)})"
            return f"loss {name} needs {key!r}, {where}{hint}"
    return None

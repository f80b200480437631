"""The names of a model's classes, and a model with its classes in another order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.trace import is_same


def class_names(model: Any) -> tuple[str, ...]:
    """What the classes of a model, or of a config, are called; none where it has numbers for names."""
    written = getattr(getattr(model, "config", model), "id2label", None)
    names = tuple(str(written[key]) for key in sorted(written)) if isinstance(written, Mapping) else ()
    return names if are_names(names) else ()


def are_names(classes: Sequence[str]) -> bool:
    """Whether classes are called something, each something else, and not LABEL_0, LABEL_1 or 0, 1."""
    distinct = len({_plain(name) for name in classes}) == len(classes)
    return bool(classes) and distinct and not all(re.fullmatch(r"(LABEL_)?\d+", name) for name in classes)


def order_of(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """The places at which the classes `wanted` stand among `names`, whatever their case; None of other classes."""
    places = {_plain(name): place for place, name in enumerate(names)}
    order = [places.get(_plain(name)) for name in wanted]
    return None if None in order or len(names) != len(wanted) else order  # type: ignore[return-value]


def in_common(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether some classes of one are called as classes of the other."""
    return bool({_plain(name) for name in names} & {_plain(name) for name in others})


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def name_classes(model: Any, names: Sequence[str]) -> None:
    """Write the names into the model's config."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}


def put_in_order(model: Any, order: Sequence[int], forward: Callable[[], Any], in_place: bool) -> None:
    """Give a model's classes another order: class i becomes what class `order[i]` was, in weights and config.

    The maps that make the logits are found by running it, and what came of it is compared.

    Args:
        forward: a pass that changes nothing in the model; its output has `logits`.
        in_place: the parameters stay the same objects; else they are new ones, and who shares them keeps his.

    Raises:
        ConfigError: no part of the model makes each class for itself.
    """
    made: list[tuple[nn.Module, Tensor]] = []
    heads = [m for m in model.modules() if _classes_of(m) == len(order)]
    with ExitStack() as stack:
        for head in heads:
            hook = head.register_forward_hook(lambda module, args, output: made.append((module, output)))
            stack.callback(hook.remove)
        before = _logits(forward())
    last = [module for module, output in made if isinstance(output, Tensor) and is_same(output, before)]
    axis = 1 if before.dim() == 4 else -1
    index = torch.tensor(order, device=before.device)
    wide = [module for module, output in made if isinstance(output, Tensor) and output.shape[axis] == len(order)]
    precision = 1e-3 if before.dtype in (torch.float32, torch.float64) else 2e-2
    for chosen in (last, list(dict.fromkeys(wide))):
        if not chosen:
            continue
        kept = [(module, name, parameter) for module in chosen for name, parameter in _rows(module)]
        values = [parameter.detach().clone() for _, _, parameter in kept]
        for module, name, parameter in kept:
            _put(module, name, parameter, parameter.detach()[index.to(parameter.device)].clone(), in_place)
        after, expected = _logits(forward()).float(), before.index_select(axis, index).float()
        if torch.allclose(after, expected, rtol=precision, atol=precision * float(expected.abs().max())):
            names = class_names(model)
            name_classes(model, [names[place] for place in order])
            return
        for (module, name, parameter), value in zip(kept, values, strict=True):
            _put(module, name, parameter, value, True)
            setattr(module, name, parameter)
    raise ConfigError(
        f"no linear map of {type(model).__name__} makes one class each, so its classes cannot be put in another "
        "order: give models whose id2label agree"
    )


def _classes_of(module: nn.Module) -> int:
    """The number of things that a linear map or a convolution makes."""
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, nn.Parameter) and weight.dim() > 1 else 0


def _rows(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that have a row for each class."""
    classes = _classes_of(module)
    return [(name, p) for name, p in module.named_parameters(recurse=False) if p.shape[:1] == (classes,)]


def _put(module: nn.Module, name: str, parameter: nn.Parameter, value: Tensor, in_place: bool) -> None:
    if in_place:
        parameter.data.copy_(value)
    else:
        setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output[0])

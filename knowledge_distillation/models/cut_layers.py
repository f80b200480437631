"""Whether a layer of a student is built as the layer of the teacher it is made of: weights, shapes and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .cut_settings import Cuts, renumbered_places

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_SWITCHES = ("training", "gradient_checkpointing")


@dataclass
class Build:
    """How a layer is built: name -> shape of its weights, path -> class of its modules, and their plain attributes.

    `bare` are the paths of modules without weights, as DropPath, which is no module at all where its rate is 0.
    """

    weights: dict[str, tuple[int, ...]]
    classes: dict[str, str]
    settings: dict[str, Any]
    bare: set[str]


@dataclass
class Placing:
    """A layer of the teacher at its place in the student, and what keeps it from going there."""

    path: str
    number: int
    place: int
    lost: list[str] = field(default_factory=list)
    borrowed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    depth: list[str] = field(default_factory=list)  # numbers that depth has entered

    @property
    def wrong(self) -> int:
        return len(self.lost) + len(self.borrowed) + len(self.resized) + len(self.different)


def build_of(layer: nn.Module) -> Build:
    settings = {
        f"{path}.{name}".lstrip("."): value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _SWITCHES and _is_plain(value)
    }
    classes = {path: type(module).__name__ for path, module in layer.named_modules()}
    bare = {path for path, module in layer.named_modules() if not module.state_dict()}
    return Build({name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}, classes, settings, bare)


def placings(teacher: nn.Module, student: nn.Module, cuts: Cuts) -> Iterator[Placing]:
    """Every chosen layer at its place."""
    for stack, numbers in cuts.items():
        for path in stack.paths:
            theirs, ours = builds_of(teacher, path), builds_of(student, path)
            for place, number in enumerate(numbers, start=1):
                yield _placed(theirs, ours[place - 1], path, number, place, numbers)


def builds_of(model: nn.Module, path: str) -> list[Build]:
    """How the layers of a list are built."""
    return [build_of(layer) for layer in model.get_submodule(path).children()]


def _placed(
    theirs: Sequence[Build], own: Build, path: str, number: int, place: int, numbers: Sequence[int]
) -> Placing:
    """Layer `number` of the teacher as layer `place` of the student."""
    found, layer = Placing(path, number, place), theirs[number - 1]
    found.lost = [name for name in layer.weights if name not in own.weights]
    found.borrowed = [name for name in own.weights if name not in layer.weights]
    for name in layer.weights.keys() & own.weights.keys():
        if layer.weights[name] != own.weights[name]:
            found.resized.append(f"{name} is {_shape(layer.weights[name])}, not {_shape(own.weights[name])}")
    for name in layer.classes.keys() & own.classes.keys():
        if layer.classes[name] != own.classes[name]:
            text = f"{name or 'it'} is a {layer.classes[name]}, not a {own.classes[name]}"
            (found.depth if name in layer.bare & own.bare else found.different).append(text)
    for name in layer.settings.keys() & own.settings.keys():
        one, other = layer.settings[name], own.settings[name]
        if one == other or _is_place(one, other, numbers) or _is_cut(one, other, numbers, len(theirs)):
            continue
        counted = _counts([build.settings.get(name) for build in theirs])
        counted = counted or (type(one) is int and (one, other) == (len(theirs), len(numbers)))  # of all layers
        text = f"{name} is {one}, not {other}"
        if isinstance(one, float) and isinstance(other, float):
            found.depth.append(text)
        elif not counted:
            found.different.append(text)
    return found


def around(teacher: nn.Module, student: nn.Module, cuts: Cuts) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """What lies around the layers: weights that are larger in the teacher, and what is in one of both alone."""
    inside = tuple(f"{path}." for stack in cuts for path in stack.paths)
    theirs, ours = (
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith(inside)}
        for model in (teacher, student)
    )
    missing = [f"{name} would be lost" for name in theirs if name not in ours]
    missing += [f"{name} would have to be made" for name in ours if name not in theirs]
    return {name: theirs[name] for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]}, missing


def sliced(tensor: Tensor, shape: Sequence[int], cuts: Cuts) -> Tensor | None:
    """A weight that holds one part for each layer side by side, cut to the chosen; None where it is no such weight."""
    sizes = list(zip(tensor.shape, shape, strict=False))
    axes = [axis for axis, (one, other) in enumerate(sizes) if one != other]
    if len(tensor.shape) != len(shape) or len(axes) != 1:
        return None
    old, new = sizes[axes[0]]
    for stack, numbers in cuts.items():
        for extra in (0, 1):  # the embedding's part comes first where there is one
            parts = stack.depth + extra
            if old % parts or new * parts != old * (len(numbers) + extra):
                continue
            chosen = [0] * extra + [number - 1 + extra for number in numbers]
            return torch.cat([tensor.chunk(parts, axes[0])[n] for n in chosen], axes[0])
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN)


def _is_place(one: Any, other: Any, numbers: Sequence[int]) -> bool:
    """Whether two attributes point to one layer (counted from 0), before the cut and after it."""
    whole = type(one) is int and type(other) is int
    return whole and one + 1 in numbers and list(numbers[other : other + 1]) == [one + 1]


def _counts(values: Sequence[Any]) -> bool:
    """Whether an attribute says where a layer is, and no more: a number that grows evenly, or a path with one."""
    if all(isinstance(value, str) for value in values):
        return len({re.sub(r"\d+", "#", value) for value in values}) == 1 and len(set(values)) == len(values)
    whole = len(values) > 1 and all(type(value) is int for value in values)
    return whole and values[1] != values[0] and len({b - a for a, b in zip(values, values[1:], strict=False)}) == 1


def _is_cut(one: Any, other: Any, numbers: Sequence[int], depth: int) -> bool:
    """Whether two attributes are a list of a value for each layer, or of layers' places, before the cut and after."""
    if not isinstance(one, (list, tuple)) or not isinstance(other, (list, tuple)):
        return False
    values = [one[number - 1] for number in numbers] if len(one) >= max(numbers) else None
    return list(other) in (values, renumbered_places(one, numbers, depth))


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"


def fits(theirs: Sequence[Build], own: Build, placing: Placing, numbers: Sequence[int]) -> list[int]:
    """The layers of the teacher that could be where this one cannot, in a student that is built so."""
    fitting = []
    for number in range(1, len(theirs) + 1):
        others = [number if place == placing.place else n for place, n in enumerate(numbers, start=1)]
        if not _placed(theirs, own, placing.path, number, placing.place, others).wrong:
            fitting.append(number)
    by_weights = placing.lost or placing.borrowed or placing.resized
    if fitting or not by_weights:
        return fitting
    return [n for n, layer in enumerate(theirs, start=1) if layer.weights == own.weights]

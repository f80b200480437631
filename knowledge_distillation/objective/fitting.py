"""Settle one entry on probed features: whether its loss can be called so, and which modules it needs.

Every misfit is a ConfigError that says what was found and what would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Entry, Projection
from ..errors import ConfigError, DistillationError, nearest
from ..losses.arguments import check_arguments, constructor_parameters, parameters_of, takes_any_keyword
from ..losses.labels import IGNORED_LABEL
from ..losses.logits import kl_divergence
from ..losses.table import FILLED, HARD_LOSSES, OWN_SHAPES, PROBABILITIES, SEVERAL, SOFT_LOSSES
from .fused.table import BEYOND_ONE_ITEM, FUSED
from .projections import apply_projections, at_least_float32, build_projection, key_of, load_projection

MASK_WORDS = ("mask", "key_mask", "teacher_mask")


@dataclass(frozen=True)
class Held:
    """The modules that a loss model holds for its entries, and its mode."""

    projections: nn.ModuleDict
    losses: nn.ModuleDict
    training: bool


def takes_deferred(entry: Entry, kind: str) -> bool:
    """Whether an entry can work from what features of a kind are computed from: its loss can, and it projects none."""
    projected = {entry.projection.type, entry.teacher_projection.type} - {"auto", "none"}
    if callable(entry.loss) or entry.many or projected or BEYOND_ONE_ITEM & {*entry.args, *entry.schedule}:
        return False
    return (HARD_LOSSES if entry.hard else SOFT_LOSSES).get(entry.loss, {}).get(kind) in FUSED


def see_call(entry: Entry, function: Any, context: Iterable[str]) -> None:
    """Raise where the loss cannot be called as the entry says."""
    if entry.many and not callable(entry.loss) and function not in SEVERAL:
        raise ConfigError(f"loss {entry.loss_name} compares one feature with one: it takes no list of features")
    wrong = next((str(f) for f in entry.student + entry.teacher if f.output.endswith("attention_scores")), None)
    if function in PROBABILITIES and wrong:
        near = wrong.removesuffix("_scores")
        raise ConfigError(f"loss {entry.loss_name} compares probabilities, and {wrong} are scores. Nearest: {near}")
    problem = argument_problem(entry, function, context)
    if problem:
        raise ConfigError(problem)
    parameters = parameters_of(function)
    numbers = {p.name: p.default for p in parameters or [] if p.name not in FILLED}
    named = not callable(entry.loss)
    known = ["weight", *(name for name, value in numbers.items() if isinstance(value, float) or not named)]
    unknown = [name for name in entry.schedule if name not in known]
    if unknown and parameters is not None and not takes_any_keyword(function):
        if unknown[0] in numbers:
            raise ConfigError(
                f"schedule of {unknown[0]}: a schedule gives real numbers, and loss {entry.loss_name} takes "
                f"{numbers[unknown[0]]!r} there. It can schedule: {', '.join(known)}"
            )
        raise ConfigError(
            f"schedule of {unknown[0]}: loss {entry.loss_name} takes no such argument at each step."
            f"{nearest(unknown[0], known)}"
        )


def argument_problem(entry: Entry, function: Callable[..., Any], context: Iterable[str]) -> str | None:
    """What is wrong with an entry's arguments, or None."""
    temperature = entry.args.get("temperature", 1)
    if not callable(entry.loss) and not (isinstance(temperature, (int, float)) and temperature > 0):
        return f"loss {entry.loss_name}: temperature is above 0; found {temperature!r}"
    course = entry.schedule.get("temperature")
    if course is not None and not callable(entry.loss) and course.lowest <= 0:
        return f"loss {entry.loss_name}: temperature is above 0; its schedule goes down to {course.lowest:g}"
    defaults = {p.name: p.default for p in [*constructor_parameters(function), *(parameters_of(function) or [])]}
    for name, value in () if callable(entry.loss) else entry.args.items():
        if isinstance(defaults.get(name), bool) and not isinstance(value, bool):
            return f"loss {entry.loss_name}: {name} is true or false; found {value!r}"
    return check_arguments(entry.loss_name, function, entry.args, [*MASK_WORDS, *context])


def fit_teacher(
    held: Held, entry: Entry, kind: str, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Add the projection an entry asks for on its teacher's side."""
    wanted = entry.teacher_projection
    if wanted.type in ("none", "auto"):
        return teacher
    for number, tensor in enumerate(teacher):
        other = student[number if len(student) == len(teacher) else 0]
        key = key_of(entry, "teacher", number, len(teacher))
        _add(held, wanted, key, build_projection(wanted, kind, tensor, other), student[0], entry.projection_checkpoint)
    return apply_projections(held.projections, entry, teacher, "teacher")


def fit_student(
    held: Held, entry: Entry, function: Any, kind: str, number: int, student: Tensor, teacher: Tensor | None
) -> None:
    """Add the projection an entry needs, and see that both sides then have one shape."""
    wanted, named = entry.projection, not callable(entry.loss)
    free = not named or function in OWN_SHAPES or teacher is None
    axis = 1 if kind == "map" else -1
    softmax = getattr(function, "__module__", "") == kl_divergence.__module__
    logits = entry.student[0].output == "logits" or softmax or entry.loss_name == "logits_mse"
    logits = logits and entry.student[0].output != "hidden_states"  # whatever is made of it, it is a layer
    pair = f"{entry.student[number]} {tuple(student.shape)}"
    differ = False
    if teacher is not None:
        pair += f" and {entry.teacher[min(number, len(entry.teacher) - 1)]} {tuple(teacher.shape)}"
        differ = student.shape[axis] != teacher.shape[axis] and kind in ("tokens", "vector", "map") and not logits
    if wanted.type == "linear" and kind == "attention":
        raise ConfigError(f"projection linear does not apply to attention maps, whose width is a length: {pair}")
    if wanted.type not in ("auto", "none"):
        chosen = wanted
    elif differ and not free and wanted.type == "auto":
        chosen = replace(wanted, type="linear")
    elif differ and not free:
        raise ConfigError(
            f"widths differ, {pair}, and projection is off. Set projection: auto, or choose equal widths"
        )
    else:
        chosen = None
    if chosen is None and entry.teacher_projection.type in ("none", "auto") and entry.projection_checkpoint:
        raise ConfigError(f"projection_checkpoint is given, and no projection is needed: set its type. {pair}")
    shape = student.shape
    if chosen:
        key = key_of(entry, "student", number, len(entry.student))
        _add(held, chosen, key, build_projection(chosen, kind, student, teacher), student, entry.projection_checkpoint)
        with torch.no_grad():
            shape = held.projections[key](at_least_float32(student)).shape
    if not free and teacher is not None and shape != teacher.shape:
        raise ConfigError(_mismatch(kind, logits, student, teacher, pair))
    if teacher is not None and shape[-1] == 1 and softmax and entry.loss_name != "logits_mse":
        raise ConfigError(f"{pair}: with one output a softmax is always 1 and the loss 0. Use logits_mse")


def _add(held: Held, wanted: Projection, key: str, module: nn.Module, like: Tensor, checkpoint: str | None) -> None:
    fresh = key not in held.projections
    module.to(like.device, at_least_float32(like).dtype).train(held.training)
    if wanted.shared and not fresh and _shapes(held.projections[key]) != _shapes(module):
        raise ConfigError(
            f"projection {wanted.shared!r} is shared by features of different widths; share it among equal ones"
        )
    module = _kept(held.projections, key, module)
    if checkpoint and fresh:
        load_projection(module, checkpoint, key)
    module.requires_grad_(wanted.trainable)


def build_loss(
    held: Held, entry: Entry, function: Any, student: Any, teacher: Any, args: Mapping[str, Any]
) -> nn.Module:
    """The module of a loss with state; one that was trained is not begun anew."""
    sides = [tuple(at_least_float32(t).detach() for t in side) for side in (student, teacher)]
    try:
        module = function(*(sides if function in SEVERAL else [side[0] for side in sides]), **args)
    except DistillationError:
        raise
    except Exception as error:
        raise ConfigError(f"loss {entry.loss_name} cannot be made: {type(error).__name__}: {error}") from error
    module.to(student[0].device, at_least_float32(student[0]).dtype).train(held.training)
    return _kept(held.losses, entry.name, module)


def fit_labels(entry: Entry, student: Tensor, labels: Any) -> None:
    if entry.loss == "own_loss":  # the model looked at them itself
        return
    if labels is None:
        raise ConfigError(
            f"loss {entry.loss_name} compares {entry.student[0]} with labels, and the batch has no 'labels'"
        )
    named = not callable(entry.loss)
    cross_entropy = not entry.hard or entry.loss_name == "cross_entropy"
    fits = labels.shape == student.shape[:-1] if cross_entropy else labels.numel() == student.numel()
    if named and not fits:
        raise ConfigError(f"{entry.student[0]} {tuple(student.shape)} does not fit labels {tuple(labels.shape)}")
    if named and cross_entropy:
        if labels.is_floating_point():
            use = ": use mse" if entry.hard else ""
            raise ConfigError(f"loss {entry.loss_name} takes class numbers as labels; these are real numbers{use}")
        real = labels[labels != IGNORED_LABEL]
        classes = student.shape[-1]
        if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < classes:
            found = f"from {int(real.min())} to {int(real.max())}"
            raise ConfigError(f"labels run {found}, and {entry.student[0]} has {classes} classes")


def needs_labels(function: Callable[..., Any]) -> bool:
    return any(p.name == "labels" and p.default is p.empty for p in parameters_of(function) or [])


def names_of(parameters: Iterable[Any]) -> list[str]:
    return [parameter.name for parameter in parameters]


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _kept(held: nn.ModuleDict, name: str, module: nn.Module) -> nn.Module:
    """The module held under a name where its shapes are the same, so that one that was trained goes on; or the new."""
    if name not in held or _shapes(held[name]) != _shapes(module):
        held[name] = module
    return held[name]


def _mismatch(kind: str, logits: bool, student: Tensor, teacher: Tensor, pair: str) -> str:
    if logits and student.shape[:-1] == teacher.shape[:-1]:
        return (
            f"{pair}: the student has {student.shape[-1]} classes, the teacher {teacher.shape[-1]}. "
            "Logits are compared class by class: give both models the same labels or vocabulary"
        )
    if kind in ("attention", "heads") and student.shape[1] != teacher.shape[1]:
        return (
            f"{pair}: the student has {student.shape[1]} heads, the teacher {teacher.shape[1]}. "
            "Maps are compared head by head: set projection: heads, choose a student with as many heads, "
            "or map hidden_states"
        )
    if kind == "map" and student.dim() == teacher.dim() == 4:
        return f"{pair}: the maps differ in size: set projection: resize"
    tokens = kind == "tokens" and student.shape[1] != teacher.shape[1]
    hint = ". Do they read different tokens? Then map logits or pooled vectors" if tokens else ""
    return f"{pair}: shapes differ where no projection can help{hint}"

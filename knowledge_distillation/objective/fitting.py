"""Fit one entry to probed features: the projections it needs, the module of its loss, the labels.

Every misfit is a ConfigError that says what was found and what would do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.entry import Entry, Projection
from ..errors import CheckpointError, ConfigError, DistillationError
from ..features.deferred import first_classes
from ..losses.labels import IGNORED_LABEL
from .loss import Loss
from .projections import (
    apply_projections,
    at_least_float32,
    build_projection,
    key_of,
    load_projection,
    projections_file,
)


@dataclass(frozen=True)
class Modules:
    """The modules that a loss model has for its entries, and its mode."""

    projections: nn.ModuleDict
    losses: nn.ModuleDict
    training: bool


def in_one_vocabulary(
    entry: Entry, kind: str, student: tuple[Any, ...], teacher: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Logits of the classes that all sides have, for `vocabulary: shared`; else the features as they are.

    Raises:
        ConfigError: they are no logits of tokens, or have a projection.
    """
    if entry.vocabulary == "same":
        return student, teacher
    names = (*entry.student, *entry.teacher)
    if kind != "tokens" or any(name.output == "hidden_states" for name in names):
        raise ConfigError(
            f"vocabulary 'shared' is for the logits of tokens; {entry.student[0]} is a feature of kind {kind}"
        )
    if {entry.projection.type, entry.teacher_projection.type} - {"auto", "none"}:
        raise ConfigError("vocabulary 'shared' compares the classes that both sides have: leave the projection out")
    classes = min(feature.shape[-1] for feature in (*student, *teacher))
    first, second = (tuple(first_classes(feature, classes) for feature in side) for side in (student, teacher))
    return first, second


def fit_teacher(
    modules: Modules, entry: Entry, kind: str, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Add the projection an entry asks for on its teacher's side."""
    projection = entry.teacher_projection
    if projection.type in ("none", "auto"):
        return teacher
    for number, tensor in enumerate(teacher):
        other = student[number if len(student) == len(teacher) else 0]
        key = key_of(entry, "teacher", number, len(teacher))
        built = build_projection(projection, kind, tensor, other)
        _add(modules, projection, key, built, student[0], entry.projection_checkpoint)
    return apply_projections(modules.projections, entry, teacher, "teacher")


def fit_student(
    modules: Modules,
    loss: Loss,
    kind: str,
    number: int,
    student: Tensor,
    teacher: Tensor | None,
    yes_or_no: bool = False,
) -> None:
    """Add the projection an entry needs, and see that both sides then have one shape."""
    entry, projection = loss.entry, loss.entry.projection
    free = loss.own_shapes or teacher is None
    axis = 1 if kind == "map" else -1
    of_logits = loss.spec.logits or loss.name == "logits_mse"
    logits = entry.student[0].output == "logits" or of_logits
    logits = logits and entry.student[0].output != "hidden_states"  # whatever is made of it, it is a layer
    pair = f"{entry.student[number]} {tuple(student.shape)}"
    differ = False
    if teacher is not None:
        pair += f" and {entry.teacher[min(number, len(entry.teacher) - 1)]} {tuple(teacher.shape)}"
        differ = student.shape[axis] != teacher.shape[axis] and kind in ("tokens", "vector", "map") and not logits
    if projection.type == "linear" and kind == "attention":
        raise ConfigError(f"projection linear does not apply to attention maps, whose width is a length: {pair}")
    if projection.type not in ("auto", "none"):
        chosen = projection
    elif differ and not free and projection.type == "auto":
        chosen = replace(projection, type="linear")
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
        built = build_projection(chosen, kind, student, teacher)
        _add(modules, chosen, key, built, student, entry.projection_checkpoint)
        with torch.no_grad():
            shape = modules.projections[key](at_least_float32(student)).shape
    if not free and teacher is not None and shape != teacher.shape:
        raise ConfigError(_mismatch(kind, logits, student, teacher, pair))
    if teacher is not None and shape[-1] == 1 and of_logits and loss.name != "logits_mse" and not yes_or_no:
        raise ConfigError(
            f"{pair}: with one output a softmax is always 1 and the loss 0. Use logits_mse; or for yes or no give "
            "labels that are whole numbers, 0 and 1"
        )


def _add(
    modules: Modules, projection: Projection, key: str, module: nn.Module, like: Tensor, checkpoint: str | None
) -> None:
    fresh = key not in modules.projections
    module.to(like.device, at_least_float32(like).dtype).train(modules.training)
    if projection.shared and not fresh and _shapes(modules.projections[key]) != _shapes(module):
        raise ConfigError(
            f"projection {projection.shared!r} is shared by features of different widths; share it among equal ones"
        )
    module = _one_of(modules.projections, key, module)
    if checkpoint and fresh:
        load_projection(module, checkpoint, key)
    module.requires_grad_(projection.trainable)


def fit_loss(
    modules: Modules,
    loss: Loss,
    student: tuple[Tensor, ...],
    teacher: tuple[Tensor, ...],
    teacher_model: nn.Module | None,
    num_samples: int | None,
) -> Loss:
    """The loss with its module, where it has state: built from both sides, or the one that was trained already."""
    if isinstance(loss.function, nn.Module):
        loss.function.to(student[0].device)
    if not isinstance(loss.function, type):
        return loss
    rows = loss.entry.args.get("num_samples")
    if rows is not None and num_samples is not None and rows < num_samples:
        raise ConfigError(f"loss {loss.name}: num_samples is {rows}, and the training data has {num_samples} rows")
    parameters = loss.signature.constructor
    offered: dict[str, Any] = {"teacher_model": teacher_model, "teacher_features": loss.entry.teacher}
    offered |= {"losses": modules.losses, **({} if num_samples is None else {"num_samples": num_samples})}
    if "weights" in parameters and loss.entry.args.get("pretrained") is not None:
        offered["weights"] = _weights_in(loss, loss.entry.args["pretrained"])
    args = {k: v for k, v in {**offered, **loss.entry.args}.items() if k in parameters}
    sides = [tuple(at_least_float32(t).detach() for t in side) for side in (student, teacher)]
    try:
        module = loss.function(*(sides if loss.spec.several else [side[0] for side in sides]), **args)
    except DistillationError:
        raise
    except Exception as error:
        raise ConfigError(f"loss {loss.name} cannot be made: {type(error).__name__}: {error}") from error
    module.to(student[0].device, at_least_float32(student[0]).dtype).train(modules.training)
    return replace(loss, function=_one_of(modules.losses, loss.entry.name, module))


def _weights_in(loss: Loss, path: str) -> dict[str, Tensor]:
    try:
        return load_file(projections_file(path))
    except (OSError, SafetensorError, CheckpointError) as error:
        raise ConfigError(f"loss {loss.name}: pretrained {path} cannot be read: {error}") from error


def fit_labels(loss: Loss, student: Tensor, labels: Any) -> None:
    """See that the labels are those of the student's feature, where the loss compares them."""
    if not loss.compares_labels:
        return
    feature = loss.entry.student[0]
    if labels is None:
        raise ConfigError(f"loss {loss.name} compares {feature} with labels, and the batch has no 'labels'")
    if not loss.by_name:
        return
    cross_entropy = not loss.entry.hard or loss.name == "cross_entropy"
    fits = labels.shape == student.shape[:-1] if cross_entropy else labels.numel() == student.numel()
    if not fits:
        raise ConfigError(f"{feature} {tuple(student.shape)} does not fit labels {tuple(labels.shape)}")
    if not cross_entropy:
        return
    if labels.is_floating_point():
        use = ": use mse" if loss.entry.hard else ""
        raise ConfigError(f"loss {loss.name} takes class numbers as labels; these are real numbers{use}")
    real = labels[labels != IGNORED_LABEL]
    classes = student.shape[-1]
    if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < classes:
        labels_run = f"from {int(real.min())} to {int(real.max())}"
        one = ". One logit is for labels 0 and 1" if classes == 1 else ""
        raise ConfigError(f"labels run {labels_run}, and {feature} has {classes} classes{one}")


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _one_of(modules: nn.ModuleDict, name: str, module: nn.Module) -> nn.Module:
    """The module there is under a name where its shapes are the same, so that one that was trained goes on."""
    if name not in modules or _shapes(modules[name]) != _shapes(module):
        modules[name] = module
    return modules[name]


def _mismatch(kind: str, logits: bool, student: Tensor, teacher: Tensor, pair: str) -> str:
    if logits and student.shape[:-1] == teacher.shape[:-1]:
        padded = ", or vocabulary: shared where the last ones are padding" if kind == "tokens" else ""
        return (
            f"{pair}: the student has {student.shape[-1]} classes, the teacher {teacher.shape[-1]}. "
            f"Logits are compared class by class: give both models the same labels or vocabulary{padded}"
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

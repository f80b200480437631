"""A batch of the training data, ready: what each model takes of it, and all that losses may ask for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device

from ..features.batch_context import make_context
from ..features.inputs import adapt_batch, forward_inputs, merged_inputs, named_inputs
from ..teachers.cached import CpuInputs
from .run import Run

Inputs = dict[str, dict[str, Any]]  # of each model, by its name


class Batch(NamedTuple):
    """What each student and each teacher takes by name; `context` is what losses may ask for.

    `teachers_on_cpu` is what cached teachers know its samples by.
    """

    students: Inputs
    teachers: Inputs
    context: dict[str, Any]
    teachers_on_cpu: dict[str, CpuInputs]


def adapt(run: Run, raw: Any) -> tuple[Inputs, Inputs]:
    """What the data adaptor makes of a batch for each student and each teacher, by the names of their `forward`.

    With a teacher cache it is on the CPU, where looking at it waits for nothing.
    """
    device = torch.device("cpu") if run.settings.teacher_cache else run.accelerator.device
    return named(run, *adapt_batch(run.train_data_adaptor, device, raw))


def named(run: Run, for_teacher: Any, for_student: Any) -> tuple[Inputs, Inputs]:
    """What a data adaptor returned, for each student and each teacher by the names of its `forward`."""
    students = {name: named_inputs(for_student, model, name or "student") for name, model in run.students.items()}
    teachers = {
        name: named_inputs(for_teacher, teacher.model, f"teacher {name}".strip())
        for name, teacher in run.teachers.items()
    }
    return students, teachers


def on_device(run: Run, inputs: tuple[Inputs, Inputs]) -> tuple[Inputs, Inputs]:
    device = run.accelerator.device
    return send_to_device(inputs, device, non_blocking=device.type == "cuda")


def make_batch(run: Run, adapted_inputs: tuple[Inputs, Inputs]) -> Batch:
    """A batch out of what `adapt` returned."""
    teachers_on_cpu = run.stage_teachers.on_cpu(adapted_inputs[1])
    students, teachers = on_device(run, adapted_inputs) if run.settings.teacher_cache else adapted_inputs
    context = make_context(students[""], merged_inputs(teachers) or None, run.loss_model.shifts_labels)
    own_loss = run.loss_model.reads_own_loss
    return Batch(
        {name: forward_inputs(inputs, run.students[name], own_loss) for name, inputs in students.items()},
        {name: forward_inputs(inputs, run.teachers[name].model) for name, inputs in teachers.items()},
        context,
        teachers_on_cpu,
    )

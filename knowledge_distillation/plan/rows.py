"""The rows and notes of a printed plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..config.entry import Entry, Feature
from ..config.schedules import described
from ..features.inputs import shape_of
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from .probe import Probe


def row_of(
    loss_model: MultiLayerBasedDistillationLoss,
    entry: Entry,
    student: Mapping[Feature, Tensor],
    teacher: Mapping[Feature, Tensor],
) -> tuple[str, ...]:
    bound = loss_model.bound[entry.name]
    items, layout = bound.items, bound.items.layout.name
    sides = []
    for features, tensors in ((entry.teacher, teacher), (entry.student, student)):
        sides.append("\n".join(f"{f} {shape_of(tensors[f])}" for f in features) or "labels")
    memory = sum(student[f].nbytes for f in entry.student) + sum(teacher[f].nbytes for f in entry.teacher)
    projections = loss_model.projections_of(entry)
    shown = "\n".join(f"{_called(one, entry)} {_count(one)}" for one in projections) or "-"
    args = ", ".join(f"{key}={value}" for key, value in {**entry.args, **_courses(entry)}.items())
    masked = layout if layout in ("pairs", "rows", "tokens") else "-"
    has_mask = items.rows is not None or (entry.hard and layout == "tokens")
    if layout == "batch" and items.rows:
        masked = "by the loss" if "mask" in bound.context_keys else "NONE: a scalar"
    elif not has_mask:
        masked = "-"
    compared = ""  # a map of attention is scores or probabilities
    if bound.kind == "attention":
        compared = " of scores" if entry.student[0].output.endswith("scores") else " of probabilities"
    loss = f"{entry.loss_name}{compared}({args})" if args else f"{entry.loss_name}{compared}"
    course = entry.schedule.get("weight")
    weight = f"{entry.weight:g}" if course is None else described(course)
    weight += f"\nin stage {', '.join(entry.stage)}" if entry.stage else ""
    return (str(entry.index), *sides, shown, loss, masked, weight, _bytes(memory))


def _courses(entry: Entry) -> dict[str, str]:
    return {name: described(course) for name, course in entry.schedule.items() if name != "weight"}


def _called(projection: nn.Module, entry: Entry) -> str:
    return entry.projection.type if isinstance(projection, nn.Sequential) else type(projection).__name__


def notes_of(probes: Iterable[Probe], loss_model: MultiLayerBasedDistillationLoss, unreached: list[str]) -> list[str]:
    """What else is worth knowing: of each model, of parameters, and what may surprise."""
    notes = []
    for probe in probes:
        model, source = probe.model, probe.source
        dtype = next((str(p.dtype).removeprefix("torch.") for p in model.parameters()), "")
        size = f"{type(model).__name__}, {_count(model)} parameters in {dtype}"
        notes += [f"{probe.title}: {note}" for note in (f"{size}, runs {source.depth}", *source.notes)]
    if list(loss_model.parameters()):
        notes.append(f"projections: {_count(loss_model)} parameters, trained and saved beside the student")
    if unreached:
        shown = ", ".join(unreached[:4]) + (f" and {len(unreached) - 4} more" if len(unreached) > 4 else "")
        notes.append(f"student: no entry reaches {shown}: frozen for this run")
    for bound in loss_model.bound.values():
        method, layout = bound.loss.method, bound.items.layout.name
        if method.two_classes and bound.classes == 2:
            notes.append(f"warning: {bound.entry.name}: with two classes {method.two_classes}")
        if method.among_samples and bound.samples < 3:
            few = f"{bound.samples} of them in a batch leave little or nothing to learn"
            notes.append(f"warning: {bound.entry.name} compares samples with each other, and {few}")
        if bound.entry.learning_rate is not None and not loss_model.learning_rates(bound.entry):
            notes.append(f"warning: {bound.entry.name}: it has nothing of its own that trains at its learning_rate")
        unmasked = layout in ("batch", "samples") and bound.items.rows and "mask" not in bound.context_keys
        if unmasked and not bound.loss.by_name:
            what = "a scalar" if layout == "batch" else "one value per sample"
            notes.append(f"warning: {bound.entry.name} returns {what} and asks for no mask, so padding counts in it")
    return notes


def _count(module: nn.Module) -> str:
    number = sum(p.numel() for p in module.parameters())
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _bytes(number: int) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"

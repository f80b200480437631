"""The rows and notes of a printed plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..config.entry import Entry, Feature
from ..config.schedules import described
from ..errors import listed
from ..features.inputs import shape_of
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from .probe import Probe

COUNTS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
BYTES = ((1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB"))


def row_of(
    loss_model: MultiLayerBasedDistillationLoss,
    entry: Entry,
    student_features: Mapping[Feature, Tensor],
    teacher_features: Mapping[Feature, Tensor],
) -> tuple[str, ...]:
    """The cells of a bound entry, under `COLUMNS`."""
    bound = loss_model.bound[entry.name]
    rows, layout = bound.items.rows, bound.items.layout.name
    sides, memory = [], 0
    for names, features in ((entry.teacher, teacher_features), (entry.student, student_features)):
        sides.append("\n".join(f"{name} {shape_of(features[name])}" for name in names) or "labels")
        memory += sum(features[name].nbytes for name in names)
    projections = [
        f"{entry.projection.type if isinstance(one, nn.Sequential) else type(one).__name__} {_size_of(one)}"
        for one in loss_model.projections_of(entry)
    ]
    mask = "-"
    if layout == "batch" and rows:
        mask = "by the loss" if "mask" in bound.context_keys else "NONE: a scalar"
    elif layout in ("pairs", "rows", "tokens") and (rows is not None or (entry.hard and layout == "tokens")):
        mask = layout
    elif bound.kind == "positions" and entry.mask:
        mask = f"classes\nby {bound.items.keys}"
    if bound.items.marks and mask != "-":
        mask += f"\nby {' and '.join(one.split()[0] for one in bound.items.marks)}"
    schedules = {name: described(course) for name, course in entry.schedule.items()}
    weight = schedules.pop("weight", f"{entry.weight:g}")
    weight += f"\nin stage {', '.join(entry.stage)}" if entry.stage else ""
    loss = entry.loss_name
    if bound.kind == "attention":
        loss += " of scores" if entry.student[0].output.endswith("scores") else " of probabilities"
    if entry.args or schedules:
        loss += f"({', '.join(f'{key}={value}' for key, value in {**entry.args, **schedules}.items())})"
    cells = (*sides, "\n".join(projections) or "-", loss, mask, weight)
    return (str(entry.index), *cells, _short(memory, BYTES, " B"))


def notes_of(probes: Iterable[Probe], loss_model: MultiLayerBasedDistillationLoss, unreached: list[str]) -> list[str]:
    """What else is worth knowing: of each model, of parameters, and what may surprise."""
    notes = []
    for probe in probes:
        model, source = probe.model, probe.source
        dtype = next((str(p.dtype).removeprefix("torch.") for p in model.parameters()), "")
        size = f"{type(model).__name__}, {_size_of(model)} parameters in {dtype}"
        notes += [f"{probe.title}: {note}" for note in (f"{size}, runs {source.depth}", *source.notes)]
    if list(loss_model.parameters()):
        notes.append(f"projections: {_size_of(loss_model)} parameters, trained and saved beside the student")
    if unreached:
        notes.append(f"student: no entry reaches {listed(unreached)}: frozen for this run")
    for bound in loss_model.bound.values():
        spec, layout = bound.loss.spec, bound.items.layout.name
        if spec.two_classes and bound.classes == 2 and bound.kind != "positions":
            notes.append(f"warning: {bound.entry.name}: with two classes {spec.two_classes}")
        if spec.among_samples and bound.samples < 3:
            few = f"{bound.samples} of them in a batch leave little or nothing to learn"
            notes.append(f"warning: {bound.entry.name} compares samples with each other, and {few}")
        if bound.entry.learning_rate is not None and not loss_model.learning_rates(bound.entry):
            notes.append(f"warning: {bound.entry.name}: it has nothing of its own that trains at its learning_rate")
        unmasked = layout in ("batch", "samples") and bound.items.rows and "mask" not in bound.context_keys
        if unmasked and not bound.loss.by_name:
            what = "a scalar" if layout == "batch" else "one value per sample"
            notes.append(f"warning: {bound.entry.name} returns {what} and asks for no mask, so padding counts in it")
    return notes


def _size_of(module: nn.Module) -> str:
    return _short(sum(p.numel() for p in module.parameters()), COUNTS)


def _short(number: int, units: Iterable[tuple[float, str]], smallest: str = "") -> str:
    for size, unit in units:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number}{smallest}"

"""An error of a later batch says which batch, which rows and which entry: found out after it failed, never before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, DistillationError, listed
from ..features.batch_context import make_context
from ..features.inputs import adapt_batch, merged_inputs, shape_of, shapes_of, why_empty
from ..losses.arguments import MASKS
from ..losses.labels import IGNORED_LABEL
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from .accelerate import comes_of_others
from .batch import Inputs, adapt, named
from .row_limits import failures
from .run import Run

_HOST = torch.device("cpu")


@contextmanager
def naming_batches(run: Run, window: Sequence[Any]) -> Iterator[None]:
    """Within the context a step is made of these batches of the training data, as they were drawn."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if comes_of_others(error):  # no batch is to blame
            raise
        raise _explained(run, window, error) from error


def check_on_host(run: Run, raw: Any) -> None:
    """See that labels are in range before they are on a device that would only stop at them.

    Looking at tensors on the host waits for nothing. Where the run computes on the host, a loss says so itself.
    """
    labels = raw.get("labels") if isinstance(raw, Mapping) else None
    if run.accelerator.device.type == "cpu" or not isinstance(labels, Tensor) or labels.device.type != "cpu":
        return
    problem = label_problem(run.loss_model, labels)
    if problem:
        raise DataError(problem)


def _explained(run: Run, window: Sequence[Any], error: Exception) -> DistillationError:
    """The same error with its batch, and with what can be seen to be wrong with that."""
    kind = type(error) if isinstance(error, DistillationError) else DataError
    said = str(error) if isinstance(error, DistillationError) else f"{type(error).__name__}: {error}"
    epoch, first = run.progress.epoch + 1, run.progress.batches + 1
    for number, raw in enumerate(window, start=first):
        problems = _problems(run, raw, error)
        if problems or len(window) == 1:
            what = f"batch {number} of epoch {epoch} ({shapes_of(raw)})"
            return DataError(f"{what}: {'; '.join(problems)}") if problems else kind(f"{what}: {said}")
    numbers = f"{first} to {first + len(window) - 1}" if window else "none"
    return kind(f"batches {numbers} of epoch {epoch}: {said}")


def _problems(run: Run, raw: Any, error: Exception) -> list[str]:
    """What is wrong with a batch, as far as it can be seen; where looking fails too, nothing."""
    try:
        of_teacher, of_student = adapt_batch(run.train_data_adaptor, _HOST, raw)
        inputs = named(run, of_teacher, of_student)
        empty = why_empty(inputs[0][""])
        if empty:
            return [empty]
        found = list(_of_rows(run, inputs[0][""])) or list(_of_context(run, inputs))
        if not found and "CUDA error" not in str(error):
            found = list(failures(run, adapt(run, raw)))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return []
    return found


def _of_context(run: Run, inputs: tuple[Inputs, Inputs]) -> Iterator[str]:
    """What losses ask for and the batch does not have, and labels that are no classes."""
    students, teachers = inputs
    context = make_context(students[""], merged_inputs(teachers) or None)
    missing: dict[str, list[int]] = {}
    for bound in run.loss_model.bound.values():
        asked = set(bound.context_keys) - set(MASKS) | ({"labels"} if bound.entry.hard else set())
        asked = {bound.answers.key if key == "labels" else key for key in asked}
        for key in sorted(asked):
            if context.get(key) is None:
                missing.setdefault(key, []).append(bound.entry.index)
    for key, entries in missing.items():
        of = listed([f"distill_config[{index}]" for index in dict.fromkeys(entries)])
        yield f"it has no {key!r}, which the first batch had and {of} compares with"
    labels = context.get("labels")
    problem = label_problem(run.loss_model, labels) if isinstance(labels, Tensor) else None
    if problem:
        yield problem


def _of_rows(run: Run, student: Mapping[str, Any]) -> Iterator[str]:
    """What does not have as many rows, or a mask as many tokens, as the tokens of the batch."""
    ids = student.get("input_ids", student.get("pixel_values"))
    if not isinstance(ids, Tensor) or ids.dim() < 2:
        return
    readers = [b.entry.index for b in run.loss_model.bound.values() if b.loss.labelled]
    for key, tokens in (("labels", False), ("attention_mask", True)):
        value = student.get(key) if tokens or readers else None
        if not isinstance(value, Tensor):
            continue
        if value.shape[:1] != ids.shape[:1]:
            reader = "" if tokens else f"distill_config[{readers[0]}]: "
            yield f"{reader}{key} {shape_of(value)} are not one for each of {len(ids)} rows"
        elif tokens and value.dim() == 2 and value.shape != ids.shape:
            yield f"{key} {shape_of(value)} does not fit input_ids {shape_of(ids)}"


def label_problem(loss_model: MultiLayerBasedDistillationLoss, labels: Tensor) -> str | None:
    """The rows whose label is none of the classes that an entry compares with it; None where there are none."""
    if not labels.numel():
        return None
    for bound in loss_model.bound.values():
        loss, classes = bound.loss, max(bound.classes, 2)  # one logit is for two classes
        if not (loss.by_name and loss.compares_labels and (loss.name == "cross_entropy" or not loss.entry.hard)):
            continue
        if labels.is_floating_point() and not bound.answers.yes_or_no:
            return f"labels are real numbers, and distill_config[{bound.entry.index}] takes class numbers"
        wrong = ((labels < 0) | (labels >= classes) | (labels != labels.long())) & (labels != IGNORED_LABEL)
        if wrong.any():
            places = wrong.flatten().nonzero().flatten().tolist()
            width = labels[0].numel()
            rows = [f"row {place // width} has label {labels.flatten()[place].item()}" for place in places]
            of = f"distill_config[{bound.entry.index}] compares {bound.entry.student[0]} with it"
            return f"{listed(rows)}, and the classes are 0 to {classes - 1}: {of}"
    return None

"""One entry on the features of a batch: precision, the call of its loss, and the average of the values that count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Entry
from ..errors import ConfigError
from ..features.batch_context import batch_size
from ..features.deferred import Deferred, TopKLogits, first_classes, materialized
from .answers import Answers
from .loss import Loss
from .masking import Items, Layout, Masks, layout_of, per_sample, total, zero_padding
from .projections import in_one_precision


@dataclass(frozen=True)
class BoundEntry:
    """An entry that knows its loss, and what its features look like.

    Args:
        loss: its loss; one with state is built.
        context_keys: the keywords that each batch fills.
        kind: of the feature as the loss gets it.
        items: which items count.
        classes: the width of what the loss gets.
        samples: rows of the probe batch.
        answers: how it reads labels and logits.
    """

    loss: Loss
    context_keys: tuple[str, ...]
    kind: str
    items: Items
    classes: int
    samples: int
    answers: Answers = Answers()

    @cached_property
    def entry(self) -> Entry:
        return self.loss.entry

    def of_vocabulary(self, features: tuple[Any, ...]) -> tuple[Any, ...]:
        """Logits of the classes that both sides have, where the entry compares these alone."""
        if self.entry.vocabulary == "same":
            return features
        return tuple(first_classes(feature, self.classes) for feature in features)


def values_of(
    bound: BoundEntry, student: Any, teacher: Any, context: Mapping[str, Any], args: Mapping[str, Any]
) -> tuple[Tensor, Layout]:
    """The values of the loss, and what one of them stands for."""
    loss, items = bound.loss, bound.items
    if isinstance(student[0], Deferred):  # its values are never there at once: their shape has to do
        pair = (student[0], context["labels"] if bound.entry.hard else teacher[0])
        shapes = in_one_precision(torch.empty(side.shape, dtype=side.dtype, device="meta") for side in pair)
        values = call_loss(loss, loss.function, torch.device("cpu"), *shapes, **args)
        return values, layout_of(bound.kind, student[0].shape, values.shape)
    masks = items.masks(context)
    words = items.words(context, none_for_all=loss.by_name) if bound.context_keys else {}
    keywords = {name: words[name] if name in words else context.get(name) for name in bound.context_keys}
    if items.marks and masks.rows is not None:
        of_teacher = keywords.get("teacher_mask")
        alike = {"mask"} if of_teacher is None or of_teacher.shape != masks.rows.shape else {"mask", "teacher_mask"}
        keywords |= dict.fromkeys(alike & keywords.keys(), masks.rows)
        if items.marks_keys and "key_mask" in keywords:
            keywords["key_mask"] = masks.keys
    padding = items.padding(masks, all_of_it=loss.by_name or "mask" in keywords)
    whole = materialized(student)
    kept = (zero_padding(one, bound.kind, padding) for one in (*whole, *_beside(teacher, *whole[:1])))
    compared = in_one_precision(map(bound.answers.logits, kept))
    student_features, teacher_features = compared[: len(student)], compared[len(student) :]
    reference = (context.get("labels"),) if bound.entry.hard else teacher_features
    sides = (student_features, reference) if loss.several else (student_features[0], reference[0])
    values = call_loss(loss, loss.function, student_features[0].device, *sides, **args, **keywords)
    if not isinstance(values, Tensor):
        raise ConfigError(f"loss {loss.name} returned {type(values).__name__}; a tensor is needed")
    values = bound.answers.of_rows(values, context["labels"] if loss.compares_labels else None)
    return values, layout_of(bound.kind, student_features[0].shape, values.shape)


def _beside(teacher: Any, student: Tensor) -> tuple[Tensor, ...]:
    """The teacher's features as tensors; classes that the student leaves out have no share in what others share."""
    of_top_k = [isinstance(one, TopKLogits) and one.shape == student.shape for one in teacher]
    return tuple(
        one.beside(student, one.rest.new_empty(one.shape)) if cut else materialized([one])[0]
        for one, cut in zip(teacher, of_top_k, strict=True)
    )


def value_of(
    bound: BoundEntry,
    student: Any,
    teacher: Any,
    context: Mapping[str, Any],
    args: Mapping[str, Any],
    counts: Mapping[str, Any] | None,
) -> Tensor:
    """The average of an entry's values, by a form that sums on its way where the loss has one for such features.

    Args:
        counts: entry name -> the number of values to divide by; None averages over this batch alone.
    """
    # A summed form takes a fourth dimension for heads, which stand before the length; those of tokens stand after it.
    summed = None if bound.kind == "tokens" and student[0].dim() > 3 else bound.loss.summed
    if not isinstance(student[0], Deferred) and summed is None:
        return average(bound, values_of(bound, student, teacher, context, args)[0], context, counts)
    rows, keys, number = weights_of(bound, student[0], context, counts)
    if isinstance(student[0], Deferred):
        reference = context["labels"] if bound.entry.hard else teacher[0]
        return (
            call_loss(bound.loss, bound.loss.fused, student[0].device, student[0], reference, rows, keys, **args)
            / number
        )
    alike = bound.items.masks(context).rows is None and bound.entry.reduction != "sequence_mean"
    sides = (student[0], *materialized(teacher), None if alike else rows, keys)
    return call_loss(bound.loss, summed, student[0].device, *sides, **args) / number


def average(bound: BoundEntry, values: Tensor, context: Mapping[str, Any], counts: Mapping[str, Any] | None) -> Tensor:
    """The average of the values that count: over this batch, or over the `counts` of a larger whole."""
    masks, number = _masks_and_number(bound, values.shape, context, batch_size(context, values), counts)
    if bound.entry.reduction == "sequence_mean":
        return per_sample(values, bound.items.layout, masks).sum() / number
    return total(values, bound.items.layout, masks) / number


def weights_of(
    bound: BoundEntry, student: Deferred | Tensor, context: Mapping[str, Any], counts: Mapping[str, Any] | None
) -> tuple[Tensor, Tensor | None, Any]:
    """What a fused loss gets of rows and keys, and what its sum is divided by."""
    masks, number = _masks_and_number(bound, student.shape, context, student.shape[0], counts)
    like = torch.empty(0, dtype=torch.promote_types(student.dtype, torch.float32), device=student.device)
    keys = None if masks.keys is None or bound.kind != "attention" else masks.keys.bool()
    return bound.items.weights(context, masks, student.shape, like), keys, number


def call_loss(loss: Loss, function: Callable[..., Any] | None, device: torch.device, *sides: Any, **args: Any) -> Any:
    """What a form of a loss gives, with autocast off; an error it raises says whose it is."""
    assert function is not None
    with torch.autocast(device.type, enabled=False):
        try:
            return function(*sides, **args)
        except (ConfigError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ConfigError(f"loss {loss.name} failed: {type(error).__name__}: {error}") from error


@contextmanager
def naming_entry(bound: BoundEntry) -> Iterator[None]:
    """An error within the context says whose it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"distill_config[{bound.entry.index}]: {said}") from error


def _masks_and_number(
    bound: BoundEntry, values: torch.Size, context: Mapping[str, Any], batch: int, counts: Mapping[str, Any] | None
) -> tuple[Masks, Any]:
    """What counts of values of this shape, and what their sum is divided by."""
    masks, sizes = bound.items.masks_of_values(context, values)
    if counts is not None and bound.items.change_length(context, masks, sizes):
        raise ConfigError(
            f"{bound.entry.student[0]} changes its length from batch to batch and no input has that length, so an "
            "average over several batches cannot be counted: give the batch an attention_mask"
        )
    if bound.entry.reduction == "sum":
        return masks, 1
    number: Any = counts[bound.entry.name] if counts is not None else bound.items.count(context, batch, masks, sizes)
    return masks, number + (number == 0)  # a sum over nothing is 0, and stays so

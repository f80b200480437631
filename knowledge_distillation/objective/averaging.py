"""One entry on the features of a batch. Precision, masking and averaging are settled here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Entry
from ..errors import ConfigError
from ..features.batch_context import batch_size, keeps_all, mask_of, once
from ..features.deferred import Deferred, whole
from ..losses.labels import IGNORED_LABEL
from ..losses.table import SEVERAL
from .fitting import MASK_WORDS
from .fused.table import FUSED, SUMMED
from .masking import Layout, Masks, blanked, count, layout_of, per_sample, row_weights, sizes_of, total
from .projections import at_least_float32


@dataclass(frozen=True)
class BoundEntry:
    """An entry that knows its loss function and what its features look like."""

    entry: Entry
    function: Callable[..., Any]
    args: Mapping[str, Any]  # of the loss's call
    asks_for: tuple[str, ...]
    kind: str  # of the feature as the loss gets it
    rows: str | None  # the context key of the mask of rows, and of keys; None where the feature has no length
    keys: str | None
    layout: Layout = field(default=Layout("batch"))
    sizes: tuple[int, int] = (1, 1)  # rows and keys where nothing masks them
    labelled: bool = False  # items labelled -100 do not count
    classes: int = 0  # width of what the loss gets
    samples: int = 0  # rows of the probe batch


def values_of(
    bound: BoundEntry, student: Any, teacher: Any, context: Mapping[str, Any], args: Mapping[str, Any]
) -> tuple[Tensor, Layout]:
    """The values of the loss, and what one of them stands for."""
    if isinstance(student[0], Deferred):  # its values are never there at once: their shape has to do
        compared = (student[0], context["labels"] if bound.entry.hard else teacher[0])
        shapes = [torch.empty(side.shape, dtype=side.dtype, device="meta") for side in compared]
        values = called(bound, bound.function, torch.device("cpu"), *shapes, **args)
        return values, layout_of(bound.kind, student[0].shape, values.shape)
    for_ready_made = not callable(bound.entry.loss)  # they take None for a mask that keeps all
    named = (None if for_ready_made and keeps_all(context, key) else key for key in (bound.rows, bound.keys))
    mask, key_mask = (mask_of(context, key) for key in named)
    taught = context.get(f"teacher_{bound.rows}")
    masks = {"mask": mask, "key_mask": key_mask, "teacher_mask": mask if taught is None else taught.bool()}
    asked = {name: masks[name] if name in MASK_WORDS else context.get(name) for name in bound.asks_for}
    counted = _masks(bound, context)
    if bound.labelled and "mask" in asked and counted.rows is not None:
        asked["mask"] = counted.rows
    given, target = (
        tuple(at_least_float32(blanked(feature, bound.kind, _left_out(bound, counted))) for feature in whole(side))
        for side in (student, teacher)
    )
    reference = (context.get("labels"),) if bound.entry.hard else target
    several = bound.entry.many or type(bound.function) in SEVERAL or bound.function in SEVERAL
    sides = (given, reference) if several else (given[0], reference[0])
    values = called(bound, bound.function, given[0].device, *sides, **args, **asked)
    if not isinstance(values, Tensor):
        raise ConfigError(f"loss {bound.entry.loss_name} returned {type(values).__name__}; a tensor is needed")
    return values, layout_of(bound.kind, given[0].shape, values.shape)


def average(bound: BoundEntry, values: Tensor, context: Mapping[str, Any], counts: Mapping[str, Any] | None) -> Tensor:
    """The average of the values that count: over this batch, or over the `counts` of a larger whole."""
    masks, sizes = _counted(bound, values.shape, context, counts)
    if bound.entry.reduction == "sequence_mean":
        summed = per_sample(values, bound.layout, masks).sum()
    else:
        summed = total(values, bound.layout, masks)
    return summed / _number(bound, masks, context, sizes, batch_size(context, values), counts)


def fused_average(
    bound: BoundEntry,
    student: Deferred | Tensor,
    teacher: tuple[Any, ...],
    context: Mapping[str, Any],
    args: Mapping[str, Any],
    counts: Mapping[str, Any] | None,
) -> Tensor:
    """The average by a function that sums on its way, of what the student's feature is computed from or of it."""
    rows, keys, number = weights_of(bound, student, context, counts)
    if isinstance(student, Tensor):
        alike = _masks(bound, context).rows is None and bound.entry.reduction != "sequence_mean"
        sides = (student, *whole(teacher), None if alike else rows, keys)
        return called(bound, SUMMED[bound.function], student.device, *sides, **args) / number
    reference = context["labels"] if bound.entry.hard else teacher[0]
    return called(bound, FUSED[bound.function], student.device, student, reference, rows, keys, **args) / number


def weights_of(
    bound: BoundEntry,
    student: Deferred | Tensor,
    context: Mapping[str, Any],
    counts: Mapping[str, Any] | None,
) -> tuple[Tensor, Tensor | None, Any]:
    """What a fused loss is told of rows and keys, and what its sum is divided by."""
    masks, sizes = _counted(bound, student.shape, context, counts)
    batch, by_sample = student.shape[0], bound.entry.reduction == "sequence_mean"
    dtype = torch.promote_types(student.dtype, torch.float32)

    def weights() -> Tensor:
        like = torch.empty(0, dtype=dtype, device=student.device)
        return row_weights(bound.layout, masks, batch, *sizes, like, by_sample)

    asked = ("weights", bound.layout, bound.rows, bound.keys, bound.labelled, student.shape, by_sample, dtype)
    rows = once(context, asked, weights)
    keys = None if masks.keys is None or bound.kind != "attention" else masks.keys.bool()
    return rows, keys, _number(bound, masks, context, sizes, batch, counts)


def count_of(bound: BoundEntry, context: Mapping[str, Any], batch: int) -> Tensor | int:
    """How many values an entry will have in a batch of so many rows."""
    return _count(bound, _masks(bound, context), context, batch, bound.sizes)


def called(bound: BoundEntry, function: Callable[..., Any], device: torch.device, *sides: Any, **args: Any) -> Any:
    """What a loss gives, with autocast off; an error it raises says whose it is."""
    with torch.autocast(device.type, enabled=False):
        try:
            return function(*sides, **args)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"loss {bound.entry.loss_name} failed: {type(error).__name__}: {error}") from error


def _counted(
    bound: BoundEntry, values: torch.Size, context: Mapping[str, Any], counts: Mapping[str, Any] | None
) -> tuple[Masks, tuple[int, int]]:
    """What counts of values of this shape, and their numbers of rows and keys."""
    sizes = sizes_of(values, bound.layout)
    masks = _as_long(bound, _masks(bound, context), sizes)
    untold = bound.layout.name in ("tokens", "rows", "pairs") and masks.rows is None
    untold = untold and not keeps_all(context, bound.rows)
    if counts is not None and untold and (bound.rows is not None or sizes != bound.sizes):
        raise ConfigError(
            f"{bound.entry.student[0]} changes its length from batch to batch and no input has that length, so an "
            "average over several batches cannot be counted: give the batch an attention_mask"
        )
    return masks, sizes


def _number(
    bound: BoundEntry,
    masks: Masks,
    context: Mapping[str, Any],
    sizes: tuple[int, int],
    batch: int,
    counts: Mapping[str, Any] | None,
) -> Any:
    """What a sum of values is divided by."""
    if bound.entry.reduction == "sum":
        return 1
    number: Any = _count(bound, masks, context, batch, sizes) if counts is None else counts[bound.entry.name]
    return number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)


def _count(
    bound: BoundEntry, masks: Masks, context: Mapping[str, Any], batch: int, sizes: tuple[int, int]
) -> Tensor | int:
    """The count of values of these sizes; entries with equal masks count once."""
    masked = ((masks.rows, bound.rows), (masks.keys, bound.keys))
    rows, keys = (
        context[key].shape[1] if mask is None and key is not None and keeps_all(context, key) else size
        for (mask, key), size in zip(masked, sizes, strict=True)
    )
    over = _averaged_over(bound)
    asked = ("count", over, bound.rows, bound.keys, bound.labelled, masks.rows is None, masks.keys is None)
    return once(context, (*asked, batch, rows, keys), lambda: count(over, masks, batch, rows, keys))  # type: ignore[no-any-return]


def _left_out(bound: BoundEntry, masks: Masks) -> Masks:
    """What is set to 0 before a loss sees it: all padding; for a callable only what its average leaves out."""
    rows = masks.rows
    if not callable(bound.entry.loss) or "mask" in bound.asks_for:
        return masks
    if bound.layout.name in ("batch", "samples"):
        return Masks(rows if rows is not None and rows.dim() == 1 else None)
    return masks if bound.layout.name == "pairs" else Masks(rows)


def _averaged_over(bound: BoundEntry) -> Layout:
    """The layout of what the average divides by: samples for the reductions that count them."""
    if bound.entry.reduction in ("sequence_mean", "batch_mean") and bound.layout.name != "batch":
        return Layout("samples", 1)
    return bound.layout


def _as_long(bound: BoundEntry, masks: Masks, sizes: tuple[int, int]) -> Masks:
    """The masks, without one made of an input that was as long as the feature by chance, and is not in this batch."""
    if bound.layout.name not in ("tokens", "rows", "pairs"):
        return masks

    def fitting(mask: Tensor | None, key: str | None, size: int) -> Tensor | None:
        chance = mask is not None and mask.dim() == 2 and key is not None and "mask" not in key
        return None if chance and mask.shape[1] != size else mask  # type: ignore[union-attr]

    return Masks(fitting(masks.rows, bound.rows, sizes[0]), fitting(masks.keys, bound.keys, sizes[1]))


def _masks(bound: BoundEntry, context: Mapping[str, Any]) -> Masks:
    """What counts in a batch, made once for all entries that ask for it."""
    asked = (bound.rows, bound.keys, bound.labelled)
    return once(context, asked, lambda: _made_masks(bound, context))  # type: ignore[no-any-return]


def _made_masks(bound: BoundEntry, context: Mapping[str, Any]) -> Masks:
    named = (None if keeps_all(context, key) else key for key in (bound.rows, bound.keys))
    rows, keys = (mask_of(context, key) for key in named)
    if bound.labelled and not context["labels"].is_floating_point():
        labelled = context["labels"] != IGNORED_LABEL
        if rows is None or rows.shape[: labelled.dim()] != labelled.shape:
            rows = labelled
        else:
            rows = rows.bool() & labelled[(...,) + (None,) * (rows.dim() - labelled.dim())]
    return Masks(rows, keys)

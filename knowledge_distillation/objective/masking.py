"""Which items of an entry count, and how many there are: rows, keys and labels become masks and a count here alone.

A loss returns values; their layout says what one value stands for:

| layout | values | counted |
|---|---|---|
| `batch` | () | the loss compared items with each other; nothing is left to average |
| `samples` | (batch, …) | every sample |
| `tokens` | (batch, length, …) | tokens the mask keeps |
| `rows` | (batch, heads, length, …) of attention or heads | query rows the mask keeps |
| `pairs` | (batch, heads, length, keys) | pairs of a kept row and a kept key |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..features.batch_context import PER_TOKEN, keeps_all, mask_of, once
from ..losses.labels import kept_weights
from .marked import marked


@dataclass(frozen=True)
class Masks:
    """What counts in one batch: rows (batch, length), keys (batch, keys); None keeps all."""

    rows: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """What one value stands for, and how many values each counted item has (heads, trailing dimensions)."""

    name: str
    factor: int = 1


@dataclass(frozen=True)
class Items:
    """Which items of an entry count; settled on the probe batch, then worked out once a batch for all that are alike.

    Args:
        rows: the context key of the mask of rows; None where the feature has no length.
        keys: that of the mask of keys.
        marks: what a token has to be marked by beside: see `marks_of`.
        marks_keys: whether that holds for keys as well, which are then tokens as rows are.
        reduction: of the entry.
        layout: of the loss's values.
        sizes: how many rows and keys there are where nothing masks them.
        class_weights: of the labels of items, whose sum an average is then divided by; None for 1 each.
    """

    rows: str | None
    keys: str | None
    marks: tuple[str, ...] = ()
    marks_keys: bool = False
    reduction: str = "mean"
    layout: Layout = Layout("batch")
    sizes: tuple[int, int] = (1, 1)
    class_weights: tuple[float, ...] | None = None

    def masks(self, context: Mapping[str, Any]) -> Masks:
        """What counts in a batch."""
        return once(context, self._which, lambda: self._masks(context))

    def _masks(self, context: Mapping[str, Any]) -> Masks:
        rows, keys = (None if keeps_all(context, key) else mask_of(context, key) for key in (self.rows, self.keys))
        padding = rows
        for mark in self.marks:
            kept = marked(context, mark, padding)
            if kept is None:
                continue
            if rows is None or rows.shape[: kept.dim()] != kept.shape:
                rows = kept
            else:
                rows = rows.bool() & kept[(...,) + (None,) * (rows.dim() - kept.dim())]
        return Masks(rows, rows if self.marks and self.marks_keys else keys)

    def words(self, context: Mapping[str, Any], none_for_all: bool) -> dict[str, Tensor | None]:
        """The masks that a loss may ask for by keyword; `none_for_all`: None for one that keeps all."""
        return once(context, ("words", self.rows, self.keys, none_for_all), lambda: self._words(context, none_for_all))

    def _words(self, context: Mapping[str, Any], none_for_all: bool) -> dict[str, Tensor | None]:
        mask, key_mask = (
            None if none_for_all and keeps_all(context, key) else mask_of(context, key)
            for key in (self.rows, self.keys)
        )
        of_teacher = context.get(f"teacher_{self.rows}")
        return {"mask": mask, "key_mask": key_mask, "teacher_mask": mask if of_teacher is None else of_teacher.bool()}

    def masks_of_values(self, context: Mapping[str, Any], values: torch.Size) -> tuple[Masks, tuple[int, int]]:
        """The masks of values of this shape, and their numbers of rows and keys.

        A mask made of an input that was as long as the feature by chance, and is not in this batch, is left out.
        """
        masks, sizes = self.masks(context), sizes_of(values, self.layout)
        if not self._has_rows:
            return masks, sizes
        rows, keys = (
            None
            if mask is not None and key and "mask" not in key and mask.dim() == 2 and mask.shape[1] != size
            else mask
            for mask, key, size in zip((masks.rows, masks.keys), (self.rows, self.keys), sizes, strict=True)
        )
        return Masks(rows, keys), sizes

    def change_length(self, context: Mapping[str, Any], masks: Masks, sizes: tuple[int, int]) -> bool:
        """Whether the numbers of rows and keys vary, and no input of the batch says how."""
        unmasked = self._has_rows and masks.rows is None and not keeps_all(context, self.rows)
        return unmasked and (self.rows is not None or sizes != self.sizes)

    def count(
        self, context: Mapping[str, Any], batch: int, masks: Masks | None = None, sizes: tuple[int, int] | None = None
    ) -> Tensor | int:
        """What an average is divided by: known from the inputs of a batch alone, before any pass.

        Args:
            batch: the number of samples.
            masks, sizes: those of the values, where these are there.
        """
        masks = self.masks(context) if masks is None else masks
        if self.class_weights is not None:
            counted = masks.rows
            return once(context, ("weight", self.class_weights, *self._which), lambda: self._weight(context, counted))
        masked = zip((masks.rows, masks.keys), (self.rows, self.keys), sizes or self.sizes, strict=True)
        rows, keys = (
            context[key].shape[1] if mask is None and key is not None and keeps_all(context, key) else size
            for mask, key, size in masked
        )
        by_sample = self.reduction in ("sequence_mean", "batch_mean") and self.layout.name != "batch"
        layout = Layout("samples") if by_sample else self.layout
        key = ("count", layout, *self._which, masks.rows is None, masks.keys is None)
        return once(context, (*key, batch, rows, keys), lambda: count(layout, masks, batch, rows, keys))

    def _weight(self, context: Mapping[str, Any], counted: Tensor | None) -> Tensor:
        """The sum of the weights of the labels that count."""
        labels = context["labels"]
        weights = kept_weights(self.class_weights or (), torch.float32, labels.device)
        of_items = weights[labels.clamp(min=0)]
        return (of_items if counted is None else of_items * counted).sum()

    def weights(self, context: Mapping[str, Any], masks: Masks, values: torch.Size, like: Tensor) -> Tensor:
        """By what the values of each row are multiplied to sum them up, (batch, rows), of the type of `like`."""
        by_sample = self.reduction == "sequence_mean"
        key = ("weights", self.layout, *self._which, values, by_sample, like.dtype)
        sizes = sizes_of(values, self.layout)
        return once(context, key, lambda: row_weights(self.layout, masks, values[0], *sizes, like, by_sample))

    def padding(self, masks: Masks, all_of_it: bool) -> Masks:
        """What of a feature is set to 0 before a loss sees it: all padding, or only what its average leaves out."""
        if all_of_it or self.layout.name == "pairs":
            return masks
        if self._has_rows:
            return Masks(masks.rows)
        return Masks(masks.rows if masks.rows is not None and masks.rows.dim() == 1 else None)

    @cached_property
    def _which(self) -> tuple[Any, ...]:
        return self.rows, self.keys, self.marks, self.marks_keys

    @cached_property
    def _has_rows(self) -> bool:
        return self.layout.name in ("tokens", "rows", "pairs")


def layout_of(kind: str, feature: torch.Size, values: torch.Size) -> Layout:
    """The layout of a loss's values on a feature of this kind and shape.

    Raises:
        ConfigError: the values have a shape that no layout explains.
    """
    if not values:
        return Layout("batch")
    if kind == "attention" and values == feature[:2] + values[2:4] and len(values) == 4:
        return Layout("pairs", values[1])
    if kind in ("attention", "heads") and values[:3] == feature[:3]:
        return Layout("rows", values[1] * values[3:].numel())
    if kind in ("attention", "heads") and values == (feature[0], feature[2]):  # one value per row, heads averaged
        return Layout("tokens")
    if kind == "tokens" and len(values) == 4 and values[0] == feature[0] and values[2:] == (feature[1], feature[1]):
        return Layout("pairs", values[1])
    if kind == "tokens" and values[:2] == feature[:2]:
        return Layout("tokens", values[2:].numel())
    if values[0] == feature[0]:
        return Layout("samples", values[1:].numel())
    raise ConfigError(
        f"the loss returned a tensor of shape {tuple(values)} for a feature of kind {kind} and shape "
        f"{tuple(feature)}; it should return a scalar or one value per sample, token or row"
    )


def mask_of_layout(layout: Layout, masks: Masks) -> Tensor | None:
    """The boolean mask of the items of a layout, broadcastable to its leading dimensions; None keeps all.

    A sample counts where any of its tokens does.
    """
    rows, keys = masks.rows, masks.keys
    if rows is None:
        return None if keys is None or layout.name != "pairs" else keys.bool()[:, None, None]
    if layout.name == "samples":
        return rows.bool().flatten(1).any(1) if rows.dim() > 1 else rows.bool()
    if layout.name == "tokens":
        return rows.bool()
    if layout.name == "rows":
        return rows.bool()[:, None]
    pairs = rows.bool()[:, None, :, None]
    return pairs if keys is None else pairs & keys.bool()[:, None, None]


def zero_padding(feature: Tensor, kind: str, masks: Masks) -> Tensor:
    """The feature with 0 in its padding, so that what stands there, even inf, reaches no value and no gradient.

    Masking the values of a loss is not enough for that: 0 times the derivative of an infinite value is not a number.
    A feature whose sizes are not those of the masks is left alone.
    """
    rows, keys = masks.rows, masks.keys
    mask = None
    if kind == "positions" and keys is not None and keys.shape == feature.shape:  # padding is no class of its row
        feature = feature.masked_fill(~keys.bool() & keys.bool().any(1, keepdim=True), -torch.inf)
    if rows is not None and rows.dim() == 1:
        mask = rows.bool()
    elif kind in PER_TOKEN:
        length = 1 if kind == "tokens" else 2
        if rows is not None and rows.shape == (feature.shape[0], feature.shape[length]):
            mask = rows.bool() if kind == "tokens" else rows.bool()[:, None, :]
        if kind == "attention" and keys is not None and keys.shape == (feature.shape[0], feature.shape[-1]):
            columns = keys.bool()[:, None, None]
            mask = columns if mask is None else mask[..., None] & columns
    if mask is None:
        return feature
    return torch.where(mask[(...,) + (None,) * (feature.dim() - mask.dim())], feature, 0.0)


def total(values: Tensor, layout: Layout, masks: Masks) -> Tensor:
    """Sum of the values that count; a value that does not count has no gradient, whatever it is."""
    mask = None if layout.name == "batch" else mask_of_layout(layout, masks)
    if mask is None:
        return values.sum()
    mask = mask[(...,) + (None,) * (values.dim() - mask.dim())]
    return torch.where(mask, values, values.new_zeros(())).sum()


def per_sample(values: Tensor, layout: Layout, masks: Masks) -> Tensor:
    """The mean of each sample's values that count; 0 where it has none."""
    if layout.name == "batch":
        return values
    mask = mask_of_layout(layout, masks)
    if mask is None:
        return values.reshape(len(values), -1).mean(1)
    mask = mask[(...,) + (None,) * (values.dim() - mask.dim())].expand_as(values)
    values = torch.where(mask, values, values.new_zeros(()))
    return values.reshape(len(values), -1).sum(1) / mask.reshape(len(values), -1).sum(1).clamp(min=1)


def row_weights(
    layout: Layout, masks: Masks, batch: int, rows: int, keys: int, like: Tensor, by_sample: bool = False
) -> Tensor:
    """By what a loss multiplies the values of each row to sum them up: (batch, rows), 0 for those that do not count.

    Args:
        layout: one with rows: tokens, rows or pairs.
        batch, rows, keys: the sizes of the values.
        like: a tensor of the device and type of the weights.
        by_sample: divide by the number of values of the row's sample that count, so that the sum is that of means.
    """
    weights = like.new_ones(batch, rows)
    if masks.rows is not None:
        weights = masks.rows.to(weights).reshape(batch, -1).expand(batch, rows)
    if not by_sample:
        return weights
    number = weights.sum(1, keepdim=True) * layout.factor
    if layout.name == "pairs":
        number = number * (keys if masks.keys is None else masks.keys.sum(1, keepdim=True))
    return weights / number.clamp(min=1)


def sizes_of(values: torch.Size, layout: Layout) -> tuple[int, int]:
    """The numbers of rows and keys of a loss's values of this shape."""
    first = {"tokens": 1, "rows": 2, "pairs": 2}.get(layout.name)
    if first is None:
        return 1, 1
    return values[first], values[3] if layout.name == "pairs" else 1


def count(layout: Layout, masks: Masks, batch: int, rows: int = 1, keys: int = 1) -> Tensor | int:
    """How many values count; `batch`, `rows` and `keys` are the sizes where nothing is masked."""
    if layout.name == "batch":
        return 1
    if layout.name == "samples":
        mask = mask_of_layout(layout, masks)
        return (batch if mask is None else mask.sum()) * layout.factor
    if layout.name in ("tokens", "rows"):
        if masks.rows is None:
            return batch * rows * layout.factor
        return masks.rows.bool().sum() * (rows if masks.rows.dim() == 1 else 1) * layout.factor
    if masks.rows is None and masks.keys is None:
        return batch * rows * keys * layout.factor
    per_row = keys if masks.keys is None else masks.keys.bool().sum(1)
    per_sample = rows if masks.rows is None else masks.rows.bool().sum(1)
    pairs = per_row * per_sample
    return (pairs.sum() if isinstance(pairs, Tensor) else batch * pairs) * layout.factor

"""Masking and averaging, once for every loss: which items count, and how many there are.

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

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


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
    if kind == "tokens" and values[:2] == feature[:2]:
        return Layout("tokens", values[2:].numel())
    if values[0] == feature[0]:
        return Layout("samples", values[1:].numel())
    raise ConfigError(
        f"the loss returned a tensor of shape {tuple(values)} for a feature of kind {kind} and shape "
        f"{tuple(feature)}; it should return a scalar or one value per sample, token or row"
    )


def kept(layout: Layout, masks: Masks) -> Tensor | None:
    """The boolean mask of the items of a layout, broadcastable to its leading dimensions; None keeps all."""
    rows, keys = masks.rows, masks.keys
    if layout.name in ("tokens", "samples") or rows is None:
        return None if rows is None else rows.bool()
    if layout.name == "rows":
        return rows.bool()[:, None]
    pairs = rows.bool()[:, None, :, None]
    return pairs if keys is None else pairs & keys.bool()[:, None, None]


def total(values: Tensor, layout: Layout, masks: Masks) -> Tensor:
    """Sum of the values that count; a value that does not count has no gradient, whatever it is."""
    mask = None if layout.name == "batch" else kept(layout, masks)
    if mask is None:
        return values.sum()
    mask = mask[(...,) + (None,) * (values.dim() - mask.dim())]
    return torch.where(mask, values, values.new_zeros(())).sum()


def count(layout: Layout, masks: Masks, batch: int, rows: int = 1, keys: int = 1) -> Tensor | int:
    """How many values count; `batch`, `rows` and `keys` are the sizes where nothing is masked."""
    if layout.name == "batch":
        return 1
    if layout.name == "samples":
        return (batch if masks.rows is None else masks.rows.bool().sum()) * layout.factor
    if layout.name in ("tokens", "rows"):
        return (batch * rows if masks.rows is None else masks.rows.bool().sum()) * layout.factor
    if masks.rows is None and masks.keys is None:
        return batch * rows * keys * layout.factor
    per_row = keys if masks.keys is None else masks.keys.bool().sum(1)
    per_sample = rows if masks.rows is None else masks.rows.bool().sum(1)
    pairs = per_row * per_sample
    return (pairs.sum() if isinstance(pairs, Tensor) else batch * pairs) * layout.factor

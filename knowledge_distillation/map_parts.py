"""Attention a part of the map at a time: as many samples, heads or rows at once as stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .deferred import causal_mask

AT_ONCE = 1 << 19  # values

Part = tuple[slice, slice, slice]  # samples, heads and rows of a map


def parts_of(shape: torch.Size, at_once: int = AT_ONCE) -> Iterator[Part]:
    """Parts of a (batch, heads, length, keys) map, of about so many values each: whole samples, heads or rows."""
    batch, heads, length, keys = shape
    rows = min(length, max(1, at_once // keys))
    some = min(heads, max(1, at_once // (keys * length)))
    samples = max(1, at_once // (keys * length * heads))
    for b in range(0, batch, samples):
        for h in range(0, heads, some):
            for r in range(0, length, rows):
                yield slice(b, b + samples), slice(h, h + some), slice(r, r + rows)


def part_of(tensor: Tensor, part: Part) -> Tensor:
    """What belongs to a part of a map, of a tensor that is broadcast to it."""
    tensor = tensor[(None,) * (4 - tensor.dim())]
    return tensor[
        tuple(
            slice(None) if size == 1 else piece for size, piece in zip(tensor.shape, (*part, slice(None)), strict=True)
        )
    ]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float | None
) -> Tensor:
    """Attention without gradient, whose map is never whole: (batch, length, heads, head width).

    Args:
        query: (batch, heads, length, head width); `key` and `value` may have fewer heads (grouped queries).
        mask: as `AttentionMap` takes it; a row that may attend to nothing attends to all.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    closing = _closing(query, key, mask, causal)
    result = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    by_head = result.transpose(1, 2)
    scores = query.new_empty(0)
    for part in parts_of(torch.Size([*query.shape[:3], key.shape[2]])):
        some = query[part]
        queries, keys, values = (tensor.flatten(0, 1) for tensor in (some, key[part[:2]], value[part[:2]]))
        if scores.shape != (*queries.shape[:2], keys.shape[1]):
            scores = query.new_empty(*queries.shape[:2], keys.shape[1])
        if closing is None:
            torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=scale, out=scores)
        else:
            added = part_of(closing, part).expand(*some.shape[:2], -1, -1).flatten(0, 1)
            torch.baddbmm(added, queries, keys.mT, alpha=scale, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        by_head[part] = torch.bmm(scores, values).unflatten(0, some.shape[:2])
    return result


def _closing(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to scores so that those outside of the mask vanish; None where nothing has to."""
    if mask is None:
        if not causal or query.shape[2] == 1:
            return None
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    lowest = torch.finfo(query.dtype).min / 2  # a score beside it stays finite
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
    return mask.to(query.dtype).clamp(min=lowest)

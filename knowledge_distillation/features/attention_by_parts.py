"""Attention a part of the map at a time: as many samples, heads or rows at once as stay in a processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .deferred import causal_mask

AT_ONCE = 1 << 19  # values
_STEPS = 1 << 16  # of a probability of dropout

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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention whose map is never whole: (batch, length, heads, head width). The backward pass makes its parts again.

    Args:
        query: (batch, heads, length, head width); `key` and `value` may have fewer heads (grouped queries).
        mask: as `AttentionMap` takes it; a row that may attend to nothing attends to all.
        dropout: share of the probabilities that become 0, in steps of 2^-16, below 1.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query, key, value, _closing(query, key, mask, causal), scale, round(dropout * _STEPS))


class _Attention(torch.autograd.Function):
    """What it keeps for the backward pass is which probabilities dropout left, in one byte each."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, closing: Tensor | None, scale: float, steps: int
    ) -> Tensor:
        ctx.scale, ctx.steps, ctx.shape = scale, steps, torch.Size([*query.shape[:3], key.shape[2]])
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        result = query.new_empty(*query.shape[:2], value.shape[-1])
        maps, keep_masks = _Map(query, key, closing, ctx.shape[1], scale), []
        for part in parts_of(ctx.shape):
            heads, rows = _flat(part, ctx.shape)
            probabilities = maps.of(part, heads, rows)
            if steps:
                keep_masks.append(_keep_mask(probabilities.shape, steps))
                probabilities.mul_(keep_masks[-1])
            result[heads, rows] = _product(probabilities, value[heads], _factor(steps))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, closing, *keep_masks)
        return result.unflatten(0, ctx.shape[:2]).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, closing, *keep_masks = ctx.saved_tensors
        gradient, factor = gradient.transpose(1, 2).flatten(0, 1), _factor(ctx.steps)
        exact = torch.float32 if ctx.shape[2] * ctx.shape[3] > AT_ONCE else query.dtype  # for sums over parts
        to_query, to_key, to_value = (torch.empty_like(tensor, dtype=exact) for tensor in (query, key, value))
        maps = _Map(query, key, closing, ctx.shape[1], ctx.scale)
        for number, part in enumerate(parts_of(ctx.shape)):
            heads, rows = _flat(part, ctx.shape)
            above, probabilities = gradient[heads, rows], maps.of(part, heads, rows)
            dropped = probabilities * keep_masks[number] if keep_masks else probabilities
            slope = _product(above, value[heads].mT, factor)
            if keep_masks:
                slope.mul_(keep_masks[number])
            slope = torch._softmax_backward_data(slope, probabilities, -1, slope.dtype)
            to_query[heads, rows] = _product(slope, key[heads], ctx.scale)
            for total, piece in (
                (to_key[heads], _product(slope.mT, query[heads, rows], ctx.scale)),
                (to_value[heads], _product(dropped.mT, above, factor)),
            ):
                if rows.start:
                    total += piece
                else:
                    total.copy_(piece)
        gradients = (tensor.to(query.dtype).unflatten(0, ctx.shape[:2]) for tensor in (to_query, to_key, to_value))
        return *gradients, None, None, None


def _flat(part: Part, shape: torch.Size) -> tuple[slice, slice]:
    """A part's place among the heads of all samples, which are in a row, and its rows."""
    samples, heads, rows = part
    if samples.stop - samples.start > 1:
        return slice(samples.start * shape[1], samples.stop * shape[1]), rows
    first = samples.start * shape[1]
    return slice(first + heads.start, first + min(heads.stop, shape[1])), rows


class _Map:
    """The probabilities of a part, which the next one overwrites: (samples * heads, rows, keys)."""

    def __init__(self, query: Tensor, key: Tensor, closing: Tensor | None, number: int, scale: float) -> None:
        self.query, self.key, self.closing, self.scale = query, key, closing, scale
        self.number = number  # heads of a sample
        self._space = query.new_empty(0)

    def of(self, part: Part, heads: slice, rows: slice) -> Tensor:
        queries, keys = self.query[heads, rows], self.key[heads]
        shape = (*queries.shape[:2], keys.shape[1])
        if self._space.shape != shape:
            self._space = self.query.new_empty(shape)
        if self.closing is None:
            scores = torch.baddbmm(self._space, queries, keys.mT, beta=0, alpha=self.scale, out=self._space)
        else:
            of_a_sample = min(part[1].stop, self.number) - part[1].start
            added = part_of(self.closing, part).expand(shape[0] // of_a_sample, of_a_sample, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(added, queries, keys.mT, alpha=self.scale, out=self._space)
        return torch.softmax(scores, dim=-1, out=scores)


def _product(one: Tensor, other: Tensor, factor: float) -> Tensor:
    """The products of two stacks of matrices, scaled before they are rounded."""
    return torch.baddbmm(one.new_empty(1, 1, 1), one, other, beta=0, alpha=factor)


def _keep_mask(shape: torch.Size, steps: int) -> Tensor:
    """1 with a probability of 1 - steps / 2^16, else 0; of 16 random bits each, which is cheaper than `bernoulli_`."""
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[:size] >= steps - _STEPS // 2).view(torch.uint8).view(shape)


def _factor(steps: int) -> float:
    return _STEPS / (_STEPS - steps)


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

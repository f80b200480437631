"""Samples as rows, and how they stand to each other: what losses on relations are made of.

All relations are read off one matrix of inner products (batch, batch), so that a feature is gone through once and
nothing larger than it is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .checks import check_choice

POOLINGS = ("mean", "first")
CHUNK = 1 << 22  # numbers of a matrix at a time, where a loop takes the place of a larger tensor


def samples(
    student: Tensor, teacher: Tensor, mask: Tensor | None, teacher_mask: Tensor | None, pooling: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides as (batch, width), one row per sample, and (batch,) 1 for a sample that is there, else 0.

    Rows of samples that are not there are 0.
    """
    check_choice("pooling", pooling, POOLINGS)
    if student.shape[0] != teacher.shape[0]:
        raise ConfigError(
            f"samples are compared within a batch: the student has {student.shape[0]}, the teacher {teacher.shape[0]}"
        )
    fits = mask is not None and teacher.dim() == 3 and mask.shape == teacher.shape[:2]
    masks = (mask if student.dim() == 3 else None, mask if fits else teacher_mask if teacher.dim() == 3 else None)
    counted = student.new_ones(student.shape[0])
    rows = []
    for side, kept in zip((student, teacher), masks, strict=True):
        if kept is not None and kept.shape != side.shape[:2]:
            kept = None  # no mask of these tokens is known
        rows.append(row_per_sample(side, kept, pooling))
        if kept is not None:
            counted = counted * kept.bool().any(1)
    if any(kept is not None for kept in masks):
        rows = [torch.where(counted[:, None] > 0, side, 0.0) for side in rows]
    return rows[0], rows[1], counted


def row_per_sample(feature: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """(batch, width): tokens pooled, a map flattened, a vector as it is."""
    if feature.dim() != 3:
        return feature.flatten(1)
    if mask is None:
        return feature.mean(1) if pooling == "mean" else feature[:, 0]
    if pooling == "first":
        first = mask.byte().argmax(1)
        return feature.gather(1, first[:, None, None].expand(-1, 1, feature.shape[2]))[:, 0]
    weights = mask.to(feature.dtype)
    weights = weights / at_least_one(weights.sum(1, keepdim=True))
    return torch.einsum("bl,bld->bd", weights, feature)


class _Gram(torch.autograd.Function):
    """Inner products of all pairs of rows about their weighted centre: (x_i - c) . (x_j - c), c = sum_k weights_k x_k.

    Written out so that nothing as large as the rows is kept for the backward pass, which is one product of matrices.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, weights: Tensor | None) -> Tensor:
        context.save_for_backward(rows, weights)
        about = rows if weights is None else rows - weights @ rows
        return about @ about.mT

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, weights = context.saved_tensors
        pairs = gradient + gradient.mT
        if weights is not None:
            pairs = pairs - pairs.sum(1, keepdim=True) * weights
            pairs = pairs - weights[:, None] * pairs.sum(0)
        return pairs @ rows, None


def inner_products(rows: Tensor, counted: Tensor | None = None) -> Tensor:
    """(batch, batch) inner products; with `counted` about the mean of the samples that are there.

    Differences do not see the centre, and are exact to more digits about it.
    """
    weights = None if counted is None else (counted / at_least_one(counted.sum())).to(rows.dtype)
    return _Gram.apply(rows, weights)


def norms_of(gram: Tensor) -> Tensor:
    """(…, batch) lengths of the rows; what is divided by one is 0 where it is 0, and so is its derivative."""
    return unless_zero(gram.diagonal(dim1=-2, dim2=-1)).sqrt()


def cosines_of(gram: Tensor, epsilon: float = 0.0) -> Tensor:
    """(batch, batch); those with a row of length 0 are 0."""
    lengths = norms_of(gram) + epsilon
    return gram / lengths[:, None] / lengths


def squared_distances(gram: Tensor) -> Tensor:
    squares = gram.diagonal()
    return squares[:, None] + squares[None, :] - 2 * gram


def distances_of(gram: Tensor, counted: Tensor) -> Tensor:
    """(batch, batch); 0, without a gradient, where rounding is all the difference, or a sample is not there."""
    squares = gram.diagonal().detach()
    rounding = 8 * torch.finfo(gram.dtype).eps * (squares[:, None] + squares[None, :])
    squared = squared_distances(gram)
    apart = (squared > rounding) & (outer(counted) > 0)
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def unit(rows: Tensor) -> Tensor:
    """The rows (last dimension) divided by their length; rows of length 0 stay."""
    return rows / unless_zero(torch.linalg.vector_norm(rows, dim=-1, keepdim=True))


def inverse_of(x: Tensor) -> Tensor:
    """1 / x; 0, without a gradient, where x is 0."""
    return 1 / unless_zero(x)


def unless_zero(x: Tensor) -> Tensor:
    """x, what is divided by it 0 where it is 0."""
    return x.masked_fill(x < torch.finfo(x.dtype).tiny, torch.inf)


def outer(x: Tensor) -> Tensor:
    return x[:, None] * x[None, :]


def at_least_one(number: Tensor) -> Tensor:
    return number.clamp(min=1)

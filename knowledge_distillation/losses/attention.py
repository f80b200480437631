"""Losses on attention maps, and on relations between the tokens of queries, keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ConfigError


def attention_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of attention maps, one value per pair of a query row and a key.

    d(b, h, i, j) = (student[b, h, i, j] - teacher[b, h, i, j])^2

    Averaged over the rows and the keys that are not padding, it is sum / (heads * sum of length^2). The paper compares
    scores before softmax (`attention_scores`); probabilities (`attention`) may be compared as well.

    Args:
        student: (batch, heads, length, keys) attention map.
        teacher: same shape: the number of heads has to be equal.

    Returns:
        (batch, heads, length, keys), each value 0 or more.

    Source: Jiao et al., TinyBERT, 2020, eq. 7.
    """
    return F.mse_loss(student, teacher, reduction="none")


def attention_kl(student: Tensor, teacher: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Kullback-Leibler divergence of attention probabilities, one value per query row.

    d(b, h, i) = sum_j t(j) * (log t(j) - log s(j)),   s, t = student[b, h, i], teacher[b, h, i]

    Inside the logarithms a probability below epsilon counts as epsilon, and the gradient there is 0.

    Args:
        student: (batch, heads, length, keys) probabilities after softmax and before dropout: `layer{n}.attention`.
        teacher: same shape: the number of heads has to be equal.
        epsilon: above 0, and well below any probability that matters.

    Returns:
        (batch, heads, length), each value 0 or more.

    Raises:
        ConfigError: epsilon is not above 0.

    Source: Wang et al., MiniLM, 2020, eq. 6; the attention transfer of Sun et al., MobileBERT, 2020, eq. 3.
    """
    check_floor("attention_kl", epsilon)
    return _RowsOfProbabilities.apply(student, teacher, epsilon, True)


def attention_cross_entropy(student: Tensor, teacher: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Cross-entropy of attention probabilities, one value per query row.

    d(b, h, i) = - sum_j t(j) * log s(j),   s, t = student[b, h, i], teacher[b, h, i]

    It is `attention_kl` plus the entropy of the teacher's row: equal gradients, and for equal maps that entropy.

    Args:
        student: (batch, heads, length, keys) probabilities after softmax and before dropout: `layer{n}.attention`.
        teacher: same shape: the number of heads has to be equal.
        epsilon: above 0; inside the logarithm a smaller probability counts as epsilon, and the gradient there is 0.

    Returns:
        (batch, heads, length), each value 0 or more.

    Raises:
        ConfigError: epsilon is not above 0.

    Source: the loss `attention_ce` of Yang et al., TextBrewer, 2020.
    """
    check_floor("attention_cross_entropy", epsilon)
    return _RowsOfProbabilities.apply(student, teacher, epsilon, False)


def value_relation(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Value relation of MiniLM: divergence of the softmax of scaled products of values, one value per row.

    R(b, h, i, :) = softmax_j(V[b, h, i] . V[b, h, j] / sqrt(width)) over the tokens j that count
    d(b, h, i) = sum_j R_t(j) * (log R_t(j) - log R_s(j)),   R_s, R_t of row (b, h, i)

    Args:
        student: (batch, heads, length, width) values: `layer{n}.value`.
        teacher: the same number of heads; the width of a head may differ.
        mask: (batch, length), tokens that count; None keeps all.

    Returns:
        (batch, heads, length), each value 0 or more.

    Raises:
        ConfigError: the two sides hold different tokens, or different numbers of heads.

    Source: Wang et al., MiniLM: Deep Self-Attention Distillation, 2020, eq. 7 and 8.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            f"loss value_relation compares head by head, and the student has {student.shape[1]} heads, the teacher "
            f"{teacher.shape[1]}. Use qkv_relation, which forms heads of its own"
        )
    return _relation_divergence("value_relation", student, teacher, mask)


def qkv_relation(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, relation_heads: int | None = None
) -> Tensor:
    """Self-attention relation of MiniLM v2: as `value_relation`, on relation heads of its own, one value per token.

    X = the heads side by side, split anew into A relation heads of width d_r = width / A
    R(b, a, i, :) = softmax_j(X[b, a, i] . X[b, a, j] / sqrt(d_r)) over the tokens j that count
    d(b, i) = 1/A sum_a sum_j R_t(j) * (log R_t(j) - log R_s(j)),   R_s, R_t of row (b, a, i)

    Args:
        student: (batch, heads, length, width of a head) queries, keys or values, grouped ones too; or
            (batch, length, width) hidden states.
        teacher: the same tokens; heads and widths may differ.
        mask: (batch, length), tokens that count; None keeps all.
        relation_heads: A, a divisor of both whole widths; 48 for base models and 64 for large ones in the paper. None
            takes the smaller of the two numbers of heads, or the next number below that divides both whole widths; 1
            for hidden states.

    Returns:
        (batch, length), each value 0 or more.

    Raises:
        ConfigError: the two sides hold different tokens, or relation_heads does not divide a width.

    Source: Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, 2021, eq. 4 to 6.
    """
    heads = min(student.shape[1], teacher.shape[1]) if student.dim() == 4 else 1
    sides = [side.transpose(1, 2).flatten(2) if side.dim() == 4 else side for side in (student, teacher)]
    heads = _relation_heads(relation_heads, heads, *(side.shape[-1] for side in sides))
    student, teacher = (side.unflatten(-1, (heads, -1)).transpose(1, 2) for side in sides)
    return _relation_divergence("qkv_relation", student, teacher, mask).mean(1)


def _relation_heads(heads: int | None, most: int, *widths: int) -> int:
    common = math.gcd(*widths)
    if heads is None:
        return next(number for number in range(most, 0, -1) if common % number == 0)
    if not isinstance(heads, int) or heads < 1 or common % heads:
        fitting = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
        raise ConfigError(
            f"loss qkv_relation: relation_heads divides both widths, the student's {widths[0]} and the teacher's "
            f"{widths[1]}; found {heads!r}. These do: {fitting}"
        )
    return heads


def _relation_divergence(loss: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Divergence of the relations of features of equal heads: (batch, heads, length)."""
    batch, heads, length = student.shape[:3]
    if (batch, length) != (teacher.shape[0], teacher.shape[2]):
        raise ConfigError(
            f"loss {loss} compares relations between the same tokens, and the student has {batch} samples of length "
            f"{length}, the teacher {teacher.shape[0]} of length {teacher.shape[2]}. Use one tokenizer for both"
        )
    closed = None
    if mask is not None:  # added to the scores; finite, so that a sample without tokens gives a number
        closed = torch.zeros_like(mask, dtype=student.dtype)
        closed = closed.masked_fill_(~mask.bool(), torch.finfo(student.dtype).min / 2)
        closed = closed[:, None, None].expand(-1, heads, -1, -1).flatten(0, 1)
    rows = _RowsOfRelations.apply(student.flatten(0, 1), teacher.flatten(0, 1), closed)
    return rows.unflatten(0, (batch, heads))


def check_floor(loss: str, epsilon: float) -> None:
    if not 0 < epsilon < 1:
        raise ConfigError(f"loss {loss}: epsilon is above 0 and far below 1; found {epsilon!r}")


class _RowsOfProbabilities(torch.autograd.Function):
    """Divergence or cross-entropy of rows of probabilities; what it keeps for the backward pass are its inputs."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, epsilon: float, divergence: bool) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.epsilon = epsilon
        ratio = student.clamp(min=epsilon)
        if divergence:
            torch.div(ratio, teacher.clamp(min=epsilon), out=ratio)
        return ratio.log_().mul_(teacher).sum(-1).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        slope = F.threshold(student, ctx.epsilon, torch.inf)  # no slope below the floor
        return torch.div(teacher, slope, out=slope).mul_(-gradient[..., None]), None, None, None


class _RowsOfRelations(torch.autograd.Function):
    """Divergence of rows of softmax(X X^T / sqrt(width)); keeps one matrix per head, the gradient of the scores."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, closed: Tensor | None) -> Tensor:
        ours, theirs = (F.log_softmax(_scores(side, closed), dim=-1) for side in (student, teacher))
        relation = theirs.exp()
        value = theirs.sub_(ours).mul_(relation).sum(-1)
        ctx.save_for_backward(student, ours.exp_().sub_(relation))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, slope = ctx.saved_tensors
        slope = slope * (gradient * student.shape[-1] ** -0.5)[..., None]
        with torch.autocast(slope.device.type, enabled=False):  # a backward pass may be run inside one
            return torch.bmm(slope, student).baddbmm_(slope.mT, student), None, None


def _scores(feature: Tensor, closed: Tensor | None) -> Tensor:
    scale = feature.shape[-1] ** -0.5
    if closed is None:
        return torch.bmm(feature, feature.mT).mul_(scale)
    return torch.baddbmm(closed, feature, feature.mT, alpha=scale)

"""Losses on relations: how the samples of a batch, or the channels of a map, stand to each other.

Widths and shapes of the two sides may differ, because each side is compared with itself first. All relations of
samples are read off one matrix of inner products (batch, batch), so that a feature is gone through once and nothing
larger than it is made. The losses on samples see the local batch: that of one process, in one micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, nearest

POOLINGS = ("mean", "first")
KERNELS = ("taylor", "rbf", "bilinear")
CHUNK = 1 << 22  # numbers held at once where a loop takes the place of a larger tensor


def similarity_preserving(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Tensor:
    """Squared distance of the two matrices of similarities within the batch.

    G = F F^T,   G'[i] = G[i] / ||G[i]||,   loss = ||G'_s - G'_t||_F^2 / B^2

    F holds one sample per row: a vector as it is, a map flattened, tokens pooled. The batch is the local one, of one
    process and one micro-batch, and the value depends on its size B.

    Args:
        student: (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: any of these shapes, with the same batch.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: the batches differ in size, or the pooling is unknown.

    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019.
    """
    given, target, counted = samples(student, teacher, mask, teacher_mask, pooling)
    difference = unit(_gram(given)) - unit(_gram(target))
    return difference.square().sum() / _at_least_one(counted.sum().square())


def rkd_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
    average: str = "all",
) -> Tensor:
    """Difference of the distances between samples, each side measured in its own mean distance.

    D[i, j] = ||f_i - f_j|| / mean_{k != l} ||f_k - f_l||,   loss = mean_ij smooth_l1(D_s[i, j] - D_t[i, j])

    smooth_l1(x) = x^2 / 2 where |x| < 1, else |x| - 1/2. The batch is the local one, of one process and one
    micro-batch. Samples that no number of this precision can tell apart are at distance 0, without a gradient.

    Args:
        student: (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: any of these shapes, with the same batch.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).
        average: `all` divides by B^2, as the authors' code; `pairs` by the B (B - 1) pairs of two samples.

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: the batches differ in size, or an argument is unknown.

    Source: Park et al., Relational Knowledge Distillation, 2019.
    """
    check_choice("average", average, ("all", "pairs"))
    given, target, counted = samples(student, teacher, mask, teacher_mask, pooling)
    number = counted.sum()
    pairs = number * (number - 1)
    s, t = (_distances(_gram(side, counted), counted) for side in (given, target))
    s, t = (distances * _inverse(distances.sum()) * pairs for distances in (s, t))
    difference = F.smooth_l1_loss(s, t, reduction="sum")
    return difference / _at_least_one(pairs if average == "pairs" else number**2)


def rkd_angle(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
    average: str = "all",
) -> Tensor:
    """Difference of the angles that samples make with each other.

    A[j, i, k] = cos(f_i - f_j, f_k - f_j),   loss = mean_ijk smooth_l1(A_s[j, i, k] - A_t[j, i, k])

    smooth_l1(x) = x^2 / 2 where |x| < 1, else |x| - 1/2. The cosine with a difference of length 0 is 0. The angles
    are taken from the inner products of samples, some vertices j at a time. The batch is the local one, of one
    process and one micro-batch.

    Args:
        student: (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: any of these shapes, with the same batch.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).
        average: `all` divides by B^3, as the authors' code; `triples` takes the B (B - 1) (B - 2) triples of three
            samples alone.

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: the batches differ in size, or an argument is unknown.

    Source: Park et al., Relational Knowledge Distillation, 2019.
    """
    check_choice("average", average, ("all", "triples"))
    given, target, counted = samples(student, teacher, mask, teacher_mask, pooling)
    number = counted.sum()
    s, t = (_gram(side, counted) for side in (given, target))
    sides = (s, _inverse(_distances(s, counted)), t, _inverse(_distances(t, counted)))
    total = _by_vertex(*sides, distinct=average == "triples")
    distinct = number * (number - 1) * (number - 2)
    return total / _at_least_one(distinct if average == "triples" else number**3)


def correlation_congruence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
    kernel: str = "taylor",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Mean squared difference of the two matrices of correlations within the batch.

    loss = mean_ij (k(s_i, s_j) - k(t_i, t_j))^2,   s, t of length 1
    taylor:   k(a, b) = exp(-2 gamma) * sum_{p = 0 .. order} (2 gamma)^p / p! * (a . b)^p
    rbf:      k(a, b) = exp(-gamma ||a - b||^2), which the Taylor series goes to
    bilinear: k(a, b) = a . b

    The batch is the local one, of one process and one micro-batch.

    Args:
        student: (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: any of these shapes, with the same batch.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).
        kernel: `taylor`, `rbf` or `bilinear`.
        gamma: above 0; not used by `bilinear`.
        order: of the Taylor series, 1 or more; used by `taylor` alone.

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: the batches differ in size, or an argument is unknown or out of its range.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, 2019.
    """
    check_choice("kernel", kernel, KERNELS)
    _above_zero("gamma", gamma)
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ConfigError(f"order is a whole number of 1 or more; found {order!r}")
    given, target, counted = samples(student, teacher, mask, teacher_mask, pooling)

    def correlations(rows: Tensor) -> Tensor:
        cosines = _cosines(_gram(rows))
        if kernel == "bilinear":
            return cosines
        if kernel == "rbf":
            return torch.exp(-gamma * _squared_distances(cosines))
        series = 2 * gamma / order * cosines + 1
        for power in range(order - 1, 0, -1):
            series = 2 * gamma / power * cosines * series + 1
        return math.exp(-2 * gamma) * series

    difference = correlations(given) - correlations(target)  # 0 for a sample that is not there: both sides hold 0
    return difference.square().sum() / _at_least_one(counted.sum().square())


def pkt(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
    average: str = "all",
    epsilon: float = 1e-7,
) -> Tensor:
    """Divergence of the probabilities with which samples are each other's neighbours.

    K[i, j] = (1 + cos(f_i, f_j)) / 2,   P[i, j] = K[i, j] / sum_k K[i, k]
    loss = mean_ij P_t[i, j] * log((P_t[i, j] + epsilon) / (P_s[i, j] + epsilon))

    Lengths have epsilon added as well before they divide. On equal models the value is 0 and the gradient of the
    size of epsilon. The batch is the local one, of one process and one micro-batch.

    Args:
        student: (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: any of these shapes, with the same batch.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).
        average: `all` is the mean over B^2 pairs, those of a sample with itself included, as the authors' code;
            `off_diagonal_sum` leaves these out of P and sums over all others, as the paper.
        epsilon: above 0.

    Returns:
        A scalar, 0 or more but for epsilon.

    Raises:
        ConfigError: the batches differ in size, or an argument is unknown or out of its range.

    Source: Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018.
    """
    check_choice("average", average, ("all", "off_diagonal_sum"))
    _above_zero("epsilon", epsilon)
    given, target, counted = samples(student, teacher, mask, teacher_mask, pooling)
    pairs = _outer(counted)
    if average == "off_diagonal_sum":
        pairs = pairs - torch.diag(pairs.diagonal())

    def probabilities(rows: Tensor) -> Tensor:
        kernel = (1 + _cosines(_gram(rows), epsilon)).relu() * pairs  # twice K, which does not change P
        return kernel / _unless_zero(kernel.sum(1, keepdim=True))

    p_s, p_t = probabilities(given), probabilities(target)
    divergence = (p_t * ((p_t + epsilon) / (p_s + epsilon)).log()).sum()
    return divergence if average == "off_diagonal_sum" else divergence / _at_least_one(pairs.sum())


def nst(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Distance of the two distributions of channels over places, one value per sample.

    MMD^2 = mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c'),   k(x, y) = (x . y)^2

    s_c is what channel c shows at every place, divided by its length. On tokens the places are the tokens that count
    and the channels the dimensions of their width. As sum_cc' (x_c . y_c')^2 = ||X Y^T||_F^2 = <X^T X, Y^T Y>, either
    inner products of channels or those of places do, whichever are fewer.

    Args:
        student: (batch, channels, height, width), or (batch, length, width).
        teacher: the same kind; the numbers of channels may differ. Maps of another size are averaged, where they are
            larger, down to the smaller (adaptive average pooling); lengths are equal.
        mask: (batch, length) bool, the tokens that count. None counts all.

    Returns:
        (batch,), each value 0 or more.

    Raises:
        ConfigError: the two sides differ in kind, batch or length.

    Source: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017.
    """
    given, target = _channels(student, teacher, mask)
    (wide, places), other = given.shape[1:], target.shape[1]
    if places * (wide + other) <= wide**2 + wide * other + other**2:
        s, t = (side.mT @ side / max(side.shape[1], 1) for side in (unit(given), unit(target)))
        return (s - t).square().sum((1, 2))
    ss, tt, st = given @ given.mT, target @ target.mT, given @ target.mT
    s, t = (1 / _lengths(gram) for gram in (ss, tt))
    return _likeness(tt, t, t) + _likeness(ss, s, s) - 2 * _likeness(st, s, t)


# --- what counts as a sample -------------------------------------------------------------------------------------


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
    weights = weights / _at_least_one(weights.sum(1, keepdim=True))
    return torch.einsum("bl,bld->bd", weights, feature)


# --- relations of samples ----------------------------------------------------------------------------------------


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
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        rows, weights = context.saved_tensors
        pairs = gradient + gradient.mT
        if weights is not None:
            pairs = pairs - pairs.sum(1, keepdim=True) * weights
            pairs = pairs - weights[:, None] * pairs.sum(0)
        return pairs @ rows, None


def _gram(rows: Tensor, counted: Tensor | None = None) -> Tensor:
    """(batch, batch) inner products; with `counted` about the mean of the samples that are there.

    Differences do not see the centre, and are exact to more digits about it.
    """
    weights = None if counted is None else (counted / _at_least_one(counted.sum())).to(rows.dtype)
    return _Gram.apply(rows, weights)  # type: ignore[no-untyped-call]


def _lengths(gram: Tensor) -> Tensor:
    """(…, batch) lengths of the rows; what is divided by one is 0 where it is 0, and so is its derivative."""
    return _unless_zero(gram.diagonal(dim1=-2, dim2=-1)).sqrt()


def _cosines(gram: Tensor, epsilon: float = 0.0) -> Tensor:
    """(batch, batch); those with a row of length 0 are 0."""
    lengths = _lengths(gram) + epsilon
    return gram / lengths[:, None] / lengths


def _squared_distances(gram: Tensor) -> Tensor:
    squares = gram.diagonal()
    return squares[:, None] + squares[None, :] - 2 * gram


def _distances(gram: Tensor, counted: Tensor) -> Tensor:
    """(batch, batch); 0, without a gradient, where rounding is all the difference, or a sample is not there."""
    squares = gram.diagonal().detach()
    rounding = 8 * torch.finfo(gram.dtype).eps * (squares[:, None] + squares[None, :])
    squared = _squared_distances(gram)
    apart = (squared > rounding) & (_outer(counted) > 0)
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def _by_vertex(gram_s: Tensor, inverse_s: Tensor, gram_t: Tensor, inverse_t: Tensor, distinct: bool) -> Tensor:
    """Sum of the differences of all angles; one chunk of vertices is held at a time, in the backward pass as well."""
    batch = len(gram_s)
    size = max(1, CHUNK // max(1, batch**2))

    def of(vertices: slice) -> Tensor:
        return _angle_difference(gram_s, inverse_s, gram_t, inverse_t, vertices, distinct)

    if batch <= size:
        return of(slice(None))
    parts = [slice(start, start + size) for start in range(0, batch, size)]
    return torch.stack([checkpoint(of, part, use_reentrant=False, preserve_rng_state=False) for part in parts]).sum()


def _angle_difference(
    gram_s: Tensor, inverse_s: Tensor, gram_t: Tensor, inverse_t: Tensor, vertices: slice, distinct: bool
) -> Tensor:
    angles_s, angles_t = _angles(gram_s, inverse_s, vertices), _angles(gram_t, inverse_t, vertices)
    differences = F.smooth_l1_loss(angles_s, angles_t, reduction="none")
    if distinct:
        differences = differences * (1 - torch.eye(len(gram_s), dtype=gram_s.dtype, device=gram_s.device))
    return differences.sum()


def _angles(gram: Tensor, inverse: Tensor, vertices: slice) -> Tensor:
    """(vertices, batch, batch) cosines of the angles at some vertices; `inverse` of the distances."""
    there, own, inverse = gram[vertices], gram.diagonal()[vertices, None, None], inverse[vertices]
    products = gram - there[:, :, None] - there[:, None, :] + own
    return products * inverse[:, :, None] * inverse[:, None, :]


# --- relations of channels ---------------------------------------------------------------------------------------


def _channels(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both sides as (batch, channels, places), 0 at places that do not count."""
    found = f"the student's feature is {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
    if student.dim() != teacher.dim() or student.shape[0] != teacher.shape[0]:
        raise ConfigError(f"nst compares two maps, or two features of tokens, of one batch: {found}")
    if student.dim() == 4:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        pooled = (s if s.shape[2:] == size else F.adaptive_avg_pool2d(s, size) for s in (student, teacher))
        given, target = (side.flatten(2) for side in pooled)
        return given, target
    if student.shape[1] != teacher.shape[1]:
        raise ConfigError(f"nst compares tokens place by place, so lengths are equal: {found}")
    if mask is not None:
        student, teacher = (torch.where(mask.bool()[:, :, None], side, 0.0) for side in (student, teacher))
    return student.mT, teacher.mT


def _likeness(products: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """(batch,) mean of the squared cosines, from inner products and inverse lengths of channels."""
    return (products * s[:, :, None] * t[:, None, :]).square().mean((1, 2))


# --- small change ------------------------------------------------------------------------------------------------


def unit(rows: Tensor) -> Tensor:
    """The rows (last dimension) divided by their length; rows of length 0 stay."""
    return rows / _unless_zero(torch.linalg.vector_norm(rows, dim=-1, keepdim=True))


def _inverse(x: Tensor) -> Tensor:
    """1 / x; 0, without a gradient, where x is 0."""
    return 1 / _unless_zero(x)


def _unless_zero(x: Tensor) -> Tensor:
    """x, what is divided by it 0 where it is 0."""
    return x.masked_fill(x < torch.finfo(x.dtype).tiny, torch.inf)


def _outer(x: Tensor) -> Tensor:
    return x[:, None] * x[None, :]


def _at_least_one(number: Tensor) -> Tensor:
    return number.clamp(min=1)


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is one of {', '.join(known)}; found {value!r}.{nearest(str(value), known)}")


def _above_zero(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} is a number above 0; found {value!r}")

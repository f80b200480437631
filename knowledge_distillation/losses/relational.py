"""Losses on relations: how the samples of a batch stand to each other.

Widths and shapes of the two sides may differ, because each side is compared with itself first. They see the local
batch: that of one process, in one micro-batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .checks import check_choice, check_number_above_0, check_whole
from .samples import (
    CHUNK,
    at_least_one,
    cosines_of,
    distances_of,
    inner_products,
    inverse_of,
    outer,
    samples,
    squared_distances,
    unit,
    unless_zero,
)

KERNELS = ("taylor", "rbf", "bilinear")


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
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)
    difference = unit(inner_products(student_rows)) - unit(inner_products(teacher_rows))
    return difference.square().sum() / at_least_one(counted.sum().square())


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
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)
    number = counted.sum()
    pairs = number * (number - 1)
    s, t = (distances_of(inner_products(side, counted), counted) for side in (student_rows, teacher_rows))
    s, t = (distances * inverse_of(distances.sum()) * pairs for distances in (s, t))
    difference = F.smooth_l1_loss(s, t, reduction="sum")
    return difference / at_least_one(pairs if average == "pairs" else number**2)


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
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)
    number = counted.sum()
    s, t = (inner_products(side, counted) for side in (student_rows, teacher_rows))
    sides = (s, inverse_of(distances_of(s, counted)), t, inverse_of(distances_of(t, counted)))
    total = _by_vertex(*sides, distinct=average == "triples")
    distinct = number * (number - 1) * (number - 2)
    return total / at_least_one(distinct if average == "triples" else number**3)


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
    check_number_above_0("gamma", gamma)
    check_whole("order", order, 1)
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)

    def correlations(rows: Tensor) -> Tensor:
        cosines = cosines_of(inner_products(rows))
        if kernel == "bilinear":
            return cosines
        if kernel == "rbf":
            return torch.exp(-gamma * squared_distances(cosines))
        series = 2 * gamma / order * cosines + 1
        for power in range(order - 1, 0, -1):
            series = 2 * gamma / power * cosines * series + 1
        return math.exp(-2 * gamma) * series

    difference = correlations(student_rows) - correlations(
        teacher_rows
    )  # 0 for a sample that is not there: both sides hold 0
    return difference.square().sum() / at_least_one(counted.sum().square())


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
    check_number_above_0("epsilon", epsilon)
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)
    pairs = outer(counted)
    if average == "off_diagonal_sum":
        pairs = pairs - torch.diag(pairs.diagonal())

    def probabilities(rows: Tensor) -> Tensor:
        kernel = (1 + cosines_of(inner_products(rows), epsilon)).relu() * pairs  # twice K, which does not change P
        return kernel / unless_zero(kernel.sum(1, keepdim=True))

    p_s, p_t = probabilities(student_rows), probabilities(teacher_rows)
    divergence = (p_t * ((p_t + epsilon) / (p_s + epsilon)).log()).sum()
    return divergence if average == "off_diagonal_sum" else divergence / at_least_one(pairs.sum())


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

"""Losses on hidden states, pooled vectors and other features compared position by position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .checks import check_above_0
from .samples import unit


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of hidden states, one value per item.

    d(i) = mean_k (student[i, k] - teacher[i, k])^2

    Args:
        student: (batch, length, width) hidden states, or any shape with the compared dimension last.
        teacher: same shape.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Source: Jiao et al., TinyBERT, 2020, eq. 8.
    """
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def cos(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the cosine distance, one value per item: 0 for equal directions, 1 for opposite ones.

    d(i) = 0.5 - 0.5 * cos(student[i], teacher[i])

    Args:
        student: (batch, length, width) or (batch, width).
        teacher: same shape.

    Returns:
        The shape without its last dimension, in [0, 1].

    Source: after Sanh et al., DistilBERT, 2019, whose cosine loss is twice this one.
    """
    return 0.5 * hidden_cosine(student, teacher)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine distance of hidden states, one value per item: 0 for equal directions, 2 for opposite ones.

    d(i) = 1 - student[i] . teacher[i] / (||student[i]|| ||teacher[i]||)

    A vector of zeros has no direction: its distance is 1, with gradient 0.

    Args:
        student: (batch, length, width) hidden states, or any shape with the compared dimension last.
        teacher: same shape.

    Returns:
        The shape without its last dimension, in [0, 2].

    Source: Sanh et al., DistilBERT, a distilled version of BERT, 2019, section 2.
    """
    lengths = torch.linalg.vector_norm(student, dim=-1) * torch.linalg.vector_norm(teacher, dim=-1)
    return 1 - (student * teacher).sum(-1) / lengths.masked_fill(lengths == 0, torch.inf)


def pkd(student: Tensor, teacher: Tensor, mask: Tensor | None = None, mean_all: bool = False) -> Tensor:
    """Patient distillation: squared distance of the normalised vectors of the first token, one value per sample.

    d(b) = sum_k (s[k] / ||s|| - t[k] / ||t||)^2,   s, t = student[b, first], teacher[b, first]

    The first token that counts is [CLS], with padding on either side. A vector of zeros stays one, with gradient 0.

    Args:
        student: (batch, width) vectors, or (batch, length, width) hidden states.
        teacher: same shape.
        mask: (batch, length), tokens that count; None for vectors, and where all tokens do.
        mean_all: divide by the width too, as the authors' code does; their weights belong to that value.

    Returns:
        (batch,), each in [0, 4]; in [0, 4 / width] with `mean_all`.

    Source: Sun et al., Patient Knowledge Distillation for BERT Model Compression, 2019, eq. 7.
    """
    if student.dim() == 3 and mask is None:
        student, teacher = student[:, 0], teacher[:, 0]
    elif mask is not None and student.dim() == 3:
        batch, first = (
            torch.arange(len(student), device=student.device),
            mask.int().argmax(1),
        )  # of equal ones, the first
        student, teacher = student[batch, first], teacher[batch, first]
    error = (unit(student) - unit(teacher)).square()
    return error.mean(-1) if mean_all else error.sum(-1)


def mobilebert_feature(student: Tensor, teacher: Tensor, layer_norm: bool = False, epsilon: float = 1e-3) -> Tensor:
    """Feature map transfer of MobileBERT: mean squared error of the outputs of two blocks, one value per item.

    d(i) = mean_k (student[i, k] - teacher[i, k])^2

    Args:
        student: (batch, length, width) or (batch, width).
        teacher: same shape.
        layer_norm: compare (x - mean(x)) / sqrt(var(x) + epsilon) over the width instead of x, as the released code.
        epsilon: above 0, used with `layer_norm`; 1e-3 in the released code.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: epsilon is not above 0.

    Source: Sun et al., MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices, 2020, eq. 2.
    """
    check_above_0("loss mobilebert_feature: epsilon", epsilon)
    if layer_norm:
        student, teacher = (F.layer_norm(side, side.shape[-1:], eps=epsilon) for side in (student, teacher))
    return hidden_mse(student, teacher)


def cka(student: Tensor, teacher: Tensor, mask: Tensor | None = None, debiased: bool = False) -> Tensor:
    """One minus the linear centred kernel alignment of all items of the batch: 0 up to rotation, shift and scale.

    d = 1 - hsic(X, Y) / sqrt(hsic(X, X) hsic(Y, Y)),   hsic(X, Y) = ||Y^T X||_F^2
    debiased: hsic(X, Y) = ||Y^T X||_F^2 - n / (n - 2) sum_i x_i y_i + sum_i x_i sum_i y_i / ((n - 1) (n - 2))

    X and Y hold the n items that count, less their mean; x_i and y_i are the squared lengths of their rows. The items
    are those of the batch on this device. A student that is one point is at distance 1 with gradient 0; where the
    teacher is (one item, or for `debiased` fewer than 4), there is nothing to learn and the loss is 0.

    Args:
        student: (batch, width) vectors or (batch, length, width) hidden states.
        teacher: the same items; the width may differ.
        mask: (batch, length), tokens that count; None for vectors, and where all tokens do.
        debiased: with the unbiased estimate of hsic; the plain one is too high where n is not far above the width.

    Returns:
        A scalar in [0, 1]; in [0, 2] with `debiased`.

    Raises:
        ConfigError: the two sides hold different items.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, 2019, eq. 3 to 5; the unbiased
        estimate of Song et al., Feature Selection via Dependence Maximization, 2012, eq. 5, for rows that sum to 0.
    """
    _same_items("cka", student, teacher)
    x, y = student.flatten(0, -2), teacher.flatten(0, -2)
    weight = x.new_ones(len(x)) if mask is None else mask.flatten().to(x.dtype)
    number = weight.sum()
    x, y = _centred(x, weight, number), _centred(y, weight, number)
    products = _products_of_items if len(x) * (x.shape[1] + y.shape[1]) < _size(x, y) else _products_of_widths
    hsic = torch.stack(products(x, y))
    if debiased:
        a, b = (torch.linalg.vector_norm(side, dim=1).square() for side in (x, y))
        own, sums = torch.stack([a @ b, a @ a, b @ b]), torch.stack([a.sum() * b.sum(), a.sum() ** 2, b.sum() ** 2])
        rest = (number - 2).clamp(min=1)
        hsic = hsic - number / rest * own + sums / (rest * (number - 1).clamp(min=1))
        hsic = hsic * (number > 3)
    real = hsic.detach() > 8 * torch.finfo(x.dtype).eps
    length = hsic[1:].masked_fill(~real[1:], 1.0).sqrt()
    similarity = hsic[0] / length.prod()
    return (1 - similarity.masked_fill(~real[1], 0.0)).masked_fill(~real[2], 0.0)


def gram(student: Tensor, teacher: Tensor, mask: Tensor | None = None, channel: bool = False) -> Tensor:
    """Squared error of relation matrices between tokens, or between channels.

    d(b, i, j) = (student[b, i] . student[b, j] / D_s - teacher[b, i] . teacher[b, j] / D_t)^2
    channel: d(b) = mean_kl (sum_i student[b, i, k] student[b, i, l] - sum_i teacher[b, i, k] teacher[b, i, l])^2 / L^2

    Args:
        student: (batch, length, width D_s) hidden states.
        teacher: (batch, length, width D_t); without `channel` the width may differ.
        mask: (batch, length), tokens that count; L is their number in a sample. None keeps all.
        channel: compare channels instead of tokens.

    Returns:
        (batch, 1, length, length), one value per pair of tokens; (batch,) with `channel`. Each value is 0 or more.

    Raises:
        ConfigError: the two sides hold different tokens, or `channel` compares different widths.

    Source: the losses `mmd` and `fsp` of Yang et al., TextBrewer, 2020, with one layer on both ends; after Huang and
        Wang, Like What You Like, 2017, and Yim et al., A Gift from Knowledge Distillation, 2017.
    """
    _same_items("gram", student, teacher)
    if not channel:
        width = student.shape[-1]
        difference = torch.bmm(teacher, teacher.mT).baddbmm_(student, student.mT, beta=-width / teacher.shape[-1])
        return difference.square().mul_(width**-2)[:, None]
    if student.shape[-1] != teacher.shape[-1]:
        raise ConfigError(
            f"loss gram with channel: true compares channels, and the student has {student.shape[-1]}, the teacher "
            f"{teacher.shape[-1]}. Choose equal widths, or channel: false"
        )
    difference = torch.bmm(teacher.mT, teacher).baddbmm_(student.mT, student, beta=-1)
    length = student.shape[1] if mask is None else mask.sum(1).clamp(min=1)
    return difference.square().mean((1, 2)) / length**2


def _same_items(loss: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ConfigError(
            f"loss {loss} compares the same items, and the student's feature is {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}. Only the last dimension may differ"
        )


def _centred(items: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    """The items less their mean, with sum of squares 1; all 0 where they differ by no more than rounding."""
    centred = items - (weight @ items) / number.clamp(min=1)
    with torch.no_grad():
        spread, size = (weight @ torch.linalg.vector_norm(x, dim=1).square() for x in (centred, items))
        rounding = 8 * len(items) ** 0.5 * torch.finfo(items.dtype).eps
        real = spread > rounding**2 * size
        scale = weight * torch.where(real, spread, 1.0).rsqrt() * real
    return centred * scale[:, None]


def _size(x: Tensor, y: Tensor) -> int:
    return x.shape[1] ** 2 + x.shape[1] * y.shape[1] + y.shape[1] ** 2


def _products_of_items(x: Tensor, y: Tensor) -> list[Tensor]:
    """||Y^T X||_F^2, ||X^T X||_F^2 and ||Y^T Y||_F^2 from the inner products of items: cheap where they are few."""
    ours, theirs = (x @ x.mT).flatten(), (y @ y.mT).flatten()
    return [ours @ theirs, ours @ ours, theirs @ theirs]


def _products_of_widths(x: Tensor, y: Tensor) -> list[Tensor]:
    """The same three from the covariances of dimensions: cheap where items are many."""
    return [product.flatten() @ product.flatten() for product in (y.mT @ x, x.mT @ x, y.mT @ y)]

"""Losses on feature maps of image models; most take tokens as well, whose positions are a map of one row."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError


def fitnet_hint(student: Tensor, teacher: Tensor, half_sum: bool = False) -> Tensor:
    """Squared error of a hint, one value per item: per sample of a map, per vector, per token.

    d(i) = mean over the elements of item i of (student - teacher)^2,   half_sum: 1/2 * sum over them

    The paper's regressor is the entry's projection: on maps a 1x1 convolution, else a linear map.

    Args:
        student: (batch, channels, height, width) map, (batch, width) or (batch, length, width).
        teacher: same shape.
        half_sum: the paper's 1/2 * ||teacher - student||^2 in place of the mean of later codes.

    Returns:
        (batch,) of maps and vectors, (batch, length) of tokens; each value 0 or more.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, eq. 3.
    """
    error = F.mse_loss(student, teacher, reduction="none")
    error = error.flatten(1) if student.dim() == 4 else error
    return error.sum(-1) / 2 if half_sum else error.mean(-1)


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor | None = None, norm: bool = False) -> Tensor:
    """Squared difference of the spatial attention of two maps, one value per sample.

    d(b) = mean_p (n(Q_s(b))[p] - n(Q_t(b))[p])^2,   Q(b)[p] = mean_c F(b, c, p)^2,   n(Q) = Q / ||Q||_2

    p runs over the positions: of a map its height and width, of tokens those that count. Where two maps differ in
    size, the larger is average-pooled first. Channels may differ.

    Args:
        student: (batch, channels, height, width) map or (batch, length, width) tokens.
        teacher: the same kind with any number of channels; tokens of the same length.
        mask: (batch, length), the tokens that count; None counts all.
        norm: the paper's ||n(Q_s) - n(Q_t)||_2, not squared and not divided by the number of positions.

    Returns:
        (batch,), each value 0 or more; 0 for a sample without any token.

    Raises:
        ConfigError: the lengths differ.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017, eq. 2, and the authors' code.
    """
    check_positions("attention_transfer", student, teacher)
    if student.dim() == 4:
        student, teacher = pooled_alike(student, teacher)
    difference = _attention(student, mask) - _attention(teacher, mask)
    number = difference.shape[1] if mask is None or student.dim() == 4 else mask.sum(1).clamp(min=1)
    return torch.linalg.vector_norm(difference, dim=1) if norm else difference.square().sum(1) / number


def fsp(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], squared_frobenius: bool = False) -> Tensor:
    """Squared difference of the flow between two layers, one value per sample.

    d(b) = mean_{c1,c2} (G_s(b)[c1, c2] - G_t(b)[c1, c2])^2,   G(b) = F1(b) F2(b)^T / (height * width)

    Where F1 and F2 of one model differ in size, the larger is average-pooled (the paper max-pools). The student's size
    need not be the teacher's, but its channels must be, layer by layer.

    Args:
        student: F1 and F2, (batch, channels, height, width) each.
        teacher: F1 and F2 of the same numbers of channels.
        squared_frobenius: the paper's ||G_s - G_t||_F^2, the sum over c1 and c2, in place of the mean.

    Returns:
        (batch,), each value 0 or more.

    Raises:
        ConfigError: a side has not two maps, or the channels differ.

    Source: Yim et al., A Gift from Knowledge Distillation, 2017, eq. 1 and 2.
    """
    channels = [tuple(feature.shape[1] for feature in side if feature.dim() == 4) for side in (student, teacher)]
    if any(len(side) != 2 for side in (student, teacher, *channels)):
        shapes = " and ".join(str([tuple(feature.shape) for feature in side]) for side in (student, teacher))
        raise ConfigError(f"loss fsp compares two maps of the student with two of the teacher; found {shapes}")
    if channels[0] != channels[1]:
        raise ConfigError(
            f"loss fsp: the student's maps have {channels[0][0]} and {channels[0][1]} channels, the teacher's "
            f"{channels[1][0]} and {channels[1][1]}. Channels are compared one by one: choose layers of equal "
            "numbers, or set projection: linear"
        )
    error = F.mse_loss(_flow(*student), _flow(*teacher), reduction="none").flatten(1)
    return error.sum(1) if squared_frobenius else error.mean(1)


def channel_wise(student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of where each channel looks, times temperature squared, one value per sample.

    d(b) = T^2 * mean_c sum_p q_t(b, c, p) * (log q_t(b, c, p) - log q_s(b, c, p)),   q = softmax over p of F / T

    p runs over the positions: of a map its height and width, of tokens those that count.

    Args:
        student: (batch, channels, height, width) map or (batch, length, width) tokens.
        teacher: same shape.
        mask: (batch, length), the tokens that count; None counts all.
        temperature: above 0; 4 on segmentation logits in the authors' code, 1 elsewhere.

    Returns:
        (batch,), each value 0 or more; 0 for a sample without any token.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2021, eq. 4 and 5.
    """
    log_student = _log_softmax_of_positions(student / temperature, mask)
    log_teacher = _log_softmax_of_positions(teacher.detach() / temperature, mask)
    divergence = (log_teacher - log_student).mul_(log_teacher.exp_())  # in place: maps are large
    return divergence.sum(2).mean(1) * temperature**2


class VariationalInformation(nn.Module):
    """Negative log-likelihood of the teacher's feature under a Gaussian around a regression of the student's.

    d(i) = mean over the elements of item i of 1/2 * ((teacher - r(student))^2 / var_c + log var_c)
    var_c = softplus(v_c) + epsilon

    r, three 1x1 convolutions (linear maps, of vectors and tokens) with ReLUs between, and v are learned. Where two
    maps differ in size, the larger is average-pooled first. Values may be negative, and are not 0 for equal models.

    Args:
        student: (batch, channels, height, width) map, (batch, width) or (batch, length, width).
        teacher: the same kind with any number of channels; tokens of the same length.
        regressor: False has the student's feature itself, projected where the entry says so, in place of r.
        variance: of every channel at the start, above epsilon; 5 in the authors' code.
        epsilon: the least variance, above 0.

    Returns:
        (batch,) of maps and vectors, (batch, length) of tokens.

    Raises:
        ConfigError: the variance is not above epsilon, or shapes differ that are not regressed.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019, eq. 5 and 6.
    """

    name_of = "variational_information"

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        regressor: bool = True,
        variance: float = 5.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 < epsilon < variance:
            raise ConfigError(
                "loss variational_information: epsilon is above 0 and variance above epsilon; found epsilon "
                f"{epsilon} and variance {variance}"
            )
        axis = 1 if teacher.dim() == 4 else -1
        width = teacher.shape[axis]
        self.epsilon = epsilon
        self.regressor = _regressor(student.dim(), student.shape[axis], width) if regressor else nn.Identity()
        self.raw_variance = nn.Parameter(torch.full((width,), math.log(math.expm1(variance - epsilon))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_positions("variational_information", student, teacher)
        if student.dim() == 4:
            student, teacher = pooled_alike(student, teacher)
        mean = self.regressor(student)
        if mean.shape != teacher.shape:
            raise ConfigError(
                f"loss variational_information: without a regressor {tuple(mean.shape)} is compared with "
                f"{tuple(teacher.shape)}. Leave regressor on, or set projection: linear"
            )
        error = F.mse_loss(mean, teacher, reduction="none")
        error = error.mean((2, 3)) if error.dim() == 4 else error
        variance = F.softplus(self.raw_variance) + self.epsilon
        return (error @ variance.reciprocal() / variance.numel() + variance.log().mean()) / 2


def pooled_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and the smaller width of both, by adaptive average pooling."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    pooled = [f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size) for f in (first, second)]
    return pooled[0], pooled[1]


def check_positions(name: str, student: Tensor, teacher: Tensor) -> None:
    """See that both features are of one kind, and tokens of one length: maps alone are pooled."""
    lengths = [feature.shape[1] if feature.dim() == 3 else 0 for feature in (student, teacher)]
    if student.dim() != teacher.dim() or lengths[0] != lengths[1]:
        raise ConfigError(
            f"loss {name} compares position with position: {tuple(student.shape)} of the student and "
            f"{tuple(teacher.shape)} of the teacher differ. Maps may differ in size, tokens need one length"
        )


def _attention(feature: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, positions): mean of squares over channels, L2-normalised."""
    energy = feature.square().mean(1).flatten(1) if feature.dim() == 4 else feature.square().mean(2)
    if mask is not None and feature.dim() == 3:
        energy = torch.where(mask.bool(), energy, 0.0)
    return F.normalize(energy, dim=1)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """(batch, channels, channels): the products of two maps, averaged over positions."""
    first, second = pooled_alike(first, second)
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / (first.shape[2] * first.shape[3])


def _log_softmax_of_positions(feature: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, channels, positions): the log of each channel's softmax over positions."""
    if feature.dim() == 4:
        return F.log_softmax(feature.flatten(2), dim=2)
    if mask is not None:  # a finite number: of a sample without any token, -inf would make nan
        feature = feature.masked_fill(~mask.bool()[..., None], torch.finfo(feature.dtype).min)
    return F.log_softmax(feature, dim=1).transpose(1, 2)


def _regressor(dimensions: int, student: int, teacher: int) -> nn.Sequential:
    sizes = ((student, teacher), (teacher, teacher), (teacher, teacher))
    layers = [nn.Conv2d(*size, kernel_size=1) if dimensions == 4 else nn.Linear(*size) for size in sizes]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

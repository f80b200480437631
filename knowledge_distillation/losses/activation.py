"""Losses on features before their ReLU: what the student should do where the teacher's neurons are off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError

_SHORTCUTS = {"downsample", "shortcut"}


def activation_boundary(student: Tensor, teacher: Tensor, mask: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Squared hinge that puts the student on the teacher's side of every neuron's boundary, one value per sample.

    d(b) = sum over the elements of sample b of max(0, margin - student)^2 where teacher > 0
                                                max(0, margin + student)^2 elsewhere

    Features are those before the ReLU. Equal models still pay for elements with |value| < margin.

    Args:
        student: (batch, channels, height, width) map, (batch, width) or (batch, length, width).
        teacher: same shape.
        mask: (batch, length) of tokens, those that count; None counts all.
        margin: how far beyond the boundary the student should be, 0 or more; 1 in the paper.

    Returns:
        (batch,), each value 0 or more; a sum, so it grows with the size of the map.

    Raises:
        ConfigError: the margin is negative.

    Source: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, 2019, eq. 7.
    """
    if margin < 0:
        raise ConfigError(f"loss activation_boundary: margin is 0 or more; found {margin}")
    side = F.threshold(teacher, 0.0, -1.0).sign()  # 1 or -1; torch.where takes longer than all of this
    # the target is the student itself where it is far enough on the right side
    target = side * (side * student.detach()).clamp(min=margin)
    values = F.mse_loss(student, target, reduction="none")
    if student.dim() != 3:
        return values.flatten(1).sum(1)
    per_token = values.sum(2)
    return (per_token if mask is None else torch.where(mask.bool(), per_token, 0.0)).sum(1)


class MarginReLU(nn.Module):
    """Distance to a teacher whose negative responses are cut off at a margin, one value per sample.

    d(b) = sum_{c,p} (student - r)^2, 0 where student <= r <= 0,   r(b, c, p) = max(teacher(b, c, p), m_c)
    m_c = E[x | x < 0],  x ~ N(mu_c, sigma_c^2):   mu - sigma * phi(mu / sigma) / Phi(-mu / sigma)

    Features are those before the ReLU. sigma_c and mu_c are |weight| and bias of the BatchNorm that gives the
    teacher's feature; where Phi(-mu / sigma) is 0.001 or less, m_c = -3 sigma. The BatchNorm is the one named by
    `batch_norm`; else the feature's own module, the last one inside it, or the last one before it in its parent. Only
    those with the map's number of channels are considered, and one of a shortcut only where there is no other.

    Args:
        student: (batch, channels, height, width) map.
        teacher: same shape.
        batch_norm: module path in the teacher; None looks for it.
        margin: one m for all channels, 0 or less, in place of any BatchNorm.
        teacher_model: the teacher.
        teacher_features: the teacher's feature, whose `layer` is a module path.

    Returns:
        (batch,), each value 0 or more; a sum, so it grows with the size of the map.

    Raises:
        ConfigError: no BatchNorm was found, or the margin is positive.

    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019, eq. 4 to 6.
    """

    name_of = "margin_relu"
    margins: Tensor

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        batch_norm: str | None = None,
        margin: float | None = None,
        teacher_model: nn.Module | None = None,
        teacher_features: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        channels = teacher.shape[1]
        if margin is not None:
            if margin > 0:
                raise ConfigError(f"loss margin_relu: margin is 0 or less; found {margin}")
            margins = torch.full((channels,), margin, dtype=torch.float64)
        else:
            margins = margins_of(batch_norm_of(teacher_model, teacher_features, channels, batch_norm))
        self.register_buffer("margins", margins.to(torch.promote_types(teacher.dtype, torch.float32)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        floor = self.margins.to(teacher.dtype)[:, None, None]
        # where teacher <= 0, the target is the student itself if it is lower still
        highest = F.threshold(teacher, 0.0, -torch.inf).maximum(student.detach())
        target = torch.maximum(teacher, floor).minimum(highest)
        return F.mse_loss(student, target, reduction="none").flatten(1).sum(1)


def margins_of(batch_norm: _BatchNorm) -> Tensor:
    """m_c = E[x | x < 0] of the Gaussian that a BatchNorm gives out in each channel, in float64."""
    own = (getattr(batch_norm, name, None) for name in ("weight", "bias"))
    weight, mean = (None if tensor is None else tensor.detach().cpu().double() for tensor in own)
    sigma = torch.ones(batch_norm.num_features, dtype=torch.float64) if weight is None else weight.abs()
    mean = torch.zeros_like(sigma) if mean is None else mean
    z = mean / sigma.clamp(min=torch.finfo(torch.float64).tiny)
    log_below = torch.special.log_ndtr(-z)
    log_density = -z.square() / 2 - math.log(2 * math.pi) / 2
    expected = mean - sigma * (log_density - log_below).exp()
    return torch.where(log_below > math.log(0.001), expected, -3 * sigma)


def batch_norm_of(
    model: nn.Module | None, features: Sequence[Any], channels: int, path: str | None = None
) -> _BatchNorm:
    """The BatchNorm that gives the teacher's feature; `MarginReLU` says which that is."""
    would_do = "Set args: {batch_norm: MODULE PATH}, or {margin: NUMBER}, one of 0 or less for all channels"
    modules = {} if model is None else dict(model.named_modules())
    if path is not None:
        module = modules.get(path)
        if not isinstance(module, _BatchNorm) or module.num_features != channels:
            raise ConfigError(
                f"loss margin_relu: batch_norm {path} is {_described(module)}; the teacher's map needs a BatchNorm of "
                f"{channels} channels"
            )
        return module
    layer, output = (features[0].layer, features[0].output) if features else ("", "")
    if layer not in modules or not features:
        raise ConfigError(
            f"loss margin_relu takes its margins from the BatchNorm that gives the teacher's feature, and "
            f"{layer or 'the feature'} is no module path of the teacher. {would_do}"
        )
    inside = [] if output.startswith("input") else [p for p in modules if p == layer or p.startswith(f"{layer}.")]
    block = f"{layer.rpartition('.')[0]}." if "." in layer else ""
    before = [p for p in list(modules)[: list(modules).index(layer)] if p.startswith(block)]
    for paths in (inside, before):
        chosen = {path: modules[path] for path in paths}
        fitting = {p: m for p, m in chosen.items() if isinstance(m, _BatchNorm) and m.num_features == channels}
        main = [module for path, module in fitting.items() if not _SHORTCUTS & set(path.split("."))]
        if fitting:
            return (main or list(fitting.values()))[-1]
    raise ConfigError(
        f"loss margin_relu: no BatchNorm of {channels} channels, as the teacher's map has, in {layer} nor before it "
        f"in {block[:-1] or 'the model'}. {would_do}"
    )


def _described(module: nn.Module | None) -> str:
    if module is None:
        return "no module of the teacher"
    return f"a {type(module).__name__}" + (
        f" of {module.num_features} channels" if isinstance(module, _BatchNorm) else ""
    )

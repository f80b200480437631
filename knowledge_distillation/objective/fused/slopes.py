"""Values of losses on logits and their slopes, the gradient by the student's logits, at once and in given memory.

Each function takes float logits (items, classes) of student and teacher, both of which it may write over, and `spare`,
as large again; it returns one value per item, and a slope that may lie in any of the three. The formulas are those of
`logits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...losses.divergences import reverse_kl
from ...losses.labels import IGNORED_LABEL, hard_cross_entropy
from ...losses.logits import kl_divergence, soft_cross_entropy
from ...losses.softmax import is_nothing

Slope = Callable[..., tuple[Tensor, Tensor]]


def slope_of(loss: Callable[..., Tensor]) -> Slope:
    """Values and slope of any loss that gives one value per item: written out below, or by autograd."""
    return _WRITTEN_OUT.get(loss, _by_autograd(loss))


def _kl(
    student: Tensor, teacher: Tensor, spare: Tensor, temperature: float = 1.0, scale_by_temperature: bool = True
) -> tuple[Tensor, Tensor]:
    log_p = _log_softmax(student, temperature, spare)
    log_target = _log_softmax(teacher, temperature, student)
    target, nothing = torch.exp(log_target, out=teacher), is_nothing(log_target)
    values = _dot(target, log_target.sub_(log_p).masked_fill_(nothing, 0.0))
    return _scaled(values, torch.exp(log_p, out=student).sub_(target), temperature, scale_by_temperature)


def _soft_cross_entropy(
    student: Tensor, teacher: Tensor, spare: Tensor, temperature: float = 1.0, scale_by_temperature: bool = False
) -> tuple[Tensor, Tensor]:
    log_p = _log_softmax(student, temperature, spare)
    target = torch.softmax(_softened(teacher, temperature), -1, out=student)
    slope = torch.exp(log_p, out=teacher).sub_(target)
    values = -_dot(target, log_p.masked_fill_(target < torch.finfo(target.dtype).tiny, 0.0))
    return _scaled(values, slope, temperature, scale_by_temperature)


def _reverse_kl(
    student: Tensor, teacher: Tensor, spare: Tensor, temperature: float = 1.0, scale_by_temperature: bool = False
) -> tuple[Tensor, Tensor]:
    log_p = _log_softmax(student, temperature, spare)
    log_target = _log_softmax(teacher, temperature, student)
    p, nothing = torch.exp(log_p, out=teacher), is_nothing(log_p)
    difference = log_p.sub_(log_target).masked_fill_(nothing, 0.0)
    values = _dot(p, difference)
    slope = difference.sub_(values[:, None]).mul_(p)
    return _scaled(values, slope, temperature, scale_by_temperature)


def _hard_cross_entropy(student: Tensor, labels: Tensor, spare: Tensor, **args: Any) -> tuple[Tensor, Tensor]:
    if args.get("label_smoothing") or args.get("class_weights"):
        return _by_autograd(hard_cross_entropy)(student, labels, spare, **args)
    log_p = _log_softmax(student, 1.0, spare)
    label = labels.clamp(min=0)[:, None]
    counted = (labels != IGNORED_LABEL).to(log_p.dtype)
    values = -log_p.gather(1, label)[:, 0]
    slope = log_p.exp_()
    slope.scatter_add_(1, label, slope.new_full(label.shape, -1.0))
    return values * counted, slope


def _by_autograd(loss: Callable[..., Tensor]) -> Slope:
    def slope(student: Tensor, reference: Tensor, spare: Tensor, **args: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            student = student.detach().requires_grad_()
            values = loss(student, reference, **args)
            (gradient,) = torch.autograd.grad(values.sum(), student)
        return values.detach(), gradient

    return slope


_WRITTEN_OUT: Mapping[Callable[..., Tensor], Slope] = {
    kl_divergence: _kl,
    soft_cross_entropy: _soft_cross_entropy,
    reverse_kl: _reverse_kl,
    hard_cross_entropy: _hard_cross_entropy,
}


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits.div_(temperature)


def _log_softmax(logits: Tensor, temperature: float, into: Tensor) -> Tensor:
    return torch.log_softmax(_softened(logits, temperature), -1, out=into)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """The inner product of each row with its fellow, without a product as large as they are."""
    return torch.bmm(first[:, None], second[:, :, None]).flatten()


def _scaled(values: Tensor, slope: Tensor, temperature: float, scale_by_temperature: bool) -> tuple[Tensor, Tensor]:
    if temperature == 1:
        return values, slope
    factor = temperature**2 if scale_by_temperature else 1.0
    return values * factor, slope.mul_(factor / temperature)

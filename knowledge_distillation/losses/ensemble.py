"""Losses of one student against several teachers at once: against the mean of their predictions."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import check_whole
from .softmax import check_classes, expectation, factor_of, log_softmax, softmax

Tensors = tuple[Tensor, ...]


def ensemble_cross_entropy(
    student: Tensors, teacher: Tensors, temperature: float = 1.0, scale_by_temperature: bool = False
) -> Tensor:
    """Cross-entropy of the student's predictions under the mean of the teachers', one value per item.

    d(i) = - sum_c m(i, c) * log p_s(i, c),   m = mean_n p_n,   p = softmax(logits / T)

    Where the student predicts that mean, the value is the mean's entropy, not 0.

    Args:
        student: one tensor of (batch, classes) or (batch, length, vocabulary) logits.
        teacher: the logits of one or more teachers, of the same shape.
        temperature: above 0; 1 in MEAL v2.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: shapes differ, there is one class only, or the temperature is not above 0.

    Source: Shen and Savvides, MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks,
    2020, its soft part.
    """
    logits = _one_student("ensemble_cross_entropy", student, teacher)
    cross_entropy = -expectation(_mean_softmax(teacher, temperature), log_softmax(logits, temperature))
    return cross_entropy * factor_of(temperature, scale_by_temperature)


def ensemble_kl(
    student: Tensors, teacher: Tensors, temperature: float = 1.0, scale_by_temperature: bool = True
) -> Tensor:
    """Divergence of the student's predictions from the mean of the teachers', times T^2, one value per item.

    d(i) = T^2 * sum_c m(i, c) * (log m(i, c) - log p_s(i, c)),   m = mean_n p_n,   p = softmax(logits / T)

    Args:
        student: one tensor of (batch, classes) or (batch, length, vocabulary) logits.
        teacher: the logits of one or more teachers, of the same shape.
        temperature: above 0.
        scale_by_temperature: whether the factor T^2 is there.

    Returns:
        The shape without its last dimension, each value 0 or more; 0 where the student predicts the mean.

    Raises:
        ConfigError: shapes differ, there is one class only, or the temperature is not above 0.

    Source: after Shen and Savvides, MEAL V2, 2020, whose soft part is this one plus the entropy of the mean.
    """
    logits = _one_student("ensemble_kl", student, teacher)
    mean = _mean_softmax(teacher, temperature)
    log_mean = (mean + torch.finfo(mean.dtype).tiny).log()
    divergence = expectation(mean, log_mean - log_softmax(logits, temperature))
    return divergence * factor_of(temperature, scale_by_temperature)


class Adversarial(nn.Module):
    """A discriminator learns to tell the student from the mean of the teachers; the student learns to deceive it.

    d(i) = 1/2 * (-log D(m(i)) - log(1 - D(p_s(i)))),   m = mean_n p_n,   p = softmax(logits / T)

    D is a small network that ends in a sigmoid: the probability that what it sees comes from the teachers. It trains
    with the projections and makes d smaller. On its way back to the student the gradient is multiplied by -`reversal`,
    so the student makes d larger. Both go with one optimizer, and there is no second step.

    The value is no distance: it is log 2 where the discriminator cannot tell at all, so equal models do not give 0,
    nor does a smaller value mean a better student.

    Args:
        student: one tensor of (batch, classes) or (batch, length, vocabulary) logits.
        teacher: the logits of one or more teachers, of the same shape.
        hidden_size: width of the two inner layers of the discriminator, 1 or more.
        reversal: factor of the reversed gradient, 0 or more; at 0 only the discriminator learns. It may be scheduled.
        temperature: above 0.

    Returns:
        The shape of the logits without their last dimension, each value 0 or more.

    Raises:
        ConfigError: shapes differ, there is one class only, or an argument is out of its range.

    Source: Shen and Savvides, MEAL V2, 2020, and Shen, He and Xue, MEAL: Multi-Model Ensemble via Adversarial
    Learning, 2019; in the released code of MEAL V2 the student, too, makes d smaller. The reversal is that of Ganin
    and Lempitsky, Unsupervised Domain Adaptation by Backpropagation, 2015.
    """

    name_of = "adversarial"

    def __init__(self, student: Tensors, teacher: Tensors, *, hidden_size: int = 128) -> None:
        super().__init__()
        check_whole("hidden_size", hidden_size, 1)
        classes = _one_student(self.name_of, student, teacher).shape[-1]
        self.discriminator = nn.Sequential(
            nn.Linear(classes, hidden_size),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_size, hidden_size),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_size, 1),
        )

    def forward(self, student: Tensors, teacher: Tensors, reversal: float = 1.0, temperature: float = 1.0) -> Tensor:
        """The discriminator's cross-entropy, one value per item.

        Args:
            student: one tensor of logits.
            teacher: the logits of one or more teachers, of the same shape.
            reversal: factor of the reversed gradient, 0 or more; at 0 only the discriminator learns.
            temperature: above 0.

        Returns:
            The shape of the logits without their last dimension, each value 0 or more.

        Raises:
            ConfigError: shapes differ, there is one class only, or an argument is out of its range.
        """
        if not reversal >= 0:
            raise ConfigError(f"reversal is 0 or more; found {reversal!r}")
        logits = _one_student(self.name_of, student, teacher)
        of_student = softmax(logits, temperature)
        of_teachers = _mean_softmax(teacher, temperature)
        of_student = self.discriminator(_Reversed.apply(of_student, reversal))
        of_teachers = self.discriminator(of_teachers)
        return (F.softplus(-of_teachers) + F.softplus(of_student)).squeeze(-1) / 2


class _Reversed(torch.autograd.Function):
    """The tensor as it is; its gradient times minus the factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def _mean_softmax(logits: Tensors, temperature: float) -> Tensor:
    total = reduce(torch.add, (softmax(one, temperature) for one in logits))
    return total / len(logits)


def _one_student(name: str, student: Tensors, teacher: Tensors) -> Tensor:
    """The student's only tensor.

    Raises:
        ConfigError: it has several, or a teacher's shape is another one.
    """
    shapes = [tuple(tensor.shape) for tensor in teacher]
    if len(student) != 1 or not teacher or any(shape != student[0].shape for shape in shapes):
        raise ConfigError(
            f"loss {name} compares one student feature with those of several teachers, all of one shape; found "
            f"student {', '.join(str(tuple(s.shape)) for s in student)} and teacher {', '.join(map(str, shapes))}"
        )
    check_classes(name, student[0])
    return student[0]

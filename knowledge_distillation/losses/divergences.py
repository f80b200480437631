"""Other distances of the student's predictions from the teacher's, one value per item."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_range
from .logits import kl_divergence
from .softmax import divergence_of, factor_of, log_softmax, softmax


def reverse_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, scale_by_temperature: bool = False
) -> Tensor:
    """Reverse Kullback-Leibler divergence, which seeks the teacher's modes, one value per item.

    d(i) = sum_c p_s(i, c) * (log p_s(i, c) - log p_t(i, c)),   p = softmax(logits / T)

    The student decides where it is compared: what the teacher does where the student is sure not to go costs nothing.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2023, of whose sequence loss it is the
    single step; Agarwal et al., On-Policy Distillation of Language Models (GKD), 2023.
    """
    log_student, log_teacher = log_softmax(student, temperature), log_softmax(teacher, temperature)
    return divergence_of(log_student, log_teacher) * factor_of(temperature, scale_by_temperature)


def js_divergence(
    student: Tensor,
    teacher: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
) -> Tensor:
    """Generalised Jensen-Shannon divergence, one value per item.

    d(i) = beta * KL(p_t || m) + (1 - beta) * KL(p_s || m),   m = beta * p_t + (1 - beta) * p_s,
    p = softmax(logits / T)

    At both ends of `beta` the formula would be 0. Divided by beta it goes to the forward divergence at 0, divided by
    1 - beta to the reverse one at 1, so that is what it is there.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        beta: share of the teacher in the mixture, in [0, 1]; 0 is KL(p_t || p_s), 1 is KL(p_s || p_t).
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value 0 or more; at most log 2 for beta = 0.5.

    Raises:
        ConfigError: an argument is out of its range.

    Source: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD),
    2023.
    """
    check_range("beta", beta, 0, 1)
    if beta == 0:
        return kl_divergence(student, teacher, temperature, scale_by_temperature)
    if beta == 1:
        return reverse_kl(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
    with torch.no_grad():
        mixture = p_student.lerp(p_teacher, beta)
        of_teacher, of_student = _ratio(p_teacher, mixture).log_(), _ratio(p_student, mixture).log_()
        divergence = beta * (p_teacher * of_teacher).sum(-1) + (1 - beta) * (p_student * of_student).sum(-1)
    return _sloping(divergence, p_student, (1 - beta) * of_student) * factor_of(temperature, scale_by_temperature)


def skewed_kl(
    student: Tensor,
    teacher: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
) -> Tensor:
    """Divergence of the teacher from a mixture of itself and the student, one value per item.

    d(i) = KL(p_t || skew * p_t + (1 - skew) * p_s),   p = softmax(logits / T)

    A little of the teacher in the mixture bounds the loss, and its gradient, where the student gives no probability.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        skew: share of the teacher in the mixture, in [0, 1); 0 is the forward divergence.
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value from 0 to -log(skew).

    Raises:
        ConfigError: an argument is out of its range.

    Source: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024.
    """
    check_range("skew", skew, 0, 1, open_end=True)
    if skew == 0:
        return kl_divergence(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
    with torch.no_grad():
        ratio = _ratio(p_teacher, p_student.lerp(p_teacher, skew))
        divergence = (p_teacher * ratio.log()).sum(-1)
    return _sloping(divergence, p_student, (skew - 1) * ratio) * factor_of(temperature, scale_by_temperature)


def skewed_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
) -> Tensor:
    """Divergence of the student from a mixture of the teacher and itself, one value per item.

    d(i) = KL(p_s || (1 - skew) * p_t + skew * p_s),   p = softmax(logits / T)

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        skew: share of the student in the mixture, in [0, 1); 0 is the reverse divergence.
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value from 0 to -log(skew).

    Raises:
        ConfigError: an argument is out of its range.

    Source: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024.
    """
    check_range("skew", skew, 0, 1, open_end=True)
    if skew == 0:
        return reverse_kl(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
    with torch.no_grad():
        ratio = _ratio(p_student, p_teacher.lerp(p_student, skew))
        log_ratio = ratio.log()
        divergence = (p_student * log_ratio).sum(-1)
    return _sloping(divergence, p_student, log_ratio - skew * ratio) * factor_of(temperature, scale_by_temperature)


def total_variation(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, scale_by_temperature: bool = False
) -> Tensor:
    """Total variation distance of predictions, one value per item: the probability that would have to move.

    d(i) = 1/2 * sum_c |p_t(i, c) - p_s(i, c)|,   p = softmax(logits / T)

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.

    Returns:
        The shape without its last dimension, each value in [0, 1].

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023; among the losses
    compared by Ko et al., DistiLLM, 2024.
    """
    p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
    return (p_teacher - p_student).abs().sum(-1) * (0.5 * factor_of(temperature, scale_by_temperature))


def _ratio(p: Tensor, mixture: Tensor) -> Tensor:
    """p / mixture, bounded because the mixture holds a share of p; 0 / 0 is 1."""
    tiny = torch.finfo(p.dtype).tiny
    return (p + tiny).div_(mixture + tiny)


def _sloping(values: Tensor, p_student: Tensor, slope: Tensor) -> Tensor:
    """The values, whose derivative by the student's probabilities is the slope, up to a number for each item.

    Written out because otherwise every step of the formula would be kept for the backward pass.
    """
    line = (p_student * slope).sum(-1)
    return values + (line - line.detach())

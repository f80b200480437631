"""The plain losses on logits against the teacher, and their options: a temperature per sample, a teacher put right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .checks import check_above_0, check_choice
from .labels import IGNORED_LABEL
from .softmax import class_numbers, divergence_of, expectation, has_class, log_softmax, softmax

SAMPLE_TEMPERATURES = ("flsw", "cwsm")
LOWEST_TEMPERATURE = 0.1  # of a sample, as a share of the entry's temperature


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    scale_by_temperature: bool = True,
    sample_temperature: str | None = None,
    temperature_spread: float = 1.0,
    temperature_power: float = 1.0,
    probability_shift: bool = False,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of softened predictions, times temperature squared, one value per item.

    d(i) = T^2 * sum_c p_t(i, c) * (log p_t(i, c) - log p_s(i, c)),   p = softmax(logits / T)

    The factor T^2 keeps the size of the gradient when T changes.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0; 2 to 20 in the literature, 4 most often on images.
        scale_by_temperature: whether the factor T^2 is there. With a temperature per sample it is that sample's.
        sample_temperature: `flsw` or `cwsm` gives each item a temperature of its own, see `temperature_per_sample`.
        temperature_spread: how far these temperatures lie apart, 0 or more; TextBrewer's beta.
        temperature_power: of the distance in `flsw`, 0 or more; TextBrewer's gamma.
        probability_shift: whether a teacher that is wrong is put right first, see `shifted_to_labels`.
        labels: (batch,) or (batch, length) class numbers; only `probability_shift` needs them.
        mask: (batch, length), the tokens over which `sample_temperature` averages; None for all.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: an argument is out of its range, or labels are asked for and missing.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015. Temperatures per sample and
    the shift: Wen, Lai and Qian, Preparing Lessons: Improve Knowledge Distillation with Better Supervision, 2019, as
    Yang et al., TextBrewer, 2020, adapted them.
    """
    teacher = shifted_to_labels(teacher, labels) if probability_shift else teacher
    softening = temperature_per_sample(
        student, teacher, temperature, sample_temperature, temperature_spread, temperature_power, mask
    )
    divergence = divergence_of(log_softmax(teacher, softening), log_softmax(student, softening))
    return divergence * softening**2 if scale_by_temperature else divergence


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
    sample_temperature: str | None = None,
    temperature_spread: float = 1.0,
    temperature_power: float = 1.0,
    probability_shift: bool = False,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the student's predictions under the teacher's, one value per item.

    d(i) = - sum_c p_t(i, c) * log p_s(i, c),   p = softmax(logits / T)

    Its gradient is that of `kl_divergence` without the factor T^2; for equal logits its value is the teacher's
    entropy, not 0.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0.
        scale_by_temperature: whether the value is times T^2.
        sample_temperature: `flsw` or `cwsm` gives each item a temperature of its own, see `temperature_per_sample`.
        temperature_spread: how far these temperatures lie apart, 0 or more; TextBrewer's beta.
        temperature_power: of the distance in `flsw`, 0 or more; TextBrewer's gamma.
        probability_shift: whether a teacher that is wrong is put right first, see `shifted_to_labels`.
        labels: (batch,) or (batch, length) class numbers; only `probability_shift` needs them.
        mask: (batch, length), the tokens over which `sample_temperature` averages; None for all.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: an argument is out of its range, or labels are asked for and missing.

    Source: Hinton, Vinyals and Dean, 2015; the prediction loss of Jiao et al., TinyBERT, 2020, eq. 10. Temperatures
    per sample and the shift: Wen, Lai and Qian, 2019, as Yang et al., TextBrewer, 2020, adapted them.
    """
    teacher = shifted_to_labels(teacher, labels) if probability_shift else teacher
    softening = temperature_per_sample(
        student, teacher, temperature, sample_temperature, temperature_spread, temperature_power, mask
    )
    cross_entropy = -expectation(softmax(teacher, softening), log_softmax(student, softening))
    return cross_entropy * softening**2 if scale_by_temperature else cross_entropy


def logits_mse(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    centred: bool = False,
    sample_temperature: str | None = None,
    temperature_spread: float = 1.0,
    temperature_power: float = 1.0,
    probability_shift: bool = False,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared error of logits divided by a temperature, one value per item.

    d(i) = mean_c ((z_s(i, c) - z_t(i, c)) / T)^2

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits, or the (batch, targets) of a regression.
        teacher: same shape.
        temperature: above 0.
        centred: whether each side's mean over the classes, which softmax ignores, is taken off first.
        sample_temperature: `flsw` or `cwsm` gives each item a temperature of its own, see `temperature_per_sample`.
        temperature_spread: how far these temperatures lie apart, 0 or more; TextBrewer's beta.
        temperature_power: of the distance in `flsw`, 0 or more; TextBrewer's gamma.
        probability_shift: whether a teacher that is wrong is put right first, see `shifted_to_labels`.
        labels: (batch,) or (batch, length) class numbers; only `probability_shift` needs them.
        mask: (batch, length), the tokens over which `sample_temperature` averages; None for all.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: an argument is out of its range, or labels are asked for and missing.

    Source: Tang et al., Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, 2019, without the
    temperature; Yang et al., TextBrewer, 2020, with it.
    """
    teacher = shifted_to_labels(teacher, labels) if probability_shift else teacher
    softening = temperature_per_sample(
        student, teacher, temperature, sample_temperature, temperature_spread, temperature_power, mask
    )
    counted = has_class(student) | has_class(teacher)
    number = counted.sum(-1)
    difference = (student - teacher).masked_fill(~counted, 0.0)
    if centred:
        mean = difference.sum(-1) / number
        difference = (difference - mean[..., None]).masked_fill(~counted, 0.0)
    return difference.square().sum(-1) / number / softening**2


def temperature_per_sample(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    kind: str | None,
    spread: float,
    power: float,
    mask: Tensor | None,
) -> float | Tensor:
    """The temperature itself, or one for each item: lower than it where an item is harder than the mean one.

    tau(i) = T + spread * (mean_j w(j) - w(i)), but at least T / 10
    flsw: w(i) = (1 - cos(z_s(i), z_t(i)))^power,   cwsm: w(i) = 1 / max_c softmax(z_s(i))_c

    The mean is over the items of this batch that count; no gradient flows through a temperature. The angle is taken
    over the classes that both sides have.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: T, above 0.
        kind: `flsw`, by the angle between the logits; `cwsm`, by the student's confidence; None, T for all.
        spread: 0 or more.
        power: 0 or more.
        mask: (batch, length), the tokens that count; None for all.

    Returns:
        `temperature`, or the shape of the logits without their last dimension.

    Raises:
        ConfigError: an argument is out of its range.
    """
    check_above_0("temperature", temperature)
    if kind is None:
        return temperature
    check_choice("sample_temperature", kind, SAMPLE_TEMPERATURES)
    if not (spread >= 0 and power >= 0):
        raise ConfigError(f"temperature_spread and temperature_power are 0 or more; found {spread!r} and {power!r}")
    student, teacher = student.detach(), teacher.detach()
    if kind == "flsw":
        both = has_class(student) & has_class(teacher)
        student, teacher = student.masked_fill(~both, 0.0), teacher.masked_fill(~both, 0.0)
        weight = (1 - F.cosine_similarity(student, teacher, dim=-1)).clamp(min=0) ** power
    else:
        weight = 1 / F.softmax(student, dim=-1).amax(-1)
    counted = torch.ones_like(weight) if mask is None else mask.to(weight.dtype)
    mean = (weight * counted).sum() / counted.sum().clamp(min=1)
    return (temperature + spread * (mean - weight)).clamp(min=LOWEST_TEMPERATURE * temperature)


def shifted_to_labels(teacher: Tensor, labels: Tensor | None) -> Tensor:
    """The teacher's logits with its largest one and that of the label exchanged; unchanged where it is right.

    Args:
        teacher: (batch, classes) or (batch, length, vocabulary) logits.
        labels: (batch,) or (batch, length) class numbers; items labelled -100 are left alone.

    Returns:
        The shape of `teacher`.

    Raises:
        ConfigError: there are no labels, or they are not one class number per item.
    """
    if labels is None:
        raise ConfigError("probability_shift needs the labels, and the batch has no 'labels'")
    label = class_numbers(labels, teacher)[..., None]
    largest, place = teacher.max(-1, keepdim=True)
    shifted = teacher.scatter(-1, place, teacher.gather(-1, label)).scatter(-1, label, largest)
    return torch.where((labels != IGNORED_LABEL)[..., None], shifted, teacher)

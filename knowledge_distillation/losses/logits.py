"""Losses on logits, against the teacher (soft) and against the labels (hard)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, nearest
from .labels import IGNORED_LABEL

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
    divergence = _divergence(_log_softmax(teacher, softening), _log_softmax(student, softening))
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
    p_teacher = _softmax(teacher, softening)
    cross_entropy = -(p_teacher * _log_softmax(student, softening)).sum(-1)
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
    if centred:
        student, teacher = (side - side.mean(-1, keepdim=True) for side in (student, teacher))
    return F.mse_loss(student, teacher, reduction="none").mean(-1) / softening**2


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
    log_student, log_teacher = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    return _divergence(log_student, log_teacher) * _factor(temperature, scale_by_temperature)


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
    _in_range("beta", beta, 0, 1)
    if beta == 0:
        return kl_divergence(student, teacher, temperature, scale_by_temperature)
    if beta == 1:
        return reverse_kl(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = _softmax(student, temperature), _softmax(teacher, temperature)
    with torch.no_grad():
        mixture = p_student.lerp(p_teacher, beta)
        of_teacher, of_student = _ratio(p_teacher, mixture).log_(), _ratio(p_student, mixture).log_()
        divergence = beta * (p_teacher * of_teacher).sum(-1) + (1 - beta) * (p_student * of_student).sum(-1)
    return _sloping(divergence, p_student, (1 - beta) * of_student) * _factor(temperature, scale_by_temperature)


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
    _in_range("skew", skew, 0, 1, open_end=True)
    if skew == 0:
        return kl_divergence(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = _softmax(student, temperature), _softmax(teacher, temperature)
    with torch.no_grad():
        ratio = _ratio(p_teacher, p_student.lerp(p_teacher, skew))
        divergence = (p_teacher * ratio.log()).sum(-1)
    return _sloping(divergence, p_student, (skew - 1) * ratio) * _factor(temperature, scale_by_temperature)


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
    _in_range("skew", skew, 0, 1, open_end=True)
    if skew == 0:
        return reverse_kl(student, teacher, temperature, scale_by_temperature)
    p_student, p_teacher = _softmax(student, temperature), _softmax(teacher, temperature)
    with torch.no_grad():
        ratio = _ratio(p_student, p_teacher.lerp(p_student, skew))
        log_ratio = ratio.log()
        divergence = (p_student * log_ratio).sum(-1)
    return _sloping(divergence, p_student, log_ratio - skew * ratio) * _factor(temperature, scale_by_temperature)


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
    p_student, p_teacher = _softmax(student, temperature), _softmax(teacher, temperature)
    return (p_teacher - p_student).abs().sum(-1) * (0.5 * _factor(temperature, scale_by_temperature))


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation: how sure of the label, and how the rest is spread, each with its weight.

    d(i) = T^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s)),   p = softmax(logits / T), y = labels[i],
    b = (p(y), 1 - p(y)),   q = softmax of the logits / T of the classes other than y

    With alpha = 1 and beta = 1 - p_t(y) it would be `kl_divergence`. With two classes q is one class, so its
    divergence is 0 and what is left is alpha times `kl_divergence`.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits, two classes or more.
        teacher: same shape.
        labels: (batch,) or (batch, length) class numbers; items labelled -100 do not count.
        alpha: weight of the label's own probability, 0 or more.
        beta: weight of the other classes, 0 or more; 2 to 8 in the paper, larger where the teacher is surer.
        temperature: above 0.

    Returns:
        The shape of `labels`, each value 0 or more.

    Raises:
        ConfigError: the labels are not one class number per item, there is one class only, or a temperature of 0.

    Source: Zhao et al., Decoupled Knowledge Distillation, 2022, eq. 7.
    """
    _at_least_two_classes("dkd", student)
    label = _class_numbers(labels, student)[..., None]
    b_student, q_student = _decoupled(student, label, temperature)
    b_teacher, q_teacher = _decoupled(teacher, label, temperature)
    of_label, of_others = _divergence(b_teacher, b_student), _divergence(q_teacher, q_student)
    return (alpha * of_label + beta * of_others) * temperature**2


def dist(
    student: Tensor,
    teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    epsilon: float = 1e-8,
    mask: Tensor | None = None,
) -> Tensor:
    """One minus Pearson's correlation of predictions: between the classes of an item, and between items of a class.

    inter = mean_i (1 - rho(p_s(i, .), p_t(i, .))),   intra = mean_c (1 - rho(p_s(., c), p_t(., c))),
    d = T^2 * (beta * inter + gamma * intra),   rho(u, v) = u~ . v~ / (|u~| |v~| + epsilon),
    u~ = u - mean(u),   p = softmax(logits / T)

    Items are samples, or the tokens of the batch that count. `intra` compares the items of this batch on this process,
    so it wants a batch of some size; where fewer than two items count it is 0. With two classes rho of an item is 1 or
    -1 whatever the probabilities, so `inter` has no gradient and `intra` teaches alone.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        beta: weight of `inter`, 0 or more.
        gamma: weight of `intra`, 0 or more.
        temperature: above 0.
        epsilon: above 0; equal models differ from 0 by about epsilon divided by the variance of a row or column.
        mask: (batch, length), the tokens that count; None for all.

    Returns:
        (), from 0 to 2 T^2 (beta + gamma).

    Raises:
        ConfigError: an argument is out of its range.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, 2022.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon is above 0; found {epsilon!r}")
    p_student, p_teacher = (_softmax(logits, temperature).flatten(0, -2) for logits in (student, teacher))
    counted = p_student.new_ones(len(p_student)) if mask is None else mask.flatten().to(p_student.dtype)
    number = counted.sum()
    inter = (1 - _pearson(p_student, p_teacher, None, epsilon)) @ counted / number.clamp(min=1)
    within = None if mask is None else counted
    intra = (1 - _pearson(p_student.T, p_teacher.T, within, epsilon)).mean() * (number > 1)
    return (beta * inter + gamma * intra) * temperature**2


def logit_standardization(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    epsilon: float = 1e-7,
    unbiased: bool = True,
    scale_by_temperature: bool = True,
) -> Tensor:
    """Divergence of standardised logits: how they are ordered and spread, not how large they are.

    d(i) = T^2 * KL(p_t || p_s),   p = softmax(u / T),   u(i, c) = (z(i, c) - mean_c z) / (std_c z + epsilon)

    With two classes u is 0.707 for one and -0.707 for the other whatever the logits: the target is then a constant,
    0.67 for the teacher's class at T = 2, which is label smoothing, and the student has almost no gradient.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits, two classes or more.
        teacher: same shape.
        temperature: above 0.
        epsilon: above 0, added to the standard deviation.
        unbiased: whether the variance is divided by classes - 1 rather than by classes.
        scale_by_temperature: whether the factor T^2 is there.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Raises:
        ConfigError: an argument is out of its range, or there is one class only.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, 2024.
    """
    _at_least_two_classes("logit_standardization", student)
    if not epsilon > 0:
        raise ConfigError(f"epsilon is above 0; found {epsilon!r}")
    student, teacher = (_standardised(logits, epsilon, unbiased) for logits in (student, teacher))
    return kl_divergence(student, teacher, temperature, scale_by_temperature)


def objectness_scaled(
    student: Tensor,
    teacher: Tensor,
    boxes: int = 4,
    box_weight: float = 1.0,
    class_weight: float = 1.0,
    objectness_activation: str = "sigmoid",
    class_activation: str = "softmax",
) -> Tensor:
    """Squared errors of a detector's predictions, of box and class only as far as the teacher sees an object there.

    d(i) = (o_s - o_t)^2 + o_t * (class_weight * sum_c (p_s(c) - p_t(c))^2 + box_weight * sum_k (x_s(k) - x_t(k))^2)

    The last dimension of a feature is x (box), o (objectness) and p (classes), in this order, as in YOLO. Most of a
    one-stage detector's candidates are background: without the factor o_t the student would learn the teacher's
    arbitrary boxes there.

    Args:
        student: (batch, candidates, boxes + 1 + classes) predictions.
        teacher: same shape, the same candidates in the same order.
        boxes: how many numbers a box has, 1 or more; 4, or 5 with an angle.
        box_weight: of the box, 0 or more.
        class_weight: of the classes, 0 or more.
        objectness_activation: `sigmoid` where objectness arrives as a logit, `none` where as a probability.
        class_activation: `softmax` or `sigmoid` where classes arrive as logits, `none` where as probabilities.

    Returns:
        (batch, candidates), each value 0 or more.

    Raises:
        ConfigError: the shapes differ or are too narrow, or an activation is unknown.

    Source: Mehta and Ozturk, Object Detection at 200 Frames Per Second, 2018.
    """
    if student.shape != teacher.shape or not (isinstance(boxes, int) and 1 <= boxes < student.shape[-1]):
        raise ConfigError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: both are (batch, candidates, "
            f"boxes + 1 + classes) with boxes={boxes}"
        )
    for which, asked, known in (
        ("objectness_activation", objectness_activation, ("sigmoid", "none")),
        ("class_activation", class_activation, ("softmax", "sigmoid", "none")),
    ):
        if asked not in known:
            raise ConfigError(f"{which} is one of {', '.join(known)}; found {asked!r}.{nearest(str(asked), known)}")
    sizes = (boxes, 1, student.shape[-1] - boxes - 1)
    (box_s, object_s, class_s), (box_t, object_t, class_t) = student.split(sizes, -1), teacher.split(sizes, -1)
    object_s, object_t = (_activated(side, objectness_activation).squeeze(-1) for side in (object_s, object_t))
    class_s, class_t = (_activated(side, class_activation) for side in (class_s, class_t))
    of_class, of_box = ((s - t).square().sum(-1) for s, t in ((class_s, class_t), (box_s, box_t)))
    return (object_s - object_t).square() + object_t * (class_weight * of_class + box_weight * of_box)


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

    The mean is over the items of this batch that count; no gradient flows through a temperature.

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
    _positive(temperature)
    if kind is None:
        return temperature
    if kind not in SAMPLE_TEMPERATURES:
        near = nearest(str(kind), SAMPLE_TEMPERATURES)
        raise ConfigError(f"sample_temperature is one of {', '.join(SAMPLE_TEMPERATURES)}; found {kind!r}.{near}")
    if not (spread >= 0 and power >= 0):
        raise ConfigError(f"temperature_spread and temperature_power are 0 or more; found {spread!r} and {power!r}")
    student, teacher = student.detach(), teacher.detach()
    if kind == "flsw":
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
    label = _class_numbers(labels, teacher)[..., None]
    largest, place = teacher.max(-1, keepdim=True)
    shifted = teacher.scatter(-1, place, teacher.gather(-1, label)).scatter(-1, label, largest)
    return torch.where((labels != IGNORED_LABEL)[..., None], shifted, teacher)


def _softened(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits divided by one temperature, or by one for each item."""
    if isinstance(temperature, Tensor):
        return logits / temperature[..., None]
    _positive(temperature)
    return logits if temperature == 1 else logits / temperature


def _softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return F.softmax(_softened(logits, temperature), dim=-1)


def _log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return F.log_softmax(_softened(logits, temperature), dim=-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_c p(c) * (log p(c) - log q(c))"""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


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


def _decoupled(logits: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of all the others together; and of the others among themselves.

    The label's place among the others is the lowest number there is, on both sides: it adds nothing to their
    divergence.
    """
    logits = _softened(logits, temperature)
    others = logits.scatter(-1, label, torch.finfo(logits.dtype).min / 2)
    of_both = torch.cat([logits.gather(-1, label), others.logsumexp(-1, keepdim=True)], -1)
    return of_both.log_softmax(-1), others.log_softmax(-1)


def _pearson(first: Tensor, second: Tensor, counted: Tensor | None, epsilon: float) -> Tensor:
    """Pearson's correlation of the rows of two matrices, over the columns that count; None counts all."""
    if counted is None:
        first, second = (rows - rows.mean(-1, keepdim=True) for rows in (first, second))
    else:
        number = counted.sum().clamp(min=1)
        first, second = (
            (rows - (rows * counted).sum(-1, keepdim=True) / number) * counted for rows in (first, second)
        )
    norms = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    return (first * second).sum(-1) / (norms + epsilon)


def _standardised(logits: Tensor, epsilon: float, unbiased: bool) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over the classes; 0 where all of them are equal."""
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(logits.shape[-1] - unbiased)
    return centred / (deviation + epsilon)


def _activated(scores: Tensor, activation: str) -> Tensor:
    return {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda z: z}[activation](scores)


def _class_numbers(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels that index the classes: 0 where they are -100.

    Raises:
        ConfigError: they are not one whole number per item.
    """
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ConfigError(
            f"labels {tuple(labels.shape)} of {labels.dtype} do not fit logits {tuple(logits.shape)}: one class "
            "number is needed for each item"
        )
    return torch.where(labels == IGNORED_LABEL, 0, labels)


def _factor(temperature: float, scale_by_temperature: bool) -> float:
    return temperature**2 if scale_by_temperature else 1.0


def _positive(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature is above 0; found {temperature!r}")


def _in_range(name: str, value: float, low: float, high: float, open_end: bool = False) -> None:
    if not (low <= value < high if open_end else low <= value <= high):
        raise ConfigError(f"{name} lies in [{low}, {high}{')' if open_end else ']'}; found {value!r}")


def _at_least_two_classes(name: str, logits: Tensor) -> None:
    if logits.shape[-1] < 2:
        raise ConfigError(
            f"loss {name} compares classes: it needs two or more, and finds logits {tuple(logits.shape)}"
        )

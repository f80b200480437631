"""Losses on how the classes of an item stand to each other, whatever the size of their logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_above_0
from .logits import kl_divergence
from .softmax import check_classes, class_numbers, divergence_of, has_class, softened, softmax


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
    check_classes("dkd", student)
    label = class_numbers(labels, student)[..., None]
    b_student, q_student = _decoupled(student, label, temperature)
    b_teacher, q_teacher = _decoupled(teacher, label, temperature)
    of_label, of_others = divergence_of(b_teacher, b_student), divergence_of(q_teacher, q_student)
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
    check_above_0("epsilon", epsilon)
    p_student, p_teacher = (softmax(logits, temperature).flatten(0, -2) for logits in (student, teacher))
    counted = p_student.new_ones(len(p_student)) if mask is None else mask.flatten().to(p_student.dtype)
    classes = (has_class(student) | has_class(teacher)).flatten(0, -2).to(p_student.dtype)
    inter = (1 - _pearson(p_student, p_teacher, classes, epsilon)) @ counted / counted.sum().clamp(min=1)
    within = (classes * counted[:, None]).T
    several = (within.sum(-1) > 1).to(p_student.dtype)
    intra = (1 - _pearson(p_student.T, p_teacher.T, within, epsilon)) @ several / several.sum().clamp(min=1)
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
    check_classes("logit_standardization", student)
    check_above_0("epsilon", epsilon)
    student, teacher = (_standardised(logits, epsilon, unbiased) for logits in (student, teacher))
    return kl_divergence(student, teacher, temperature, scale_by_temperature)


def _decoupled(logits: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of all the others together; and of the others among themselves.

    The label's place among the others is the lowest number there is, on both sides: it adds nothing to their
    divergence.
    """
    logits = softened(logits, temperature)
    others = logits.scatter(-1, label, torch.finfo(logits.dtype).min / 2)
    of_both = torch.cat([logits.gather(-1, label), others.logsumexp(-1, keepdim=True)], -1)
    return of_both.log_softmax(-1), others.log_softmax(-1)


def _pearson(first: Tensor, second: Tensor, counted: Tensor, epsilon: float) -> Tensor:
    """Pearson's correlation of the rows of two matrices, over the columns that count in each: 1, and 0 elsewhere."""
    number = counted.sum(-1, keepdim=True).clamp(min=1)
    first, second = ((rows - (rows * counted).sum(-1, keepdim=True) / number) * counted for rows in (first, second))
    norms = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    return (first * second).sum(-1) / (norms + epsilon)


def _standardised(logits: Tensor, epsilon: float, unbiased: bool) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over the classes there are; 0 where all of them are equal."""
    none = ~has_class(logits)
    number = logits.shape[-1] - none.sum(-1, keepdim=True)
    filled = logits.masked_fill(none, 0.0)
    centred = (filled - filled.sum(-1, keepdim=True) / number).masked_fill(none, 0.0)
    variance_of = (number - int(unbiased)).clamp(min=1).to(logits.dtype)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / variance_of.sqrt()
    return (centred / (deviation + epsilon)).masked_fill(none, -math.inf)

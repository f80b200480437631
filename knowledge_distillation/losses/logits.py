"""Losses on logits, against the teacher (soft) and against the labels (hard)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of softened predictions, times temperature squared, one value per item.

    d(i) = T^2 * sum_c p_t(i, c) * (log p_t(i, c) - log p_s(i, c)),   p = softmax(logits / T)

    The factor T^2 keeps the size of the gradient when T changes.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0; 2 to 20 in the literature, 4 most often on images.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    student = F.log_softmax(student / temperature, dim=-1)
    teacher = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's predictions under the teacher's, one value per item.

    d(i) = - sum_c p_t(i, c) * log p_s(i, c),   p = softmax(logits / T)

    Its gradient is that of `kl_divergence` without the factor T^2; for equal logits its value is the teacher's
    entropy, not 0.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        teacher: same shape.
        temperature: above 0.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Source: Hinton, Vinyals and Dean, 2015; the prediction loss of Jiao et al., TinyBERT, 2020, eq. 10.
    """
    return -(F.softmax(teacher / temperature, dim=-1) * F.log_softmax(student / temperature, dim=-1)).sum(-1)


def hard_cross_entropy(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy against the labels, one value per item; items labelled -100 do not count.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        labels: (batch,) or (batch, length) class numbers.
        label_smoothing: in [0, 1).

    Returns:
        The shape of `labels`.
    """
    losses = F.cross_entropy(
        student.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(labels.shape)


def label_mse(student: Tensor, labels: Tensor) -> Tensor:
    """Squared error against real-valued labels, one value per sample, for regression tasks.

    Args:
        student: (batch, 1) or (batch,) predictions, or (batch, targets).
        labels: (batch,) targets, or the shape of `student`.

    Returns:
        The shape of `labels`.
    """
    return (student.reshape(labels.shape) - labels).square()

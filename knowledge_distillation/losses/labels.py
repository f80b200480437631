"""Losses of the student against the labels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100


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


def own_loss(student: Tensor, labels: Any) -> Tensor:
    """The student's own loss, as its `forward` returns it when it is given the labels.

    Args:
        student: () the field `output.loss`.
        labels: those of the batch, in the form that the model takes; they went into it already.

    Returns:
        (), the mean over the batch that the model took.
    """
    return student

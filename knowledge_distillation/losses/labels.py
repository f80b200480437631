"""Losses of the student against the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

IGNORED_LABEL = -100


def hard_cross_entropy(
    student: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Cross-entropy against the labels, one value per item; items labelled -100 do not count.

    d(i) = -(1 - e) * w(y) * log p(i, y) - e / C * sum_c w(c) * log p(i, c),   p = softmax(logits), y = labels[i]

    Where there are class weights, the mean of an entry is divided by the sum of w(y) over its items, not by their
    number: `torch.nn.CrossEntropyLoss(weight=...)`. Classes whose logit is -inf are none of the C.

    Args:
        student: (batch, classes) or (batch, length, vocabulary) logits.
        labels: (batch,) or (batch, length) class numbers.
        label_smoothing: e, in [0, 1).
        class_weights: w, a number of 0 or more for each class; None for 1.

    Returns:
        The shape of `labels`.

    Raises:
        ConfigError: there are not as many weights as classes, or they are no numbers of 0 or more.
    """
    logits, classes = student.flatten(0, -2), labels.flatten()
    weight = None if class_weights is None else weights_of_classes(class_weights, logits)
    losses = F.cross_entropy(logits, classes, weight, ignore_index=IGNORED_LABEL, reduction="none")
    if label_smoothing:
        there = logits != -math.inf
        log_p = F.log_softmax(logits, -1).masked_fill(~there, 0.0)
        spread = -(log_p if weight is None else log_p * weight).sum(-1) / there.sum(-1)
        counted = (classes != IGNORED_LABEL).to(spread.dtype)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread * counted
    return losses.view(labels.shape)


def weights_of_classes(weights: Any, logits: Tensor) -> Tensor:
    """Weights of classes as a tensor beside the logits (…, classes), made once and kept there.

    Raises:
        ConfigError: there are not as many as classes, or they are no numbers of 0 or more.
    """
    checked = checked_weights(weights)
    if len(checked) != logits.shape[-1]:
        raise ConfigError(f"class_weights has {len(checked)} numbers, and the logits have {logits.shape[-1]} classes")
    return kept_weights(checked, logits.dtype, logits.device)


def checked_weights(weights: Any) -> tuple[float, ...]:
    """Weights of classes as written: numbers of 0 or more.

    Raises:
        ConfigError: they are none.
    """
    listed = isinstance(weights, (list, tuple))
    numbers = listed and all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in weights)
    if not numbers or not all(0 <= w < math.inf for w in weights) or not any(weights):
        raise ConfigError(
            f"class_weights is a list of numbers of 0 or more, one for each class, not all 0; found {weights!r}"
        )
    return tuple(map(float, weights))


@lru_cache(maxsize=16)  # to make a tensor of a list at each step would wait for the device
def kept_weights(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=dtype, device=device)


def are_yes_or_no(labels: Tensor) -> bool:
    """Whether labels are nothing but 0 and 1, and -100 for those that do not count."""
    return bool(((labels == 0) | (labels == 1) | (labels == IGNORED_LABEL)).all())


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

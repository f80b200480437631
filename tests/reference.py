"""Slow, obvious twins of every loss: loops over items and numbers, written from the papers, nothing of the package.

A twin `name(student, teacher, mask=None, keys=None, **arguments)` has the name of the loss function it mirrors, takes
numpy arrays in float64 and returns the number an entry's term should have: the loss of every item that counts,
averaged over those items. `mask` (batch, length) says which rows count, `keys` (batch, keys) which keys of an
attention map. Twins of losses against the labels take the labels in the teacher's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

IGNORED_LABEL = -100


def hidden_mse(student, teacher, mask=None, keys=None):
    def squared_error(index):
        errors = [(s - t) ** 2 for s, t in zip(student[index], teacher[index], strict=True)]
        return sum(errors) / len(errors)

    return mean(squared_error, items(student.shape[:-1], mask))


def cos(student, teacher, mask=None, keys=None):
    def half_distance(index):
        s, t = student[index], teacher[index]
        dot = sum(a * b for a, b in zip(s, t, strict=True))
        return 0.5 - 0.5 * dot / (math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t)))

    return mean(half_distance, items(student.shape[:-1], mask))


def attention_mse(student, teacher, mask=None, keys=None):
    batch, heads, length, width = student.shape
    total, number = 0.0, 0
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                for j in range(width):
                    if (mask is None or mask[b, i]) and (keys is None or keys[b, j]):
                        total += (student[b, h, i, j] - teacher[b, h, i, j]) ** 2
                        number += 1
    return total / max(number, 1)


def kl_divergence(student, teacher, mask=None, keys=None, temperature=1.0):
    def divergence(index):
        p_s, p_t = softmax(student[index], temperature), softmax(teacher[index], temperature)
        return temperature**2 * sum(t * (math.log(t) - math.log(s)) for s, t in zip(p_s, p_t, strict=True))

    return mean(divergence, items(student.shape[:-1], mask))


def soft_cross_entropy(student, teacher, mask=None, keys=None, temperature=1.0):
    def cross_entropy(index):
        p_s, p_t = softmax(student[index], temperature), softmax(teacher[index], temperature)
        return -sum(t * math.log(s) for s, t in zip(p_s, p_t, strict=True))

    return mean(cross_entropy, items(student.shape[:-1], mask))


def hard_cross_entropy(student, labels, mask=None, keys=None, label_smoothing=0.0):
    def cross_entropy(index):
        p, classes = softmax(student[index]), student.shape[-1]
        target = [label_smoothing / classes] * classes
        target[labels[index]] += 1 - label_smoothing
        return -sum(t * math.log(s) for s, t in zip(p, target, strict=True))

    labelled = (index for index in items(labels.shape, mask) if labels[index] != IGNORED_LABEL)
    return mean(cross_entropy, labelled)


def label_mse(student, labels, mask=None, keys=None):
    predictions, targets = student.reshape(-1), labels.reshape(-1)
    return mean(lambda index: (predictions[index] - targets[index]) ** 2, items(targets.shape))


def entropy(logits, mask=None, temperature=1.0):
    """Mean entropy of the predictions: what a cross-entropy is worth where the student is the teacher."""

    def of_item(index):
        return -sum(p * math.log(p) for p in softmax(logits[index], temperature))

    return mean(of_item, items(logits.shape[:-1], mask))


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def items(shape: tuple[int, ...], mask: np.ndarray | None = None) -> Iterator[tuple[int, ...]]:
    """The indices that count. The length is the second dimension of tokens, the third of heads."""
    for index in np.ndindex(*shape):
        if mask is None or mask[index[0], index[1 if len(shape) == 2 else 2]]:
            yield index


def mean(value: Callable[[tuple[int, ...]], float], indices: Iterator[tuple[int, ...]]) -> float:
    """The mean over the items that count; 0 where none does."""
    values = [value(index) for index in indices]
    return sum(values) / max(len(values), 1)

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


def kl_divergence(student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=True, **per_sample):
    teacher = shifted(teacher, **per_sample)
    taus = temperatures(student, teacher, mask, temperature, **per_sample)

    def value(index):
        tau = taus[index]
        factor = tau**2 if scale_by_temperature else 1.0
        return factor * divergence(softmax(teacher[index], tau), softmax(student[index], tau))

    return mean(value, items(student.shape[:-1], mask))


def soft_cross_entropy(
    student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=False, **per_sample
):
    teacher = shifted(teacher, **per_sample)
    taus = temperatures(student, teacher, mask, temperature, **per_sample)

    def value(index):
        tau = taus[index]
        p_s, p_t = softmax(student[index], tau), softmax(teacher[index], tau)
        factor = tau**2 if scale_by_temperature else 1.0
        return -factor * sum(t * math.log(s) for s, t in zip(p_s, p_t, strict=True))

    return mean(value, items(student.shape[:-1], mask))


def logits_mse(student, teacher, mask=None, keys=None, temperature=1.0, centred=False, **per_sample):
    teacher = shifted(teacher, **per_sample)
    taus = temperatures(student, teacher, mask, temperature, **per_sample)

    def value(index):
        z_s, z_t = list(student[index]), list(teacher[index])
        if centred:
            z_s, z_t = [z - sum(z_s) / len(z_s) for z in z_s], [z - sum(z_t) / len(z_t) for z in z_t]
        return sum(((s - t) / taus[index]) ** 2 for s, t in zip(z_s, z_t, strict=True)) / len(z_s)

    return mean(value, items(student.shape[:-1], mask))


def reverse_kl(student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=False):
    def value(p_s, p_t):
        return divergence(p_s, p_t)

    return of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature)


def js_divergence(student, teacher, mask=None, keys=None, beta=0.5, temperature=1.0, scale_by_temperature=False):
    def value(p_s, p_t):
        if beta == 0:
            return divergence(p_t, p_s)
        if beta == 1:
            return divergence(p_s, p_t)
        m = [beta * t + (1 - beta) * s for s, t in zip(p_s, p_t, strict=True)]
        return beta * divergence(p_t, m) + (1 - beta) * divergence(p_s, m)

    return of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature)


def skewed_kl(student, teacher, mask=None, keys=None, skew=0.1, temperature=1.0, scale_by_temperature=False):
    def value(p_s, p_t):
        return divergence(p_t, [skew * t + (1 - skew) * s for s, t in zip(p_s, p_t, strict=True)])

    return of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature)


def skewed_reverse_kl(student, teacher, mask=None, keys=None, skew=0.1, temperature=1.0, scale_by_temperature=False):
    def value(p_s, p_t):
        return divergence(p_s, [(1 - skew) * t + skew * s for s, t in zip(p_s, p_t, strict=True)])

    return of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature)


def total_variation(student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=False):
    def value(p_s, p_t):
        return sum(abs(t - s) for s, t in zip(p_s, p_t, strict=True)) / 2

    return of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature)


def dkd(student, teacher, mask=None, keys=None, labels=None, alpha=1.0, beta=8.0, temperature=4.0):
    def value(index):
        y = labels[index]
        p_s, p_t = softmax(student[index], temperature), softmax(teacher[index], temperature)
        rest_s, rest_t = (sum(p for c, p in enumerate(side) if c != y) for side in (p_s, p_t))
        b_s, b_t = (p_s[y], rest_s), (p_t[y], rest_t)
        q_s = [p / rest_s for c, p in enumerate(p_s) if c != y]
        q_t = [p / rest_t for c, p in enumerate(p_t) if c != y]
        return temperature**2 * (alpha * divergence(b_t, b_s) + beta * divergence(q_t, q_s))

    labelled = (index for index in items(labels.shape, mask) if labels[index] != IGNORED_LABEL)
    return mean(value, labelled)


def dist(student, teacher, mask=None, keys=None, beta=1.0, gamma=1.0, temperature=1.0, epsilon=1e-8):
    indices = list(items(student.shape[:-1], mask))
    p_s = [softmax(student[index], temperature) for index in indices]
    p_t = [softmax(teacher[index], temperature) for index in indices]

    def correlation(u, v):
        u, v = [a - sum(u) / len(u) for a in u], [b - sum(v) / len(v) for b in v]
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        return dot / (math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in v)) + epsilon)

    inter = mean(lambda row: 1 - correlation(p_s[row], p_t[row]), range(len(indices)))

    def of_class(c):
        return 1 - correlation([row[c] for row in p_s], [row[c] for row in p_t])

    intra = mean(of_class, range(student.shape[-1])) if len(indices) > 1 else 0.0
    return temperature**2 * (beta * inter + gamma * intra)


def logit_standardization(
    student,
    teacher,
    mask=None,
    keys=None,
    temperature=2.0,
    epsilon=1e-7,
    unbiased=True,
    scale_by_temperature=True,
):
    def standardised(logits):
        centre = sum(logits) / len(logits)
        variance = sum((z - centre) ** 2 for z in logits) / (len(logits) - 1 if unbiased else len(logits))
        return [(z - centre) / (math.sqrt(variance) + epsilon) for z in logits]

    def value(index):
        z_s, z_t = standardised(student[index]), standardised(teacher[index])
        factor = temperature**2 if scale_by_temperature else 1.0
        return factor * divergence(softmax(z_t, temperature), softmax(z_s, temperature))

    return mean(value, items(student.shape[:-1], mask))


def objectness_scaled(
    student,
    teacher,
    mask=None,
    keys=None,
    boxes=4,
    box_weight=1.0,
    class_weight=1.0,
    objectness_activation="sigmoid",
    class_activation="softmax",
):
    activations = {"none": list, "softmax": softmax, "sigmoid": lambda z: [1 / (1 + math.exp(-one)) for one in z]}

    def value(index):
        s, t = list(student[index]), list(teacher[index])
        o_s, o_t = (activations[objectness_activation]([side[boxes]])[0] for side in (s, t))
        p_s, p_t = (activations[class_activation](side[boxes + 1 :]) if side[boxes + 1 :] else [] for side in (s, t))
        of_class = sum((a - b) ** 2 for a, b in zip(p_s, p_t, strict=True))
        of_box = sum((a - b) ** 2 for a, b in zip(s[:boxes], t[:boxes], strict=True))
        return (o_s - o_t) ** 2 + o_t * (class_weight * of_class + box_weight * of_box)

    return mean(value, items(student.shape[:-1], mask))


def ensemble_cross_entropy(student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=False):
    def value(index):
        p_s, m = softmax(student[0][index], temperature), mean_softmax(teacher, index, temperature)
        factor = temperature**2 if scale_by_temperature else 1.0
        return -factor * sum(t * math.log(s) for s, t in zip(p_s, m, strict=True))

    return mean(value, items(student[0].shape[:-1], mask))


def ensemble_kl(student, teacher, mask=None, keys=None, temperature=1.0, scale_by_temperature=True):
    def value(index):
        p_s, m = softmax(student[0][index], temperature), mean_softmax(teacher, index, temperature)
        return (temperature**2 if scale_by_temperature else 1.0) * divergence(m, p_s)

    return mean(value, items(student[0].shape[:-1], mask))


def adversarial(student, teacher, mask=None, keys=None, reversal=1.0, temperature=1.0, **state):
    """`state` is that of the discriminator: the weight and the bias of its linear layers 0, 2 and 4."""

    def discriminator(x):
        for layer in (0, 2, 4):
            weight, bias = (state[f"discriminator.{layer}.{name}"] for name in ("weight", "bias"))
            x = [sum(w * a for w, a in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
            x = x if layer == 4 else [a if a > 0 else 0.2 * a for a in x]
        return 1 / (1 + math.exp(-x[0]))

    def value(index):
        of_teachers = discriminator(mean_softmax(teacher, index, temperature))
        of_student = discriminator(softmax(student[0][index], temperature))
        return (-math.log(of_teachers) - math.log(1 - of_student)) / 2

    return mean(value, items(student[0].shape[:-1], mask))


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


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def of_probabilities(value, student, teacher, mask, temperature, scale_by_temperature):
    """The mean of `value(p_s, p_t)` over the items that count."""

    def of_item(index):
        return value(softmax(student[index], temperature), softmax(teacher[index], temperature))

    factor = temperature**2 if scale_by_temperature else 1.0
    return factor * mean(of_item, items(student.shape[:-1], mask))


def mean_softmax(logits, index, temperature):
    """The mean of several models' probabilities for one item."""
    each = [softmax(one[index], temperature) for one in logits]
    return [sum(p) / len(each) for p in zip(*each, strict=True)]


def temperatures(
    student,
    teacher,
    mask,
    temperature,
    sample_temperature=None,
    temperature_spread=1.0,
    temperature_power=1.0,
    probability_shift=False,
    labels=None,
):
    """Index -> the temperature of each item that counts."""
    if sample_temperature is None:
        return dict.fromkeys(items(student.shape[:-1], mask), temperature)

    def weight(index):
        s, t = student[index], teacher[index]
        if sample_temperature == "cwsm":
            return 1 / max(softmax(s))
        dot = sum(a * b for a, b in zip(s, t, strict=True))
        cosine = dot / (math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t)))
        return max(1 - cosine, 0) ** temperature_power

    weights = {index: weight(index) for index in items(student.shape[:-1], mask)}
    centre = sum(weights.values()) / max(len(weights), 1)
    return {i: max(temperature + temperature_spread * (centre - w), temperature / 10) for i, w in weights.items()}


def shifted(teacher, probability_shift=False, labels=None, **others):
    """The teacher's logits; where it is wrong, its largest one and that of the label have changed places."""
    if not probability_shift:
        return teacher
    teacher = teacher.copy()
    for index in np.ndindex(*labels.shape):
        if labels[index] != IGNORED_LABEL:
            logits, label = teacher[index], labels[index]
            largest = int(np.argmax(logits))
            logits[label], logits[largest] = logits[largest], logits[label]
    return teacher


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

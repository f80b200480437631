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


def own_loss(student, labels):
    return student


def label_mse(student, labels, mask=None, keys=None):
    predictions, targets = student.reshape(-1), labels.reshape(-1)
    return mean(lambda index: (predictions[index] - targets[index]) ** 2, items(targets.shape))


def hidden_cosine(student, teacher, mask=None, keys=None):
    def distance(index):
        s, t = student[index], teacher[index]
        lengths = math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))
        return 1 - sum(a * b for a, b in zip(s, t, strict=True)) / lengths if lengths else 1.0

    return mean(distance, items(student.shape[:-1], mask))


def pkd(student, teacher, mask=None, keys=None, mean_all=False):
    def distance(vectors):
        s, t = vectors
        lengths = [math.sqrt(sum(x * x for x in side)) for side in (s, t)]
        errors = [(a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(s, t, strict=True)]
        return sum(errors) / (len(errors) if mean_all else 1)

    pairs = []
    for b in range(len(student)):
        if student.ndim == 2:
            pairs.append((student[b], teacher[b]))
            continue
        counted = [i for i in range(student.shape[1]) if mask is None or mask[b, i]]
        pairs += [(student[b, i], teacher[b, i]) for i in counted[:1]]
    return mean(distance, iter(pairs))


def mobilebert_feature(student, teacher, mask=None, keys=None, layer_norm=False, epsilon=1e-3):
    def normalised(vector):
        centre = sum(vector) / len(vector)
        variance = sum((x - centre) ** 2 for x in vector) / len(vector)
        return [(x - centre) / math.sqrt(variance + epsilon) for x in vector]

    def squared_error(index):
        s, t = (normalised(side[index]) if layer_norm else side[index] for side in (student, teacher))
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)

    return mean(squared_error, items(student.shape[:-1], mask))


def attention_kl(student, teacher, mask=None, keys=None, epsilon=1e-12):
    def divergence(index):
        pairs = zip(student[index], teacher[index], strict=True)
        return sum(t * (math.log(max(t, epsilon)) - math.log(max(s, epsilon))) for s, t in pairs if t > 0)

    return mean(divergence, items(student.shape[:-1], mask))


def attention_cross_entropy(student, teacher, mask=None, keys=None, epsilon=1e-12):
    def cross_entropy(index):
        return -sum(t * math.log(max(s, epsilon)) for s, t in zip(student[index], teacher[index], strict=True))

    return mean(cross_entropy, items(student.shape[:-1], mask))


def value_relation(student, teacher, mask=None, keys=None):
    def divergence(index):
        b, h, i = index
        counted = [j for j in range(student.shape[2]) if mask is None or mask[b, j]]
        r_s, r_t = (_relation(side[b, h, i], [side[b, h, j] for j in counted]) for side in (student, teacher))
        return sum(t * (math.log(t) - math.log(s)) for s, t in zip(r_s, r_t, strict=True))

    return mean(divergence, items(student.shape[:3], mask))


def qkv_relation(student, teacher, mask=None, keys=None, relation_heads=None):
    if student.ndim == 4:
        most = min(student.shape[1], teacher.shape[1])
        student, teacher = (
            np.array([[np.concatenate(list(sample[:, i])) for i in range(side.shape[2])] for sample in side])
            for side in (student, teacher)
        )
    else:
        most = 1
    widths = student.shape[2], teacher.shape[2]
    if relation_heads is None:
        relation_heads = max(n for n in range(1, most + 1) if widths[0] % n == 0 and widths[1] % n == 0)

    def head(side, number):
        width = side.shape[2] // relation_heads
        return side[:, :, number * width : (number + 1) * width][:, None]

    parts = [value_relation(head(student, number), head(teacher, number), mask) for number in range(relation_heads)]
    return sum(parts) / relation_heads


def _relation(row, others):
    return softmax([sum(a * b for a, b in zip(row, other, strict=True)) / math.sqrt(len(row)) for other in others])


def cka(student, teacher, mask=None, keys=None, debiased=False):
    indices = list(items(student.shape[:-1], mask))
    n = len(indices)
    if n < (4 if debiased else 2):
        return 0.0

    def kernel(side):
        centre = [sum(side[index][k] for index in indices) / n for k in range(side.shape[-1])]
        rows = [[x - c for x, c in zip(side[index], centre, strict=True)] for index in indices]
        return [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]

    def hsic(p, q):
        if not debiased:
            return sum(p[i][j] * q[i][j] for i in range(n) for j in range(n))
        others = [(i, j) for i in range(n) for j in range(n) if i != j]
        trace = sum(p[i][j] * q[i][j] for i, j in others)
        sums = sum(p[i][j] for i, j in others) * sum(q[i][j] for i, j in others)
        rows = [sum(p[i][j] for j in range(n) if j != i) * sum(q[i][j] for j in range(n) if j != i) for i in range(n)]
        return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * sum(rows)) / (n * (n - 3))

    ours, theirs = kernel(student), kernel(teacher)
    return 1 - hsic(ours, theirs) / math.sqrt(hsic(ours, ours) * hsic(theirs, theirs))


def gram(student, teacher, mask=None, keys=None, channel=False):
    def counted(b):
        return [i for i in range(student.shape[1]) if mask is None or mask[b, i]]

    def product(side, b, i, j):
        return sum(x * y for x, y in zip(side[b, i], side[b, j], strict=True)) / side.shape[2]

    def error(index):
        return (product(student, *index) - product(teacher, *index)) ** 2

    def channel_error(b):
        rows, width = counted(b), student.shape[2]
        errors = []
        for k in range(width):
            for m in range(width):
                ours, theirs = (sum(side[b, i, k] * side[b, i, m] for i in rows) for side in (student, teacher))
                errors.append(((ours - theirs) / len(rows)) ** 2)
        return sum(errors) / len(errors)

    samples = [b for b in range(len(student)) if counted(b)]
    if channel:
        return mean(channel_error, iter(samples))
    return mean(error, ((b, i, j) for b in samples for i in counted(b) for j in counted(b)))


def bert_emd(
    student,
    teacher,
    mask=None,
    keys=None,
    regularisation=0.05,
    iterations=100,
    learn_weights=True,
    student_weights=None,
    teacher_weights=None,
    projection=None,
):
    """Of lists of layers, or of one with one. `projection` is a matrix and an offset, from student's to teacher's."""
    student, teacher = ([side] if isinstance(side, np.ndarray) else side for side in (student, teacher))
    if projection is not None:
        student = [side @ projection[0].T + projection[1] for side in student]
    cost = [[_mean_error(s, t, mask, keys) for t in teacher] for s in student]
    plan = transport_plan(cost, student_weights, teacher_weights, regularisation, iterations)
    return sum(p * c for row, costs in zip(plan, cost, strict=True) for p, c in zip(row, costs, strict=True))


def _mean_error(s, t, mask, keys):
    return hidden_mse(s, t, mask) if s.ndim == 3 else attention_mse(s, t, mask, keys)


def transport_plan(cost, student_weights=None, teacher_weights=None, regularisation=0.05, iterations=100):
    """Sinkhorn's scaling of exp(-cost / (regularisation * mean cost)) to the weights as sums of rows and columns."""
    height, width = len(cost), len(cost[0])
    rows = [1 / height] * height if student_weights is None else student_weights
    columns = [1 / width] * width if teacher_weights is None else teacher_weights
    scale = regularisation * sum(sum(row) for row in cost) / (height * width)
    plan = [[math.exp(-c / scale) if scale else 1.0 for c in row] for row in cost]
    for _ in range(iterations):
        plan = [[p * rows[m] / sum(row) for p in row] for m, row in enumerate(plan)]
        sums = [sum(row[n] for row in plan) for n in range(width)]
        plan = [[p * columns[n] / sums[n] for n, p in enumerate(row)] for row in plan]
    return plan


def similarity_preserving(student, teacher, mask=None, keys=None, pooling="mean"):
    def similarities(rows):
        products = [[dot(a, b) for b in rows] for a in rows]
        return [[x / (norm(row) or 1.0) for x in row] for row in products]

    return mean_of_pairs(*(similarities(rows_of(side, mask, pooling)) for side in (student, teacher)))


def rkd_distance(student, teacher, mask=None, keys=None, pooling="mean", average="all"):
    def distances(rows):
        found = [[norm(a - b) for b in rows] for a in rows]
        apart = [d for i, row in enumerate(found) for j, d in enumerate(row) if i != j]
        scale = sum(apart) / max(len(apart), 1) or 1.0
        return [[d / scale for d in row] for row in found]

    s, t = (distances(rows_of(side, mask, pooling)) for side in (student, teacher))
    total = sum(smooth_l1(s[i][j] - t[i][j]) for i in range(len(s)) for j in range(len(s)))
    return total / max(len(s) * (len(s) - 1) if average == "pairs" else len(s) ** 2, 1)


def rkd_angle(student, teacher, mask=None, keys=None, pooling="mean", average="all"):
    s, t = (rows_of(side, mask, pooling) for side in (student, teacher))
    total, number = 0.0, 0
    for j in range(len(s)):
        for i in range(len(s)):
            for k in range(len(s)):
                if average == "all" or len({i, j, k}) == 3:
                    angles = (cosine(rows[i] - rows[j], rows[k] - rows[j]) for rows in (s, t))
                    total += smooth_l1(next(angles) - next(angles))
                    number += 1
    return total / max(number, 1)


def correlation_congruence(
    student, teacher, mask=None, keys=None, pooling="mean", kernel="taylor", gamma=0.4, order=2
):
    def correlation(a, b):
        a, b = a / (norm(a) or 1.0), b / (norm(b) or 1.0)
        if kernel == "bilinear":
            return dot(a, b)
        if kernel == "rbf":
            return math.exp(-gamma * norm(a - b) ** 2)
        terms = [(2 * gamma) ** p / math.factorial(p) * dot(a, b) ** p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    sides = (rows_of(side, mask, pooling) for side in (student, teacher))
    return mean_of_pairs(*([[correlation(a, b) for b in rows] for a in rows] for rows in sides))


def pkt(student, teacher, mask=None, keys=None, pooling="mean", average="all", epsilon=1e-7):
    whole = average == "all"

    def probabilities(rows):
        units = [row / (norm(row) + epsilon) for row in rows]
        kernel = [
            [(1 + dot(a, b)) / 2 if whole or i != j else 0.0 for j, b in enumerate(units)] for i, a in enumerate(units)
        ]
        return [[k / (sum(row) or 1.0) for k in row] for row in kernel]

    s, t = (probabilities(rows_of(side, mask, pooling)) for side in (student, teacher))
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if whole or i != j]
    total = sum(t[i][j] * math.log((t[i][j] + epsilon) / (s[i][j] + epsilon)) for i, j in pairs)
    return total / max(len(pairs), 1) if whole else total


def nst(student, teacher, mask=None, keys=None):
    def channels(feature, b):
        if feature.ndim == 4:
            return [channel.reshape(-1) for channel in feature[b]]
        places = [i for i in range(feature.shape[1]) if mask is None or mask[b, i]]
        return [np.array([feature[b, i, c] for i in places]) for c in range(feature.shape[2])]

    def squared_mmd(b):
        def kernel(xs, ys):
            return sum(cosine(x, y) ** 2 for x in xs for y in ys) / (len(xs) * len(ys))

        s, t = (pooled_to(side, student, teacher) if side.ndim == 4 else side for side in (student, teacher))
        s, t = channels(s, b), channels(t, b)
        return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)

    return mean(squared_mmd, (b for b in range(len(student)) if mask is None or mask[b].any()))


def crd(
    student,
    teacher,
    mask=None,
    keys=None,
    *,
    num_samples,
    negatives,
    embedding_size,
    temperature=0.07,
    pooling="mean",
    **state,
):
    """Sample b of the batch is number b of the training set; its negatives are the numbers that follow."""
    flat = [side.mean((2, 3)) if side.ndim == 4 and pooling == "mean" else side for side in (student, teacher)]
    rows = [rows_of(side, mask, pooling) for side in flat]
    present = [b for b in range(len(student)) if mask is None or mask[b].any()]
    total, noise = 0.0, negatives / num_samples
    for number, (side, other) in enumerate((("student", "teacher"), ("teacher", "student"))):
        weight, bias = state[f"embed_{side}.weight"], state[f"embed_{side}.bias"]
        for b, row in zip(present, rows[number], strict=True):
            anchor = np.array([dot(w, row) for w in weight]) + bias
            anchor = anchor / norm(anchor)
            drawn = [(b + 1 + k) % num_samples for k in range(negatives)]
            h = {
                i: math.exp(dot(anchor, state[f"{other}_memory"][i]) / temperature - state["log_normaliser"][number])
                for i in [b, *drawn]
            }
            total -= math.log(h[b] / (h[b] + noise))
            total -= sum(math.log(noise / (h[i] + noise)) for i in drawn)
    return total / max(len(present), 1)


def soft_contrastive(
    student, teacher, mask=None, keys=None, pooling="mean", temperature=0.05, teacher_temperature=None
):
    s, t = (rows_of(side, mask, pooling) for side in (student, teacher))
    total = 0.0
    for own, others in zip(s, t, strict=True):
        p_s = softmax([cosine(own, other) for other in t], temperature)
        p_t = softmax([cosine(others, other) for other in t], teacher_temperature or temperature)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p_s, p_t, strict=True) if b > 0)
    return total / max(len(s), 1)


def margin_mse(student, teacher, mask=None, keys=None, query=()):
    def of_query(s, t):
        differences = [((s[0] - a) - (t[0] - b)) ** 2 for a, b in zip(s[1:], t[1:], strict=True)]
        return sum(differences) / max(len(differences), 1)

    return of_queries(of_query, student, teacher, query)


def listwise_kl(student, teacher, mask=None, keys=None, query=(), temperature=1.0):
    def of_query(s, t):
        return divergence(softmax(t, temperature), softmax(s, temperature)) if s else 0.0

    return of_queries(of_query, student, teacher, query)


def of_queries(value, student, teacher, query):
    """The mean of `value(scores, teacher's scores)` over queries, each counted by its rows."""
    total = 0.0
    for number in set(query):
        rows = [row for row in range(len(query)) if query[row] == number]
        texts = student.shape[1] > 1 or teacher.shape[1] > 1  # the first is the query itself

        def scores(side, rows=rows, texts=texts):
            if side.shape[1] == 1:
                return [side[row, 0] for row in rows[texts:]]
            return [dot(side[rows[0]], side[row]) for row in rows[1:]]

        total += len(rows) * value(scores(student), scores(teacher))
    return total / max(len(query), 1)


def rows_of(feature, mask=None, pooling="mean"):
    """One vector per sample that is there: a map flattened, tokens averaged or the first of them."""
    rows = []
    for b in range(len(feature)):
        if mask is not None and not mask[b].any():
            continue
        if feature.ndim == 3:
            tokens = [feature[b, i] for i in range(feature.shape[1]) if mask is None or mask[b, i]]
            rows.append(tokens[0] if pooling == "first" else sum(tokens) / len(tokens))
        else:
            rows.append(feature[b].reshape(-1))
    return rows


def pooled_to(feature, *others):
    """A map averaged down to the smallest height and width there are; window i of n runs from i h / n, rounded down,
    to (i + 1) h / n, rounded up."""
    height, width = (min(other.shape[d] for other in others) for d in (2, 3))
    small = np.zeros((*feature.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * feature.shape[2] // height, -(-(i + 1) * feature.shape[2] // height)
            left, right = j * feature.shape[3] // width, -(-(j + 1) * feature.shape[3] // width)
            small[:, :, i, j] = feature[:, :, top:bottom, left:right].mean((2, 3))
    return small


def mean_of_pairs(s, t):
    squares = [(a - b) ** 2 for row_s, row_t in zip(s, t, strict=True) for a, b in zip(row_s, row_t, strict=True)]
    return sum(squares) / max(len(squares), 1)


def smooth_l1(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Sequence[float]) -> float:
    return math.sqrt(dot(a, a))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """0 where a vector has no length."""
    lengths = norm(a) * norm(b)
    return dot(a, b) / lengths if lengths else 0.0


def fitnet_hint(student, teacher, mask=None, keys=None, half_sum=False):
    def hint(pair):
        squares = [(s - t) ** 2 for s, t in zip(*pair, strict=True)]
        return sum(squares) / 2 if half_sum else sum(squares) / len(squares)

    return mean(hint, pairs_of_items(student, teacher, mask))


def attention_transfer(student, teacher, mask=None, keys=None, norm=False):
    def distance(pair):
        maps = []
        for positions in pair:
            energy = [sum(x * x for x in channels) / len(channels) for channels in positions]
            maps.append(unit(energy))
        squares = [(s - t) ** 2 for s, t in zip(*maps, strict=True)]
        return math.sqrt(sum(squares)) if norm else sum(squares) / len(squares)

    student, teacher = pooled_alike(student, teacher)
    return mean(distance, zip(samples(student, mask), samples(teacher, mask), strict=True))


def activation_boundary(student, teacher, mask=None, keys=None, margin=1.0):
    def boundary(pair):
        total = 0.0
        for s, t in zip(*(np.ravel(positions) for positions in pair), strict=True):
            if s > -margin and t <= 0:
                total += (s + margin) ** 2
            elif s <= margin and t > 0:
                total += (s - margin) ** 2
        return total

    return mean(boundary, zip(samples(student, mask), samples(teacher, mask), strict=True))


def margin_relu(student, teacher, mask=None, keys=None, margin=None, **state):
    total = 0.0
    for b, c, i, j in np.ndindex(*student.shape):
        r = max(teacher[b, c, i, j], state["margins"][c] if margin is None else margin)
        s = student[b, c, i, j]
        total += 0.0 if s <= r <= 0 else (s - r) ** 2
    return total / max(len(student), 1)


def negative_mean(sigma, mu, steps=20000):
    """E[x | x < 0] of a normal distribution, by summing over slices of twelve sigma."""
    least, most = mu - 12 * sigma, min(0.0, mu + 12 * sigma)
    points = [least + (k + 0.5) * (most - least) / steps for k in range(steps)]
    weights = [math.exp(-(((x - mu) / sigma) ** 2) / 2) for x in points]
    return sum(w * x for w, x in zip(weights, points, strict=True)) / sum(weights)


def fsp(student, teacher, mask=None, keys=None, squared_frobenius=False):
    def flow(first, second):
        first, second = (np.array([f]) for f in (first, second))
        first, second = (f[0] for f in pooled_alike(first, second))
        places = list(np.ndindex(*first.shape[1:]))
        return [
            [sum(row[place] * column[place] for place in places) / len(places) for column in second] for row in first
        ]

    total = 0.0
    for b in range(len(student[0])):
        flows = [np.ravel(flow(side[0][b], side[1][b])) for side in (student, teacher)]
        squares = [(s - t) ** 2 for s, t in zip(*flows, strict=True)]
        total += sum(squares) if squared_frobenius else sum(squares) / len(squares)
    return total / max(len(student[0]), 1)


def channel_wise(student, teacher, mask=None, keys=None, temperature=1.0):
    def divergence(pair):
        total, channels = 0.0, len(pair[0][0])
        for c in range(channels):
            q_s, q_t = (softmax([position[c] for position in positions], temperature) for positions in pair)
            total += sum(t * (math.log(t) - math.log(s)) for s, t in zip(q_s, q_t, strict=True))
        return temperature**2 * total / channels

    return mean(divergence, zip(samples(student, mask), samples(teacher, mask), strict=True))


def variational_information(
    student, teacher, mask=None, keys=None, regressor=True, variance=5.0, epsilon=1e-5, **state
):
    def regressed(channels):
        for number in (0, 2, 4) if regressor else ():
            channels = linear(channels, state[f"regressor.{number}.weight"], state[f"regressor.{number}.bias"])
            channels = [max(x, 0.0) for x in channels] if number < 4 else channels
        return channels

    def likelihood(pair):
        values = []
        for s, t in zip(*pair, strict=True):
            for c, (mu, x) in enumerate(zip(regressed(s), t, strict=True)):
                var = math.log1p(math.exp(state["raw_variance"][c])) + epsilon
                values.append(0.5 * ((x - mu) ** 2 / var + math.log(var)))
        return sum(values) / len(values)

    student, teacher = pooled_alike(student, teacher)
    if student.ndim == 3:  # an item is a token, not a sample
        student, teacher = (np.array(list(items_of(side, mask))) for side in (student, teacher))
    return mean(likelihood, zip(samples(student), samples(teacher), strict=True))


def paraphraser(student, teacher, mask=None, keys=None, rate=0.5, **state):
    def error(item):
        restored = np.ravel(two_layers(two_layers(item, state, "encoder"), state, "decoder"))
        return sum((x - y) ** 2 for x, y in zip(restored, np.ravel(item), strict=True)) / restored.size

    return mean(error, items_of(teacher, mask))


def factor_transfer(student, teacher, mask=None, keys=None, rate=0.5, paraphraser_weight=None, norm=False, **state):
    weight = 1.0 if paraphraser_weight is None else paraphraser_weight
    own = {key.removeprefix("paraphraser."): value for key, value in state.items()}

    def distance(pair):
        factors = two_layers(pair[0], state, "translator"), two_layers(pair[1], own, "encoder")
        if factors[0].ndim == 3:
            factors = [side[0] for side in pooled_alike(*(factor[None] for factor in factors))]
        differences = [abs(s - t) for s, t in zip(*(unit(np.ravel(f)) for f in factors), strict=True)]
        if norm:
            return math.sqrt(sum(d * d for d in differences))
        return sum(differences) / len(differences)

    transfer = mean(distance, zip(items_of(student, mask), items_of(teacher, mask), strict=True))
    return transfer + weight * paraphraser(student, teacher, mask, **own)


def review_kd_hcl(student, teacher, mask=None, keys=None):
    def squared_error(one, other):
        return sum((s - t) ** 2 for s, t in zip(np.ravel(one), np.ravel(other), strict=True)) / one.size

    value, weights = squared_error(student, teacher), 1.0
    for number, size in enumerate([size for size in (4, 2, 1) if size < student.shape[2]], 1):
        grid = np.zeros((1, 1, size, size))
        value += squared_error(pooled_to(student, grid), pooled_to(teacher, grid)) / 2**number
        weights += 1 / 2**number
    return value / weights


def review_kd(student, teacher, mask=None, keys=None, width=None, **state):
    def convolved(feature, name):
        return convolution(feature, state[f"{name}.weight"], state.get(f"{name}.bias"))

    total = 0.0
    for b in range(len(student[0])):
        fused = None
        for i in reversed(range(len(student))):
            level = convolved(student[i][b], f"reduce.{i}")
            if fused is not None:
                fused = nearest(fused, *level.shape[1:])
                scores = convolved(level, f"attention.{i}") + convolved(fused, f"attention_below.{i}")
                for place in np.ndindex(*level.shape):
                    here, below = (1 / (1 + math.exp(-scores[(k, *place[1:])])) for k in (0, 1))
                    level[place] = here * level[place] + below * fused[place]
            fused = level
            out = convolved(nearest(fused, *teacher[i].shape[2:]), f"expand.{i}")
            total += review_kd_hcl(out[None], teacher[i][b][None])
    return total / max(len(student[0]), 1)


def samples(feature, mask=None):
    """Of every sample that has any, the positions that count, each a list of channels."""
    for b, sample in enumerate(feature):
        if feature.ndim == 4:
            yield [sample[:, i, j] for i, j in np.ndindex(*sample.shape[1:])]
        elif feature.ndim == 2:
            yield [sample]
        else:
            positions = [token for n, token in enumerate(sample) if mask is None or mask[b, n]]
            if positions:
                yield positions


def items_of(feature, mask=None):
    """The items that count: a map, a vector, a token."""
    for b, sample in enumerate(feature):
        if feature.ndim != 3:
            yield sample
        else:
            yield from (token for n, token in enumerate(sample) if mask is None or mask[b, n])


def pairs_of_items(student, teacher, mask=None):
    for s, t in zip(items_of(student, mask), items_of(teacher, mask), strict=True):
        yield np.ravel(s), np.ravel(t)


def unit(values):
    length = math.sqrt(sum(x * x for x in values))
    return [x / max(length, 1e-12) for x in values]


def linear(channels, weight, bias):
    rows = weight.reshape(len(weight), -1)
    return [sum(w * x for w, x in zip(row, channels, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def convolution(feature, weight, bias=None):
    """(channels, height, width), padded so that its size stays."""
    channels, height, width = feature.shape
    out, reach = np.zeros((len(weight), height, width)), weight.shape[2] // 2
    for o, i, j in np.ndindex(*out.shape):
        out[o, i, j] = 0.0 if bias is None else bias[o]
        for c, di, dj in np.ndindex(*weight.shape[1:]):
            row, column = i + di - reach, j + dj - reach
            if 0 <= row < height and 0 <= column < width:
                out[o, i, j] += weight[o, c, di, dj] * feature[c, row, column]
    return out


def two_layers(item, state, name):
    for number in (0, 2):
        weight, bias = (state[f"{name}.{number}.{part}"] for part in ("weight", "bias"))
        item = convolution(item, weight, bias) if item.ndim == 3 else np.array(linear(item, weight, bias))
        if number == 0:
            item = np.where(item > 0, item, 0.1 * item)
    return item


def pooled_alike(first, second):
    if first.ndim != 4:
        return first, second
    return pooled_to(first, first, second), pooled_to(second, first, second)


def nearest(feature, *size):
    """(channels, height, width) at another size, each place from the nearest one above and to the left."""
    rows, columns = ([k * old // new for k in range(new)] for old, new in zip(feature.shape[1:], size, strict=True))
    return np.array([[[channel[row, column] for column in columns] for row in rows] for channel in feature])


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

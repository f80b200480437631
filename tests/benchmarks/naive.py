"""The formula of every loss as one writes it down from the paper: plain torch, no thought for memory, no corner cases.

Named and called like the losses they stand for, with the losses' defaults; of a loss with state the module comes
first, for its parameters and buffers. No mask: every item counts. `losses.py` times the losses next to these.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# --- hidden states -----------------------------------------------------------------------------------------------


def hidden_mse(student, teacher):
    return ((student - teacher) ** 2).mean(-1)


def cos(student, teacher):
    return 0.5 - 0.5 * F.cosine_similarity(student, teacher, dim=-1)


def hidden_cosine(student, teacher):
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def pkd(student, teacher):
    if student.dim() == 3:
        student, teacher = student[:, 0], teacher[:, 0]
    return ((F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)) ** 2).sum(-1)


def mobilebert_feature(student, teacher):
    return ((student - teacher) ** 2).mean(-1)


def cka(student, teacher):
    x, y = (side.flatten(0, -2) for side in (student, teacher))
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def gram(student, teacher):
    s, t = (side @ side.mT / side.shape[-1] for side in (student, teacher))
    return ((s - t) ** 2)[:, None]


# --- attention ---------------------------------------------------------------------------------------------------


def attention_mse(student, teacher):
    return (student - teacher) ** 2


def attention_kl(student, teacher, epsilon=1e-12):
    return (teacher * (teacher.clamp(min=epsilon).log() - student.clamp(min=epsilon).log())).sum(-1)


def attention_cross_entropy(student, teacher, epsilon=1e-12):
    return -(teacher * student.clamp(min=epsilon).log()).sum(-1)


def value_relation(student, teacher):
    s, t = (F.log_softmax(side @ side.mT / math.sqrt(side.shape[-1]), dim=-1) for side in (student, teacher))
    return (t.exp() * (t - s)).sum(-1)


def qkv_relation(student, teacher):
    """As many relation heads as there are heads; of hidden states, one."""
    if student.dim() == 3:
        student, teacher = student[:, None], teacher[:, None]
    return value_relation(student, teacher).mean(1)


# --- many layers with many ---------------------------------------------------------------------------------------


def bert_emd(module, student, teacher):
    cost = torch.stack([torch.stack([((s - t) ** 2).mean() for t in teacher]) for s in student])
    with torch.no_grad():
        kernel = (-cost / (module.regularisation * cost.mean())).exp()
        columns = torch.ones_like(module.teacher_weights)
        for _ in range(module.iterations):
            rows = module.student_weights / (kernel @ columns)
            columns = module.teacher_weights / (kernel.T @ rows)
        plan = rows[:, None] * kernel * columns
        for weights, dimension in ((module.student_weights, 1), (module.teacher_weights, 0)):
            inverse = weights / (plan * cost).sum(dimension)
            weights.copy_(inverse / inverse.sum())
    return (plan * cost).sum()


# --- logits ------------------------------------------------------------------------------------------------------


def kl_divergence(student, teacher, temperature=1.0):
    log_s, log_t = F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1)


def soft_cross_entropy(student, teacher, temperature=1.0):
    return -(F.softmax(teacher / temperature, dim=-1) * F.log_softmax(student / temperature, dim=-1)).sum(-1)


def logits_mse(student, teacher, temperature=1.0):
    return ((student / temperature - teacher / temperature) ** 2).mean(-1)


def reverse_kl(student, teacher, temperature=1.0):
    log_s, log_t = F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1)


def js_divergence(student, teacher, beta=0.5, temperature=1.0):
    s, t = F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    m = beta * t + (1 - beta) * s
    of_teacher, of_student = (t * (t.log() - m.log())).sum(-1), (s * (s.log() - m.log())).sum(-1)
    return beta * of_teacher + (1 - beta) * of_student


def skewed_kl(student, teacher, skew=0.1, temperature=1.0):
    s, t = F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    return (t * (t.log() - (skew * t + (1 - skew) * s).log())).sum(-1)


def skewed_reverse_kl(student, teacher, skew=0.1, temperature=1.0):
    s, t = F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    return (s * (s.log() - ((1 - skew) * t + skew * s).log())).sum(-1)


def total_variation(student, teacher, temperature=1.0):
    s, t = F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    return (t - s).abs().sum(-1) / 2


def dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0):
    label = F.one_hot(labels, student.shape[-1])
    s, t = F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    b_s, b_t = (torch.stack([(p * label).sum(-1), (p * (1 - label)).sum(-1)], -1) for p in (s, t))
    of_label = (b_t * (b_t.log() - b_s.log())).sum(-1)
    q_s, q_t = (F.log_softmax(z / temperature - 1000 * label, dim=-1) for z in (student, teacher))
    of_others = (q_t.exp() * (q_t - q_s)).sum(-1)
    return temperature**2 * (alpha * of_label + beta * of_others)


def dist(student, teacher, epsilon=1e-8):
    def correlation(u, v):
        u, v = u - u.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
        return (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1) + epsilon)

    s, t = (F.softmax(side.flatten(0, -2), dim=-1) for side in (student, teacher))
    return (1 - correlation(s, t)).mean() + (1 - correlation(s.T, t.T)).mean()


def logit_standardization(student, teacher, temperature=2.0, epsilon=1e-7):
    def standardised(z):
        return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + epsilon)

    return kl_divergence(standardised(student), standardised(teacher), temperature)


def objectness_scaled(student, teacher, boxes=4):
    object_s, object_t = student[..., boxes].sigmoid(), teacher[..., boxes].sigmoid()
    of_box = ((student[..., :boxes] - teacher[..., :boxes]) ** 2).sum(-1)
    class_s, class_t = (side[..., boxes + 1 :].softmax(-1) for side in (student, teacher))
    of_class = ((class_s - class_t) ** 2).sum(-1)
    return (object_s - object_t) ** 2 + object_t * (of_class + of_box)


def hard_cross_entropy(student, labels):
    return -F.log_softmax(student, dim=-1).gather(-1, labels[..., None])[..., 0]


def label_mse(student, labels):
    return (student[:, 0] - labels) ** 2


# --- several teachers --------------------------------------------------------------------------------------------


def ensemble_cross_entropy(student, teacher, temperature=1.0):
    mean = torch.stack([F.softmax(one / temperature, dim=-1) for one in teacher]).mean(0)
    return -(mean * F.log_softmax(student[0] / temperature, dim=-1)).sum(-1)


def ensemble_kl(student, teacher, temperature=1.0):
    mean = torch.stack([F.softmax(one / temperature, dim=-1) for one in teacher]).mean(0)
    return temperature**2 * (mean * (mean.log() - F.log_softmax(student[0] / temperature, dim=-1))).sum(-1)


def adversarial(module, student, teacher, temperature=1.0):
    mean = torch.stack([F.softmax(one / temperature, dim=-1) for one in teacher]).mean(0)
    of_student = F.softmax(student[0] / temperature, dim=-1)
    of_student = 2 * of_student.detach() - of_student  # the same number, its gradient turned round
    d_t, d_s = torch.sigmoid(module.discriminator(mean)), torch.sigmoid(module.discriminator(of_student))
    return -(d_t.log() + (1 - d_s).log()).squeeze(-1) / 2


# --- relations ---------------------------------------------------------------------------------------------------


def rows_of(feature):
    """One vector per sample: the mean of its tokens, or its map as one row."""
    return feature.mean(1) if feature.dim() == 3 else feature.flatten(1)


def similarity_preserving(student, teacher):
    s, t = (F.normalize(rows @ rows.T, dim=1) for rows in (rows_of(student), rows_of(teacher)))
    return ((s - t) ** 2).mean()


def rkd_distance(student, teacher):
    def distances(rows):
        found = (rows[:, None] - rows[None]).norm(dim=-1)
        return found / found[found > 0].mean()

    return F.smooth_l1_loss(distances(rows_of(student)), distances(rows_of(teacher)))


def rkd_angle(student, teacher):
    def angles(rows):
        units = F.normalize(rows[None] - rows[:, None], dim=-1)
        return units @ units.mT

    return F.smooth_l1_loss(angles(rows_of(student)), angles(rows_of(teacher)))


def correlation_congruence(student, teacher, gamma=0.4):
    def correlations(rows):
        units = F.normalize(rows, dim=1)
        cosines = units @ units.T
        return math.exp(-2 * gamma) * (1 + 2 * gamma * cosines + 2 * gamma**2 * cosines**2)

    return ((correlations(rows_of(student)) - correlations(rows_of(teacher))) ** 2).mean()


def soft_contrastive(student, teacher, temperature=0.05):
    s, t = (F.normalize(rows_of(side), dim=1) for side in (student, teacher))
    return F.kl_div(
        F.log_softmax(s @ t.T / temperature, 1), F.softmax(t @ t.T / temperature, 1), reduction="batchmean"
    )


def margin_mse(student, teacher, query):
    s, t = (scores_of(side, query) for side in (student, teacher))
    margins = (s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])
    share = (2 + margins.shape[1]) / margins.shape[1]
    return F.pad(margins**2 * share, (2, 0)).flatten()


def listwise_kl(student, teacher, query):
    s, t = (scores_of(side, query) for side in (student, teacher))
    parts = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none")
    return F.pad(parts * (1 + s.shape[1]), (1, 0)).flatten()


def scores_of(rows, query):
    rows = rows.reshape(len(query.unique()), -1, rows.shape[1])
    return (rows[:, :1] * rows[:, 1:]).sum(-1)


def pkt(student, teacher, epsilon=1e-7):
    def probabilities(rows):
        units = rows / (rows.norm(dim=1, keepdim=True) + epsilon)
        kernel = (1 + units @ units.T) / 2
        return kernel / kernel.sum(1, keepdim=True)

    s, t = probabilities(rows_of(student)), probabilities(rows_of(teacher))
    return (t * ((t + epsilon) / (s + epsilon)).log()).mean()


def nst(student, teacher):
    def kernel(x, y):
        return ((x[:, :, None] * y[:, None]).sum(-1) ** 2).mean((1, 2))

    s, t = (side.flatten(2) if side.dim() == 4 else side.mT for side in (student, teacher))
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def crd(module, student, teacher, sample_index):
    student, teacher = (side.mean((2, 3)) if side.dim() == 4 else rows_of(side) for side in (student, teacher))
    s, t = F.normalize(module.embed_student(student), dim=1), F.normalize(module.embed_teacher(teacher), dim=1)
    memories, count = (module.student_memory, module.teacher_memory), len(module.student_memory)
    drawn = torch.randint(count - 1, (len(s), module.negatives), device=s.device)
    drawn = torch.cat([sample_index[:, None], drawn + (drawn >= sample_index[:, None])], 1)
    values, noise = 0.0, module.negatives / count
    for side, (anchor, memory) in enumerate(((s, memories[1]), (t, memories[0]))):
        powers = ((memory[drawn] * anchor[:, None]).sum(-1) / module.temperature).exp()
        if module.log_normaliser[side].isinf():
            module.log_normaliser[side] = (powers.detach().mean() * count).log()
        h = powers / module.log_normaliser[side].exp()
        values = values - (h[:, 0] / (h[:, 0] + noise)).log() - (noise / (h[:, 1:] + noise)).log().sum(1)
    with torch.no_grad():
        for memory, new in zip(memories, (s, t), strict=True):
            memory[sample_index] = F.normalize(
                module.momentum * memory[sample_index] + (1 - module.momentum) * new, dim=1
            )
    return values


# --- feature maps ------------------------------------------------------------------------------------------------


def items_of(feature):
    """All elements of an item in the last dimension: of a sample of a map, a vector, a token."""
    return feature.flatten(1) if feature.dim() == 4 else feature


def fitnet_hint(student, teacher):
    return items_of((student - teacher) ** 2).mean(-1)


def attention_transfer(student, teacher):
    axis = 1 if student.dim() == 4 else 2
    s, t = (F.normalize((side**2).mean(axis).flatten(1), dim=1) for side in (student, teacher))
    return ((s - t) ** 2).mean(1)


def fsp(student, teacher):
    def flow(first, second):
        return first.flatten(2) @ second.flatten(2).mT / (first.shape[2] * first.shape[3])

    return ((flow(*student) - flow(*teacher)) ** 2).mean((1, 2))


def channel_wise(student, teacher, temperature=1.0):
    s, t = (side.flatten(2) if side.dim() == 4 else side.mT for side in (student, teacher))
    log_s, log_t = F.log_softmax(s / temperature, dim=2), F.log_softmax(t / temperature, dim=2)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(2).mean(1)


def variational_information(module, student, teacher):
    variance = F.softplus(module.raw_variance) + module.epsilon
    variance = variance[:, None, None] if student.dim() == 4 else variance
    return items_of(((teacher - module.regressor(student)) ** 2 / variance + variance.log()) / 2).mean(-1)


def activation_boundary(student, teacher, margin=1.0):
    above = (student < margin) * (teacher > 0) * (student - margin) ** 2
    below = (student > -margin) * (teacher <= 0) * (student + margin) ** 2
    return (above + below).flatten(1).sum(1)


def margin_relu(module, student, teacher):
    target = torch.maximum(teacher, module.margins[:, None, None])
    skipped = (student <= target) & (target <= 0)
    return ((student - target) ** 2 * ~skipped).flatten(1).sum(1)


def paraphraser(module, student, teacher):
    return items_of((module.decoder(module.encoder(teacher)) - teacher) ** 2).mean(-1)


def factor_transfer(module, student, teacher):
    factor = module.paraphraser.encoder(teacher)
    s, t = (F.normalize(items_of(f), dim=-1) for f in (module.translator(student), factor.detach()))
    reconstruction = items_of((module.paraphraser.decoder(factor) - teacher) ** 2).mean(-1)
    return (s - t).abs().mean(-1) + reconstruction


def review_kd(module, student, teacher):
    def hcl(s, t):
        errors, weights = [((s - t) ** 2).mean((1, 2, 3))], [1.0]
        for size in (4, 2, 1):
            if size < s.shape[2]:
                pooled = F.adaptive_avg_pool2d(s, size) - F.adaptive_avg_pool2d(t, size)
                errors.append((pooled**2).mean((1, 2, 3)))
                weights.append(weights[-1] / 2)
        return sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)

    fused, values = None, []
    for i in reversed(range(len(teacher))):
        level = module.reduce[i](student[i])
        if fused is not None:
            fused = F.interpolate(fused, size=level.shape[2:])
            weight = torch.cat([module.attention[i].weight, module.attention_below[i].weight], 1)
            gates = torch.sigmoid(F.conv2d(torch.cat([level, fused], 1), weight, module.attention[i].bias))
            level = level * gates[:, :1] + fused * gates[:, 1:]
        fused = level
        values.append(hcl(module.expand[i](fused), teacher[i]))
    return torch.stack(values).sum(0)

"""A contrastive loss within the batch, whose labels are as soft as the teacher finds the samples alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_number_above_0
from .samples import at_least_one, samples, unit
from .softmax import divergence_of

_NOT_THERE = -1e9  # a similarity that no sample has: finite, so that 0 times it is 0


def soft_contrastive(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    pooling: str = "mean",
    temperature: float = 0.05,
    teacher_temperature: float | None = None,
) -> Tensor:
    """A sample's student embedding among the teacher's embeddings of the batch: as near to each as the teacher's own.

    p_s(j | i) = softmax_j (cos(s_i, t_j) / T),   p_t(j | i) = softmax_j (cos(t_i, t_j) / T_t)
    loss = mean_i KL(p_t(. | i) || p_s(. | i))

    As T_t goes to 0 the labels become hard: each sample is to be found among the others by its own embedding. The
    batch is the local one, of one process and one micro-batch.

    Args:
        student: (batch, width) or (batch, length, width).
        teacher: same shape.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.
        pooling: of tokens: `mean`, or `first` for the first token that counts ([CLS]).
        temperature: T, above 0.
        teacher_temperature: T_t, above 0; None for T, with which equal models are worth 0.

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: an argument is unknown or out of its range.

    Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, 2021, with the batch in the
    place of a queue.
    """
    check_number_above_0("temperature", temperature)
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    check_number_above_0("teacher_temperature", teacher_temperature)
    student_rows, teacher_rows, counted = samples(student, teacher, mask, teacher_mask, pooling)
    s, t = unit(student_rows), unit(teacher_rows)

    def log_probabilities(rows: Tensor, at: float) -> Tensor:
        return F.log_softmax((rows @ t.mT / at).masked_fill(counted[None, :] == 0, _NOT_THERE), dim=1)

    divergence = divergence_of(log_probabilities(t, teacher_temperature), log_probabilities(s, temperature))
    return torch.where(counted > 0, divergence, 0.0).sum() / at_least_one(counted.sum())

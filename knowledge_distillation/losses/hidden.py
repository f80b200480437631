"""Losses on hidden states, pooled vectors and other features compared position by position."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of hidden states, one value per item.

    d(i) = mean_k (student[i, k] - teacher[i, k])^2

    Args:
        student: (batch, length, width) hidden states, or any shape with the compared dimension last.
        teacher: same shape.

    Returns:
        The shape without its last dimension, each value 0 or more.

    Source: Jiao et al., TinyBERT, 2020, eq. 8.
    """
    return (student - teacher).square().mean(-1)


def cos(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the cosine distance, one value per item: 0 for equal directions, 1 for opposite ones.

    d(i) = 0.5 - 0.5 * cos(student[i], teacher[i])

    Args:
        student: (batch, length, width) or (batch, width).
        teacher: same shape.

    Returns:
        The shape without its last dimension, in [0, 1].

    Source: after Sanh et al., DistilBERT, 2019, whose cosine loss is twice this one.
    """
    return 0.5 - 0.5 * F.cosine_similarity(student, teacher, dim=-1)

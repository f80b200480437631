"""Losses on attention maps."""

from __future__ import annotations

from torch import Tensor


def attention_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of attention maps, one value per pair of a query row and a key.

    d(b, h, i, j) = (student[b, h, i, j] - teacher[b, h, i, j])^2

    Averaged over the rows and the keys that are not padding, it is sum / (heads * sum of length^2). The paper compares
    scores before softmax (`attention_scores`); probabilities (`attention`) may be compared as well.

    Args:
        student: (batch, heads, length, keys) attention map.
        teacher: same shape: the number of heads has to be equal.

    Returns:
        (batch, heads, length, keys), each value 0 or more.

    Source: Jiao et al., TinyBERT, 2020, eq. 7.
    """
    return (student - teacher).square()

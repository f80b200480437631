"""What numbers made by a generator or kept in a bank become before a model takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Any numbers into (low, high), by a sigmoid.

    Args:
        slope: above 1 drives numbers around 1, as generators make them, closer to the ends.
    """

    low: float = 0.0
    high: float = 1.0
    slope: float = 1.0

    def __call__(self, values: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (self.slope * values).sigmoid()


class SoftTokens:
    """(batch, length, vocabulary) -> (batch, length, width): each token a mixture of a model's word embeddings.

    Args:
        model: a transformers model; its embeddings are taken as they are, and no gradient reaches them.
    """

    def __init__(self, model: Any) -> None:
        self.weight: Tensor = model.get_input_embeddings().weight.detach()

    def __call__(self, values: Tensor) -> Tensor:
        return values.softmax(-1) @ self.weight.to(values)

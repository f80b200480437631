"""How well embeddings of texts say which texts are alike, and how near the student's are to the teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config.pooling import Pooling
from ..features.pooling import pooled, pooling_of
from .by_row import by_row
from .glue_metrics import pearson, spearmanr


class EmbeddingEvaluator:
    """Correlation of cosines with scores of pairs, and the mean cosine of student and teacher.

    Metrics are `spearmanr` and `pearson` of the student, the same of the teacher with `teacher_` in front, where there
    are scores; and `agreement`, the mean cosine of the student's embedding of a text with the teacher's: where these
    have two widths Spearman's correlation of the two models' cosines of pairs. The frozen teacher runs once.

    Args:
        scores: of each pair, which the rows 2 n and 2 n + 1 are; None where rows are texts alone.
    """

    greater_is_better = True

    def __init__(self, scores: Sequence[float] | None = None) -> None:
        self.scores = None if scores is None else np.asarray(scores, np.float64)
        self.primary_metric = "agreement" if scores is None else "spearmanr"
        self._teacher: NDArray[Any] | None = None

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        own = embeddings(student, dataloader, accelerator)
        if teacher is not None and self._teacher is None:
            self._teacher = embeddings(teacher, dataloader, accelerator)
        metrics = self._of_pairs(own)
        if self._teacher is None:
            return metrics
        metrics |= {f"teacher_{name}": value for name, value in self._of_pairs(self._teacher).items()}
        if own.shape == self._teacher.shape:
            return metrics | {"agreement": float(cosines(own, self._teacher).mean())}
        of_pairs = (cosines(side[:-1:2], side[1::2]) for side in (own, self._teacher))
        return metrics | {"agreement": spearmanr(*of_pairs)}

    def _of_pairs(self, rows: NDArray[Any]) -> dict[str, float]:
        if self.scores is None:
            return {}
        said = cosines(rows[0::2], rows[1::2])
        return {"spearmanr": spearmanr(said, self.scores), "pearson": pearson(said, self.scores)}


def embeddings(model: nn.Module, dataloader: Iterable[Any], accelerator: Any) -> NDArray[Any]:
    """(rows, width), pooled as the model's own are, in the order of the rows' `idx`."""
    pooling, _ = pooling_of(getattr(model, "model", model))
    return by_row(model, dataloader, accelerator, lambda output, inputs: embedding(output, inputs, pooling))


def embedding(output: Any, inputs: Mapping[str, Any], pooling: Pooling) -> Tensor:
    """(batch, width) embeddings of what a model without a head gives out."""
    states = getattr(output, "encoder_last_hidden_state", None)
    states = output.last_hidden_state if states is None else states
    return pooled(states, inputs.get("attention_mask"), pooling)


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """(rows,) cosine of each row with the other's; 0 with a row of length 0."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(lengths == 0, np.inf, lengths)

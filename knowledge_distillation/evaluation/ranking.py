"""How high the relevant candidates of a query stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .by_row import by_row

AT = 10  # places that are looked at

Array = NDArray[Any]


def reciprocal_rank(relevance: Array, at: int = AT) -> float:
    """1 / the place of the first relevant candidate among the first `at`, 0 where none is; in [0, 1].

    Args:
        relevance: (candidates,), the best first; above 0 is relevant.

    Source: Voorhees, The TREC-8 Question Answering Track Report, 1999.
    """
    places = np.flatnonzero(relevance[:at] > 0)
    return float(1 / (places[0] + 1)) if len(places) else 0.0


def ndcg(relevance: Array, at: int = AT) -> float:
    """Gain of the first `at` candidates, less at later places, over that of the best order; in [0, 1].

    DCG = sum_{i = 1 .. at} relevance(i) / log2(i + 1)

    Args:
        relevance: (candidates,), the best first; each 0 or more, and one above 0.

    Source: Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, 2002.
    """

    def gain(order: Array) -> Any:
        first = order[:at]
        return (first / np.log2(np.arange(2, len(first) + 2))).sum()

    return float(gain(relevance) / gain(-np.sort(-relevance)))


METRICS: dict[str, Callable[[Array], float]] = {f"ndcg@{AT}": ndcg, f"mrr@{AT}": reciprocal_rank}


def ranking_scores(scores: Array, query: Array, relevance: Array) -> dict[str, float]:
    """The mean of each metric over the queries that have a relevant candidate; equal scores stay in their order.

    Args:
        scores, query, relevance: (rows,), of each candidate.
    """
    groups = (np.flatnonzero(query == number) for number in np.unique(query))
    ranked = [relevance[rows][np.argsort(-scores[rows], kind="stable")] for rows in groups]
    lists = [one for one in ranked if (one > 0).any()]
    return {name: float(np.mean([metric(one) for one in lists])) if lists else 0.0 for name, metric in METRICS.items()}


class RankingEvaluator:
    """NDCG and MRR of the first ten, of student and teacher (`teacher_ndcg@10`). The frozen teacher runs once.

    Args:
        query: (rows,) the number of each candidate's query.
        relevance: (rows,) 0 for what is not relevant.
    """

    greater_is_better = True
    primary_metric = f"ndcg@{AT}"

    def __init__(self, query: Iterable[int], relevance: Iterable[float]) -> None:
        self.query, self.relevance = np.asarray([*query]), np.asarray([*relevance], np.float64)
        self._teacher: dict[str, float] = {}

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        if teacher is not None and not self._teacher:
            of_teacher = self._scores(teacher, dataloader, accelerator)
            self._teacher = {f"teacher_{name}": value for name, value in of_teacher.items()}
        return self._scores(student, dataloader, accelerator) | self._teacher

    def _scores(self, model: nn.Module, dataloader: Iterable[Any], accelerator: Any) -> dict[str, float]:
        scores = by_row(model, dataloader, accelerator, lambda output, inputs: output.logits[:, 0])
        return ranking_scores(scores, self.query, self.relevance)

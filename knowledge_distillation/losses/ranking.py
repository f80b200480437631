"""Losses on the candidates of a query: how far one is above another, and how they share the query between them.

The rows of one query have its number in the batch's `query`, and stand in one batch. Scores are rows of width 1,
such as the logits of a cross-encoder; of embeddings the first row of a query is that of its own text, and the score of
every other is its inner product with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .checks import check_above_0


def margin_mse(student: Tensor, teacher: Tensor, query: Tensor) -> Tensor:
    """Squared difference of the margins of a query's positive over its other candidates.

    d(n) = ((s_pos - s_n) - (t_pos - t_n))^2

    The positive is the first candidate of its query in the batch. A value is d(n) times the rows of its query for
    each of its negatives, so that the mean over all rows is the mean over negatives where queries have equally many;
    it is 0 of the positive, and of a query's own text.

    Args:
        student: (batch, 1) scores, or (batch, width) embeddings.
        teacher: either of these, for the same rows; beside embeddings the score of a query's own text is not read.
        query: (batch,) whole numbers, equal for the rows of one query.

    Returns:
        (batch,), each value 0 or more.

    Raises:
        ConfigError: the two sides, or the numbers of queries, are not of the same rows.

    Source: Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation, 2020.
    """
    s, t, candidates, rows = _lists(student, teacher, query)
    positive = candidates & _first(candidates)[None, :]
    margins = [torch.where(positive, scores[None, :], 0.0).sum(1) - scores for scores in (s, t)]
    negative = candidates.any(1) & ~positive.diagonal()
    share = rows / (candidates.sum(1) - 1).clamp(min=1)
    return torch.where(negative, (margins[0] - margins[1]).square() * share, 0.0)


def listwise_kl(student: Tensor, teacher: Tensor, query: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the probabilities with which a query's candidates are the best of them.

    p(n) = exp(s_n / T) / sum_m exp(s_m / T) over the candidates m of the query
    KL = sum_n p_t(n) log (p_t(n) / p_s(n))

    A row's value is its part of its query's sum, times the rows of the query, so that the mean over all rows is the
    mean over queries where these have equally many.

    Args:
        student: (batch, 1) scores, or (batch, width) embeddings.
        teacher: either of these, for the same rows; beside embeddings the score of a query's own text is not read.
        query: (batch,) whole numbers, equal for the rows of one query.
        temperature: above 0; for cosines about 0.05.

    Returns:
        (batch,), 0 of a query's own text; those of one query add up to 0 or more.

    Raises:
        ConfigError: the two sides, or the numbers of queries, are not of the same rows, or an argument is out of its
            range.

    Source: Ren et al., RocketQAv2, 2021; the probabilities are those of Cao et al., Learning to Rank: From Pairwise
    Approach to Listwise Approach, 2007.
    """
    check_above_0("temperature", temperature)
    s, t, candidates, rows = _lists(student, teacher, query)
    beside = candidates | torch.eye(len(s), dtype=torch.bool, device=s.device)  # no row is without any

    def log_probabilities(scores: Tensor) -> Tensor:
        softened = scores / temperature
        return softened - softened.expand(len(s), -1).masked_fill(~beside, -torch.inf).logsumexp(1)

    log_p_s, log_p_t = log_probabilities(s), log_probabilities(t)
    return torch.where(candidates.any(1), log_p_t.exp() * (log_p_t - log_p_s) * rows, 0.0)


def _lists(student: Tensor, teacher: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of both sides (batch,), which rows are candidates of one query (batch, batch), its rows (batch,)."""
    if not len(student) == len(teacher) == len(query) or query.dim() != 1:
        raise ConfigError(
            f"query has one number for each row of both sides: found {tuple(query.shape)}, and the student has "
            f"{len(student)} rows, the teacher {len(teacher)}"
        )
    same = query[:, None] == query[None, :]
    rows = same.sum(1).to(student.dtype)
    if student.shape[1] == teacher.shape[1] == 1:
        return student[:, 0], teacher[:, 0], same, rows
    own = _first(same)
    text = torch.where(same & own[None, :], torch.arange(len(query), device=query.device), 0).sum(1)
    s, t = (
        side[:, 0] if side.shape[1] == 1 else (side * side.index_select(0, text)).sum(1) for side in (student, teacher)
    )
    return s, t, same & ~own[:, None] & ~own[None, :], rows


def _first(same: Tensor) -> Tensor:
    """(batch,): which rows are the first of those that they are the same as."""
    return ~same.tril(-1).any(1)

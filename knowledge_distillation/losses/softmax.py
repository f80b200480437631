"""What losses on logits are made of: softened predictions, their divergence, labels that index the classes.

A logit of -inf says that there is no such class: its probability is 0, and 0 times whatever the other side says of it
is 0. A class that neither side has is no class of the loss at all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .checks import check_above_0
from .labels import IGNORED_LABEL


def softened(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits divided by one temperature, or by one for each item."""
    if isinstance(temperature, Tensor):
        return logits / temperature[..., None]
    check_above_0("temperature", temperature)
    return logits if temperature == 1 else logits / temperature


def softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return F.softmax(softened(logits, temperature), dim=-1)


def log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return F.log_softmax(softened(logits, temperature), dim=-1)


def divergence_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_c p(c) * (log p(c) - log q(c)), where 0 times whatever is 0."""
    nothing = is_nothing(log_p)
    log_p, log_q = log_p.masked_fill(nothing, 0.0), log_q.masked_fill(nothing, 0.0)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def expectation(p: Tensor, values: Tensor) -> Tensor:
    """sum_c p(c) * values(c), where 0 times whatever is 0."""
    return (p * values.masked_fill(p < torch.finfo(p.dtype).tiny, 0.0)).sum(-1)


def is_nothing(log_p: Tensor) -> Tensor:
    """Where probabilities are too small for a number of their type."""
    return log_p < math.log(torch.finfo(log_p.dtype).tiny)


def has_class(logits: Tensor) -> Tensor:
    """Where a logit is that of a class: not -inf."""
    return logits != -math.inf


def factor_of(temperature: float, scale_by_temperature: bool) -> float:
    return temperature**2 if scale_by_temperature else 1.0


def class_numbers(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels that index the classes: 0 where they are -100.

    Raises:
        ConfigError: they are not one whole number per item.
    """
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ConfigError(
            f"labels {tuple(labels.shape)} of {labels.dtype} do not fit logits {tuple(logits.shape)}: one class "
            "number is needed for each item"
        )
    return torch.where(labels == IGNORED_LABEL, 0, labels)


def check_classes(name: str, logits: Tensor) -> None:
    if logits.shape[-1] < 2:
        raise ConfigError(
            f"loss {name} compares classes: it needs two or more, and finds logits {tuple(logits.shape)}"
        )

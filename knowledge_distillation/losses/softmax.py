"""What losses on logits are made of: softened predictions, their divergence, labels that index the classes."""

from __future__ import annotations

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
    """sum_c p(c) * (log p(c) - log q(c))"""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


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

"""Entries on logits: the teacher's soft targets and the labels."""

from __future__ import annotations

from typing import Any

from ..config.layer_entries import Entries
from ..errors import ConfigError
from .mapping import config_of

LOGITS = {"teacher": "output.logits", "student": "output.logits"}


def is_regression(model: Any) -> bool:
    """Whether a model, or that of a config, gives one real number."""
    return getattr(config_of(model), "num_labels", 2) == 1


def soft_entry(weight: float, temperature: float, regression: bool) -> dict[str, Any]:
    """The teacher's soft targets; of a model with one real output, its number."""
    if temperature <= 0:
        raise ConfigError(f"temperature is above 0; found {temperature}")
    if regression:
        return {**LOGITS, "loss": "logits_mse", "weight": weight}
    return {**LOGITS, "loss": "kl_divergence", "args": {"temperature": temperature}, "weight": weight}


def labels_entry(weight: float, regression: bool) -> dict[str, Any]:
    """The labels: classes, or real numbers."""
    return {"student": "output.logits", "loss": "mse" if regression else "cross_entropy", "weight": weight}


def weighted(entries: Entries) -> Entries:
    """The entries less those of weight 0, which would need a teacher, or labels, for nothing."""
    return [entry for entry in entries if entry.get("weight", 1.0)]

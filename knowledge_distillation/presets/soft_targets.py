"""Entries on logits: the teacher's soft targets and the labels."""

from __future__ import annotations

from typing import Any

from ..config.write import Entries
from ..errors import ConfigError

_LOGITS = {"teacher": "output.logits", "student": "output.logits"}


def hinton(
    alpha: float = 0.5,
    temperature: float = 2.0,
    regression: bool = False,
    student_layer: int | None = None,
    teacher_layer: int | None = None,
) -> Entries:
    """Soft targets: alpha * T^2 * KL(teacher, student) + (1 - alpha) * cross-entropy with the labels.

    Args:
        alpha: weight of the soft part, in [0, 1]. At 1 no labels are needed, at 0 no teacher.
        temperature: above 0.
        regression: the model has one real output: both parts are then squared errors, and there is no temperature.
        student_layer, teacher_layer: the number n of a `layer{n}` whose softmax is compared, counted from the end
            where it is negative: -2 is the layer before the last. None: the logits.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is the weight of the soft part, in [0, 1]; found {alpha}")
    numbers = {"student": student_layer, "teacher": teacher_layer}
    sides = {side: f"layer{number}.hidden_states" for side, number in numbers.items() if number is not None}
    return _weighted([_soft(alpha, temperature, regression) | sides, _labels(1 - alpha, regression)])


def _config(model: Any) -> Any:
    return getattr(model, "config", model)


def _regression(model: Any) -> bool:
    return getattr(_config(model), "num_labels", 2) == 1


def _soft(weight: float, temperature: float, regression: bool) -> dict[str, Any]:
    if temperature <= 0:
        raise ConfigError(f"temperature is above 0; found {temperature}")
    if regression:
        return {**_LOGITS, "loss": "logits_mse", "weight": weight}
    return {**_LOGITS, "loss": "kl_divergence", "args": {"temperature": temperature}, "weight": weight}


def _labels(weight: float, regression: bool) -> dict[str, Any]:
    return {"student": "output.logits", "loss": "mse" if regression else "cross_entropy", "weight": weight}


def _weighted(entries: Entries) -> Entries:
    """The entries less those of weight 0, which would need a teacher, or labels, for nothing."""
    return [entry for entry in entries if entry.get("weight", 1.0)]

"""Named methods as plain functions that return a `distill_config` list."""

from __future__ import annotations

from typing import Any

from .errors import ConfigError

Entries = list[dict[str, Any]]


def hinton(alpha: float = 0.5, temperature: float = 2.0, regression: bool = False) -> Entries:
    """Soft targets: alpha * T^2 * KL(teacher, student) + (1 - alpha) * cross-entropy with the labels.

    Args:
        alpha: weight of the soft part, in [0, 1]. At 1 no labels are needed, at 0 no teacher.
        temperature: above 0.
        regression: the model has one real output: both parts are then squared errors, and there is no temperature.

    Source: Hinton, Vinyals and Dean, 2015.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is the weight of the soft part, in [0, 1]; found {alpha}")
    if temperature <= 0:
        raise ConfigError(f"temperature is above 0; found {temperature}")
    soft = {
        "teacher": "output.logits",
        "student": "output.logits",
        "loss": "kl_divergence",
        "args": {"temperature": temperature},
        "weight": alpha,
    }
    hard = {"student": "output.logits", "loss": "mse" if regression else "cross_entropy", "weight": 1 - alpha}
    if regression:
        soft |= {"loss": "logits_mse", "args": {}}
    return [entry for entry in (soft, hard) if entry["weight"]]


def layers(teacher: Any, student: Any, alpha: float = 0.5, temperature: float = 2.0) -> Entries:
    """`hinton`, and the embedding and every student layer from the teacher layer at the same relative depth.

    Hidden states are compared always, attention maps where both models have as many heads.

    Args:
        teacher, student: transformers models, or their configs.
    """
    t, s = (getattr(model, "config", model) for model in (teacher, student))
    depths = [getattr(config, "num_hidden_layers", None) for config in (t, s)]
    if not all(isinstance(depth, int) for depth in depths) or depths[1] > depths[0]:  # type: ignore[operator]
        raise ConfigError(f"method layers needs a teacher at least as deep as the student; found depths {depths}")
    chosen = [round(n * depths[0] / depths[1]) for n in range(1, depths[1] + 1)]  # type: ignore[operator]
    pairs = f"layer{{{','.join(map(str, chosen))}}}", f"layer{{{','.join(str(n + 1) for n in range(len(chosen)))}}}"
    outputs = ["hidden_states"]
    if getattr(t, "num_attention_heads", None) == getattr(s, "num_attention_heads", 0):
        outputs.append("attention")
    entries: Entries = [
        {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "mse"}
    ]
    entries += [{"teacher": f"{pairs[0]}.{o}", "student": f"{pairs[1]}.{o}", "loss": "mse"} for o in outputs]
    return entries + hinton(alpha, temperature, regression=getattr(t, "num_labels", 2) == 1)


METHODS = {"hinton": hinton, "layers": layers}

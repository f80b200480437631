"""Students, teachers and generators that transformers does not have. Its Auto classes know them all the same."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS: dict[str, str] = {  # public name -> module
    "BiLSTMConfig": "configs",
    "BiLSTMForSequenceClassification": "bilstm",
    "ImageGenerator": "generator",
    "VectorGenerator": "generator",
    "WideResNetConfig": "configs",
    "WideResNetForImageClassification": "wide_resnet",
    "ShuffleNetV2Config": "configs",
    "ShuffleNetV2ForImageClassification": "shufflenet_v2",
}

__all__ = sorted(_ROOMS)


def register() -> None:
    """Let `AutoConfig`, `AutoModel…` and a recipe's `model_type` find the models of this package."""
    for room in ("bilstm", "wide_resnet", "shufflenet_v2"):
        import_module(f".{room}", __name__)  # each registers its own on import


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)

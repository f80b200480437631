"""Which Auto class of transformers loads a model with its head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

HEADS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForSemanticSegmentation",
    "AutoModelForObjectDetection",
)


def auto_class_of(config: Any, architecture: str | None = None) -> str:
    """The Auto class of a model, `AutoModel` for one without a head.

    Args:
        config: of the model.
        architecture: the name of its class; None for what a saved config says.
    """
    wanted = set([architecture] if architecture else getattr(config, "architectures", None) or ())
    return next((auto for auto in HEADS if wanted & set(_classes(auto, type(config)))), "AutoModel")


def _classes(auto: str, config: type) -> Iterator[str]:
    """The names of the classes that an Auto class builds of a config."""
    import transformers

    found: Any = getattr(transformers, auto)._model_mapping.get(config, ())
    for one in found if isinstance(found, tuple) else (found,):
        yield one.__name__

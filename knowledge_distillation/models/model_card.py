"""The README.md of a saved model: what the hub reads of it, and how it is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..storage.readme import MARK
from .auto_class import auto_class_of
from .configs import PACKAGE

_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModel": "feature-extraction",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(
    model: nn.Module,
    processing_class: Any = None,
    *,
    about: str = "",
    sections: Mapping[str, Sequence[str]] | None = None,
    **metadata: Any,
) -> str:
    """The text of a model's README.md.

    Args:
        processing_class: what is saved beside it.
        about: one sentence on how it came about.
        sections: heading -> lines.
        **metadata: more of what the hub reads, such as `base_model`; what is empty is left out.
    """
    auto = _auto_class(model)
    head = {"library_name": _library(model), "pipeline_tag": _PIPELINES.get(auto or ""), **metadata}
    head = {key: value for key, value in head.items() if value}
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---", MARK]
    parts += [f"# {type(model).__name__}", about or f"A {described(model)}.", _loading(model, auto, processing_class)]
    parts += ["\n".join([f"## {title}", "", *lines]) for title, lines in (sections or {}).items() if lines]
    return "\n\n".join(parts) + "\n"


def described(model: nn.Module) -> str:
    """A model's class and size."""
    return f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters"


def name_of(model: Any) -> str:
    """What a model was loaded as: its name on the hub, or the last part of its directory; empty of one made here."""
    name = str(getattr(model, "name_or_path", "") or "")
    return name if on_hub(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def on_hub(name: str) -> bool:
    """Whether a model's name can be one on the hub, and is none of a directory here."""
    return _HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)


def _auto_class(model: Any) -> str | None:
    """The Auto class that loads a model; None of one that is no model of transformers."""
    if not isinstance(model, PreTrainedModel):
        return None
    own = getattr(model, "auto_class", None)
    return own.__name__ if isinstance(own, type) else auto_class_of(model.config, type(model).__name__)


def _library(model: nn.Module) -> str | None:
    if type(model).__module__.startswith(f"{PACKAGE}."):
        return PACKAGE
    return "transformers" if isinstance(model, PreTrainedModel) else None


def _loading(model: nn.Module, auto: str | None, processing_class: Any) -> str:
    """How the folder is loaded, in a few lines of Python."""
    if auto is None:
        lines = ["from safetensors.torch import load_model", "", f"model = {type(model).__name__}(...)  # your own"]
        lines.append('load_model(model, "this folder/model.safetensors")')
        return "\n".join(["```python", *lines, "```"])
    text = isinstance(processing_class, PreTrainedTokenizerBase)
    own = _library(model) == PACKAGE
    names = f"{auto}, AutoTokenizer" if text else auto
    lines = [f"import {PACKAGE}"] if own else []
    lines += [f"from transformers import {names}", "", f'model = {auto}.from_pretrained("this folder")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("this folder")'] if text else []
    said = [f"Transformers loads it once the Python package `{PACKAGE}` is imported:", ""] if own else []
    return "\n".join([*said, "```python", *lines, "```"])

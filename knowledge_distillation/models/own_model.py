"""What the models of this package have in common: how transformers knows them, and what their folder says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from ..storage.readme import README
from .model_card import model_card


class OwnModel(PreTrainedModel):
    """A model that transformers does not have; `save_pretrained` writes a README.md that says how it is loaded."""

    auto_class: type

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """As of every model of transformers. A README.md that is there already stays."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if not (folder / README).exists():
            (folder / README).write_text(model_card(self), encoding="utf-8")


def offer(model: type[OwnModel]) -> None:
    """Let `AutoModel` and the Auto class of its task find a model."""
    config: Any = model.config_class
    for auto in (AutoModel, model.auto_class):
        auto.register(config, model, exist_ok=True)  # type: ignore[attr-defined]

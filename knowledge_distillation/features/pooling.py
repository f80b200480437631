"""The embedding of a text: its last hidden states, pooled over the tokens that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.pooling import SENTENCE, Pooling
from ..errors import ConfigError
from ..storage.sentence_folder import read_sentence_folder
from .signature import inner_model


def pooled(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """(batch, width) embeddings, in at least float32; a text without any token is 0.

    Args:
        hidden: (batch, length, width) last hidden states; what stands in padding does not matter.
        mask: (batch, length), the tokens that count; None for all.

    Raises:
        ConfigError: the mask is not that of these tokens.
    """
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise ConfigError(
            f"the hidden states {tuple(hidden.shape)} cannot be pooled by an attention_mask {tuple(mask.shape)}"
        )
    mask = mask.bool()
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    hidden = torch.where(mask[..., None], hidden, 0.0)
    weights = _weights(mask, pooling.mode).to(hidden.dtype)
    embedding = (hidden * (weights / weights.sum(1, keepdim=True).clamp(min=1))[..., None]).sum(1)
    return nn.functional.normalize(embedding, dim=-1) if pooling.normalize else embedding


def _weights(mask: Tensor, mode: str) -> Tensor:
    """(batch, length), 0 for a token that does not count."""
    number = mask.cumsum(1)  # 1 for the first that counts
    if mode == "cls":
        return mask & (number == 1)
    if mode == "last":
        return mask & (number == number[:, -1:])
    return number * mask if mode == "weighted_mean" else mask


def pooling_of(model: nn.Module) -> tuple[Pooling, str]:
    """How a model's own embeddings are pooled, and what says so.

    Its config (`sentence_embedding`, which students are given), else the folder of sentence-transformers that it was
    loaded from, else the mean, as that package itself takes for any other model.

    Raises:
        ConfigError: the folder has a pooling that is not one of ours.
    """
    config: Any = getattr(inner_model(model)[0], "config", None)
    said = getattr(config, SENTENCE, None)
    if isinstance(said, dict):
        return Pooling(said.get("pooling", "mean"), bool(said.get("normalize"))), "as its config says"
    name = getattr(config, "_name_or_path", "")
    path = Path(str(name))
    for folder in (path, path.parent) if name else ():  # the weights lie in it, or in a folder inside it
        found = read_sentence_folder(folder)
        if found is not None and (folder / found.transformer).resolve() == path.resolve():
            return Pooling(found.pooling, found.normalize), f"as {folder} says"
    return Pooling(), "since nothing says otherwise"

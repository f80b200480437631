"""Inputs made up for a model that no batch came with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def made_up_inputs(model: nn.Module) -> dict[str, Any]:
    """Two rows of valid inputs: token ids, or an image or its frames of the size the config names.

    Raises:
        ConfigError: the model takes something else.
    """
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        return {main: _picture(config)}
    if main != "input_ids":
        raise ConfigError(f"{type(model).__name__} takes {main}, for which no inputs can be made up")
    return _text(config)


def text_and_picture(model: nn.Module) -> dict[str, Any]:
    """Two rows of token ids, each with an image, for a model that takes both."""
    config: Any = model.config
    return _text(config) | {"pixel_values": _picture(getattr(config, "vision_config", config))}


def _picture(config: Any) -> Tensor:
    """(2, channels, height, width), or (2, frames, channels, height, width) where the config counts frames."""
    size = getattr(config, "image_size", 224) or 224
    height, width = (size, size) if isinstance(size, int) else size
    frames = getattr(config, "num_frames", None)
    return torch.zeros(2, *([frames] if frames else []), getattr(config, "num_channels", 3), height, width)


def _text(config: Any) -> dict[str, Any]:
    ids = torch.arange(16, dtype=torch.long).view(2, 8) % max(2, getattr(config, "vocab_size", 2))
    end = getattr(config, "eos_token_id", None)
    if type(end) is int and 0 < end < getattr(config, "vocab_size", 0):  # one in each row, as BART's head counts them
        ids = ids.masked_fill(ids == end, end - 1)
        ids[:, -1] = end
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs

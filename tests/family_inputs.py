"""Inputs that fit any tiny model, by the names of its forward's parameters: the fewest that it runs on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from family_models import PICTURE, WIDTH
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

LENGTH, DECODED = 7, 5


def inputs_for(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows that the model's forward takes, the fewest inputs that it runs on.

    Raises:
        Exception: what forward says to the first of the candidates, where it takes none.
    """
    failure: Exception | None = None
    for inputs in _candidates(model):
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                model(**inputs)
            return inputs
        except Exception as error:  # whatever a model raises on inputs that do not fit it
            failure = failure or error
    raise failure or ValueError(f"no inputs are known for {model.main_input_name}")


def _candidates(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    taken = [p.name for p in parameters]
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    ]
    main = model.main_input_name
    main = [main] if isinstance(main, str) else list(main)
    text = ["input_ids", "attention_mask"]
    decoder = ["decoder_input_ids", "decoder_attention_mask"]
    groups = [[*text, *needed], [*text, *decoder, *needed]] if "input_ids" in taken else []
    if getattr(model.config, "is_encoder_decoder", False):
        groups.reverse()
    groups += [[*needed], [*main, *needed], [*main, *decoder, *needed], [*main, *needed, *text]]
    groups += [[*main, *text, *needed, name] for name in ("pixel_values", "bbox", "input_features", "input_values")]
    groups.append([*main, *text, *needed, "visual_feats", "visual_pos"])
    groups += [[*main, *needed, name] for name in taken if name in _INPUTS]
    groups.append([name for name in taken if name in _INPUTS and name != "inputs_embeds"])
    seen = set()
    for group in groups:
        names = tuple(dict.fromkeys(name for name in group if name in taken and name in _INPUTS))
        if not names or names in seen or not {*needed} <= {*names}:
            continue
        seen.add(names)
        for variant in range(max(len(_INPUTS[name]) for name in names)):
            makers = [_INPUTS[name] for name in names]
            yield {n: m[min(variant, len(m) - 1)](model.config) for n, m in zip(names, makers, strict=True)}


def _number(config: PretrainedConfig, *names: str, default: int) -> int:
    """The first of these numbers that a config or a part of it has."""
    values = _numbers(config)
    return next((values[name] for name in names if name in values), default)


def _numbers(config: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            found = {**_numbers(value), **found}
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = value
        elif isinstance(value, (list, tuple)) and len(value) == 2 and "image_size" in key:
            found[key] = value[0]
    return found


def _ids(length: int, config: PretrainedConfig) -> Tensor:
    """Ids that no config gives a meaning of its own."""
    return torch.randint(20, min(90, _number(config, "vocab_size", default=90)), (2, length), generator=_draws())


def _draws() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_draws())


def _pictures(config: PretrainedConfig, *lead: int) -> Tensor:
    side = _number(config, "image_size", "img_size", "input_size", default=PICTURE)
    return _noise(2, *lead, _number(config, "num_channels", "in_channels", "in_chans", default=3), side, side)


def _patches(config: PretrainedConfig) -> Tensor:
    """Of two pictures of 4 by 4 patches, one after the other."""
    patch, time = _number(config, "patch_size", default=8), _number(config, "temporal_patch_size", default=1)
    return _noise(32, _number(config, "num_channels", "in_channels", "in_chans", default=3) * time * patch * patch)


def _sound(config: PretrainedConfig) -> tuple[int, int]:
    bins = _number(
        config,
        "feature_projection_input_dim",
        "num_mel_bins",
        "feature_size",
        "input_feat_size",
        "input_dim",
        default=16,
    )
    return bins, 2 * _number(config, "max_source_positions", default=32)


_Makers = tuple[Any, ...]
_INPUTS: dict[str, _Makers] = {
    "input_ids": (lambda c: _ids(LENGTH, c),),
    "attention_mask": (lambda c: torch.ones(2, LENGTH, dtype=torch.long),),
    "decoder_input_ids": (lambda c: _ids(DECODED, c),),
    "decoder_attention_mask": (lambda c: torch.ones(2, DECODED, dtype=torch.long),),
    "pixel_values": (
        _pictures,
        lambda c: _pictures(c, _number(c, "num_frames", default=4)),
        _patches,
        lambda c: _pictures(c, 1),
        lambda c: _pictures(c, 1, 1),
        lambda c: _pictures(c, 2),
    ),
    "pixel_values_videos": (lambda c: _pictures(c, _number(c, "num_frames", "frames_per_clip", default=4)),),
    "hidden_states": (_patches, lambda c: _noise(2, _number(c, "hidden_size", default=WIDTH), 8)),
    "grid_thw": (lambda c: torch.tensor([[1, 4, 4], [1, 4, 4]]),),
    "image_grid_thw": (lambda c: torch.tensor([[1, 4, 4], [1, 4, 4]]),),
    "merge_sizes": (lambda c: torch.tensor([1, 1]),),
    "input_features": (
        lambda c: _noise(2, *_sound(c)),
        lambda c: _noise(2, *_sound(c)[::-1]),
        lambda c: _noise(2, 1, *_sound(c)[::-1]),
        lambda c: _noise(2, _sound(c)[0], 2 * _number(c, "n_window", default=32)),
    ),
    "input_values": (
        lambda c: _noise(2, 3200),
        lambda c: _noise(2, 1, 3200),
        lambda c: _noise(2, _number(c, "max_length", default=64), _sound(c)[0]),
    ),
    "bbox": (lambda c: torch.tensor([1, 2, 3, 4]).expand(2, LENGTH, 4).contiguous(),),
    "input_features_mask": (lambda c: torch.ones(2, _sound(c)[1], dtype=torch.long),),
    "encoder_hidden_states": (lambda c: _noise(2, DECODED, _number(c, "encoder_hidden_size", default=WIDTH)),),
    "past_time_features": (lambda c: _noise(2, _number(c, "context_length", default=32) + 2, 0),),
    "past_observed_mask": (lambda c: torch.ones(2, _number(c, "context_length", default=32) + 2),),
    "states": (lambda c: _noise(2, LENGTH, _number(c, "state_dim", default=17)),),
    "actions": (lambda c: _noise(2, LENGTH, _number(c, "act_dim", default=4)),),
    "rewards": (lambda c: _noise(2, LENGTH, 1),),
    "returns_to_go": (lambda c: _noise(2, LENGTH, 1),),
    "timesteps": (lambda c: torch.arange(LENGTH).expand(2, LENGTH).contiguous(),),
    "past_values": (
        lambda c: _noise(2, _number(c, "context_length", default=32) + 2),
        lambda c: _noise(2, _number(c, "context_length", default=32), _number(c, "num_input_channels", default=1)),
        lambda c: _noise(2, _number(c, "context_length", default=32)),
    ),
    "inputs": (lambda c: _ids(LENGTH, c),),
    "query_embeds": (lambda c: _noise(2, 4, _number(c, "hidden_size", default=WIDTH)),),
    "inputs_embeds": (lambda c: _noise(2, LENGTH, _number(c, "hidden_size", default=WIDTH)),),
    "visual_feats": (lambda c: _noise(2, 4, _number(c, "visual_feat_dim", default=WIDTH)),),
    "visual_pos": (lambda c: torch.rand(2, 4, 4, generator=_draws()),),
    "visual_embeds": (lambda c: _noise(2, 4, _number(c, "visual_embedding_dim", default=WIDTH)),),
    "qformer_input_ids": (lambda c: _ids(LENGTH, c),),
    "flattened_patches": (lambda c: _noise(2, 16, 2 + 3 * _number(c, "patch_size", default=8) ** 2),),
}

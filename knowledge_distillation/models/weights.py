"""A model's weights out of a plain file of tensors, checked name by name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError, listed, nearest

_INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep a state dict
_SHOWN = 5


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict: `.safetensors`, or a file of `torch.save`, of which nothing but tensors is read.

    A state dict inside a checkpoint (`state_dict`, `model_state_dict`, `model`) is found; `module.` before every name,
    of a model that was wrapped, is taken off.

    Raises:
        ConfigError: the file cannot be read, or its names or shapes are not the model's.
    """
    state, own = _unwrapped(_read(Path(os.path.expanduser(path))), path), model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(tensor.shape)}, of the model {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    problems = []
    if missing:
        problems.append(f"missing: {listed(missing, _SHOWN)}{nearest(missing[0], unexpected)}")
    if unexpected:
        problems.append(f"unexpected: {listed(unexpected, _SHOWN)}")
    if shapes:
        problems.append(f"of another shape: {listed(shapes, _SHOWN)}")
    if problems:
        raise ConfigError(f"weights {path} do not fit {type(model).__name__}. {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"weights {path} holds more than tensors, which is not read: save model.state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file has errors of its own in every format
        raise ConfigError(f"weights {path} cannot be read: {type(error).__name__}: {error}") from error


def _unwrapped(state: Any, path: str | Path) -> dict[str, Tensor]:
    is_mapping = isinstance(state, Mapping)
    inner = next((state[key] for key in _INSIDE if is_mapping and key in state), None)
    state = inner if isinstance(inner, Mapping) else state
    if not is_mapping or not state or not all(map(_is_named_tensor, state.items())):
        content = f"a mapping of {', '.join(map(str, state))[:200]}" if is_mapping else type(state).__name__
        raise ConfigError(
            f"weights {path}: expected tensors by name, as model.state_dict() gives them; found {content}"
        )
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)

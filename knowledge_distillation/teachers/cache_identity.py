"""Whose features a teacher cache holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

import torch
import xxhash
from torch import nn

_OF_NO_CONSEQUENCE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


class Identity(NamedTuple):
    """Whose features a cache holds; a change of any of them makes them other features."""

    teacher: str
    weights: str
    structure: str
    computed_in: str

    @classmethod
    def of(cls, model: nn.Module, adaptor: Callable[..., Any] | None = None) -> Identity:
        """Of a teacher with the weights it computes with, and the output adaptor that names its features."""
        weights = xxhash.xxh3_128()
        for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config: Any = getattr(model, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        kept = {key: value for key, value in settings.items() if key not in _OF_NO_CONSEQUENCE}
        parts = [type(model).__module__, repr(model), json.dumps(kept, sort_keys=True, default=str), code_of(adaptor)]
        structure = xxhash.xxh3_128(re.sub(r" at 0x[0-9a-f]+", "", repr(parts)).encode())
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        computed_in = str(dtype).removeprefix("torch.")
        return cls(type(model).__name__, weights.hexdigest(), structure.hexdigest(), computed_in)


def code_of(function: Any) -> Any:
    """What a function does, as far as it can be seen: instructions and constants, and what it closes over."""
    if isinstance(function, partial):
        return [code_of(function.func), function.args, function.keywords]
    function = getattr(function, "__func__", function)
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    if code is None:
        method = vars(type(function)).get("__call__")
        return [type(function).__qualname__, code_of(method) if hasattr(method, "__code__") else None]
    constants = [code_of(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    closed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    closed = [code_of(one) if callable(one) else one for one in closed]
    return [code.co_code, code.co_names, constants, closed, getattr(function, "__defaults__", None)]

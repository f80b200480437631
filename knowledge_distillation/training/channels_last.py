"""Convolutions whose weights lie channels last, where half precision is fastest, and optimizers beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def channels_last(model: nn.Module) -> Callable[[], None]:
    """Lay the weights of 2-d convolutions out channels last; what they compute follows. Returns what undoes it."""
    changed = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.is_contiguous()]
    _lay_out(changed, torch.channels_last)
    return lambda: _lay_out(changed, torch.contiguous_format)


def _lay_out(weights: list[torch.Tensor], layout: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=layout)


def follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's state the layout of its parameters before every step, where any has four dimensions.

    The fused forms of torch's optimizers go through parameter and state as they lie in memory, and a state that was
    read from a file, or whose parameter was laid out anew, lies otherwise.
    """
    if any(parameter.dim() == 4 for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.register_step_pre_hook(_follow)


def _follow(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {}) if parameter.dim() == 4 else {}
            for name, value in state.items():
                if (
                    isinstance(value, torch.Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

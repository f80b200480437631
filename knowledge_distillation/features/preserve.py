"""Run a model and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context, and every module's own mode again after it."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens within the context, every module is in its own mode again after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run something on a model and leave its buffers (BatchNorm) and the random state as they were; no gradient."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])

"""Run a model and leave it as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
    python, numpy = random.getstate(), np.random.get_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for name, buffer in list(model.named_buffers()):
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
                elif name in buffers:  # a model that has positions for the longest input so far has others now
                    path, _, key = name.rpartition(".")
                    model.get_submodule(path)._buffers[key] = buffers[name]


@contextmanager
def modules_kept(model: nn.Module) -> Iterator[None]:
    """Whatever a pass within the context does to a model's modules, they are the same again after it.

    BigBird puts other attention modules in place of its own at the first short input, and says so in words.
    """
    before = [
        (module, dict(module._modules), {key: value for key, value in vars(module).items() if isinstance(value, str)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        if [module for module, _, _ in before] != list(model.modules()):
            for module, children, words in before:
                module._modules.clear()
                module._modules.update(children)
                vars(module).update(words)

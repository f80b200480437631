"""A model written as an ONNX file: traced once, with rows and lengths left open.

The exporter is torch's own that traces (`dynamo=False`). It writes every family that the tests have in a second or two
and needs no package beside torch, where the newer one takes ten times as long, needs onnxscript, and fails on T5
(torch 2.13). What tracing could miss, a branch that depends on the length, shows when the file is compared.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.signature import accepted_flags
from .made_up import TRACED, Shape, batch

OPSET = 17  # has layer normalization, and is read by every onnxruntime since 1.12 (2022)
OPSETS = range(14, 21)  # 14 has what attention needs; later ones the tracing exporter does not know
_OTHER = Shape(3, 11, 6)  # no dimension of it is one of the traced batch
_AXES = {"rows": "batch", "length": "length", "decoder_length": "decoder_length"}


class ByName(nn.Module):
    """A model that takes inputs in the order of `names`, and gives the tensors of its output in that of `outputs`."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.outputs: tuple[str, ...] = ()

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.names, values, strict=True)), **accepted_flags(self.model))
        tensors = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        self.outputs = tuple(tensors)
        return tuple(tensors.values())


def write_onnx(model: nn.Module, names: tuple[str, ...], path: Path, opset: int) -> tuple[str, ...]:
    """Write a model that is on the processor in eval mode, and return the names of its outputs.

    Raises:
        ConfigError: the exporter does not know the opset, or fails.
    """
    if opset not in OPSETS:
        raise ConfigError(f"opset is a number from {OPSETS[0]} to {OPSETS[-1]}; found {opset}")
    by_name = ByName(model, names).eval()
    inputs = batch(model, names, TRACED)
    try:
        axes = _open_axes(by_name, inputs)
        with _quiet():
            torch.onnx.export(
                by_name,
                tuple(inputs.values()),
                str(path),
                input_names=list(names),
                output_names=list(by_name.outputs),
                dynamic_axes=axes,
                opset_version=opset,
                dynamo=False,
            )
    except Exception as error:  # models and exporter fail in ways of their own
        raise ConfigError(
            f"{type(model).__name__} cannot be exported to ONNX: {type(error).__name__}: "
            f"{shorten(str(error), 400, placeholder='…')}"
        ) from error
    return by_name.outputs


def _open_axes(model: ByName, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """The dimensions of inputs and outputs that follow rows and lengths, seen from a batch of other sizes."""
    others = batch(model.model, model.names, _OTHER)
    with torch.no_grad():
        said, saying = model(*inputs.values()), model(*others.values())
    shapes = {name: (inputs[name].shape, others[name].shape) for name in inputs}
    shapes |= {name: (one.shape, other.shape) for name, one, other in zip(model.outputs, said, saying, strict=True)}
    return {name: {dim: axis for dim, axis in _axes(*pair)} for name, pair in shapes.items()}


def _axes(one: torch.Size, other: torch.Size) -> Iterator[tuple[int, str]]:
    sizes = {(getattr(TRACED, key), getattr(_OTHER, key)): axis for key, axis in _AXES.items()}
    for dim, pair in enumerate(zip(one, other, strict=True)):
        if pair[0] != pair[1]:
            yield dim, sizes.get(pair, f"size_{dim}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every length that Python looks at, and prints the whole graph where it fails.

    What matters of it is measured afterwards, or is in the error.
    """
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

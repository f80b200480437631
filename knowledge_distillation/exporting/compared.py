"""How far an exported model is from the one it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.signature import accepted_flags
from .made_up import Shape, batch
from .onnx_model import OnnxModel

TOLERANCE = 1e-4  # of an output, absolute; of outputs above 1 in size relative


def furthest(model: nn.Module, exported: OnnxModel, tried: Sequence[Shape]) -> float:
    """The largest difference of any output on all batches; what is padded does not count in outputs by token."""
    return max(_difference(model, exported, shape) for shape in tried)


def check(model: nn.Module, exported: OnnxModel, tried: Sequence[Shape]) -> float:
    """As `furthest`.

    Raises:
        ConfigError: it is above the tolerance, or onnxruntime fails; with the batch on which it is.
    """
    most = 0.0
    for shape in tried:
        try:
            difference = _difference(model, exported, shape)
        except Exception as error:  # of onnxruntime's own kinds
            said = shorten(str(error), 300, placeholder="…")
            raise ConfigError(f"the exported model fails on {_said(shape)}, and is not kept: {said}") from error
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the exported model differs from {type(model).__name__} by {difference:.2g} on {_said(shape)}, where "
                f"{TOLERANCE:g} is allowed: it is not kept"
            )
        most = max(most, difference)
    return most


def _said(shape: Shape) -> str:
    rows = f"{shape.rows} row" + "s" * (shape.rows > 1)
    return f"{rows} of {shape.length} tokens, padded {shape.padding}" if shape.length else rows


def _difference(model: nn.Module, exported: OnnxModel, shape: Shape) -> float:
    inputs = batch(model, exported.inputs, shape, seed=shape.rows + shape.length)
    with torch.no_grad():
        expected = model(**inputs, **accepted_flags(model))
    said = exported(**inputs)
    return max(_between(said[name], expected[name], inputs) for name in exported.outputs)


def _between(one: Tensor, other: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference, relative to what is above 1. Shapes that differ are as far as can be."""
    if one.shape != other.shape:
        return torch.inf
    distance = (one.float() - other.float()).abs() / other.float().abs().clamp(min=1)
    mask = inputs.get("attention_mask")
    if mask is not None and other.shape[:2] == mask.shape:
        distance = distance[mask.bool()]
    return float(distance.nan_to_num(torch.inf).max())

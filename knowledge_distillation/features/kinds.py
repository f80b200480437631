"""The kind of a feature: by its name, by its rank, or from passes of two lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import ConfigError
from .capture import Capture, Location
from .preserve import preserved

_BY_RANK = ("scalar", "vector", "vector", "tokens", "map")


def kind_by_rank(tensor: Tensor) -> str:
    return _BY_RANK[tensor.dim()] if tensor.dim() < len(_BY_RANK) else "tokens"


def kind_by_name(feature: Feature, tensor: Tensor) -> str:
    """The kind of a feature by its name, or by its rank where the name is not one of ours."""
    output = feature.output.removeprefix("cross_")
    if tensor.dim() == 4 and output.startswith("attention"):
        return "attention"
    return "heads" if tensor.dim() == 4 and output in ("query", "key", "value") else kind_by_rank(tensor)


def kind_by_growth(short: Tensor, long: Tensor | None) -> str:
    """The kind of a tensor from its shapes at two lengths; `long` is None where the inputs have no length (images).

    Raises:
        ConfigError: it is no tensor, or one that no mask fits.
    """
    if not isinstance(short, Tensor):
        raise ConfigError(
            f"found {type(short).__name__} where a tensor was expected; pick one item, as in 'output[0]'"
        )
    if long is None:
        return kind_by_rank(short)
    grows = [a != b for a, b in zip(short.shape, long.shape, strict=False)]
    if short.dim() == 2 and any(grows):
        form = "a score for each position" if grows[1] else "a row for each token of the whole batch"
        raise ConfigError(
            f"of shape {tuple(short.shape)} it has {form}, which no mask fits: map the logits or hidden states"
        )
    if short.dim() == 4:
        return "attention" if grows[2:] == [True, True] else "heads" if grows[2] and not grows[3] else "map"
    return "map" if short.dim() == 3 and not any(grows) else kind_by_rank(short)


def probe_kind(model: nn.Module, place: Location, inputs: Mapping[str, Any]) -> str:
    """The kind of what is at one place of a model, seen from which dimensions grow with the length of the input."""
    capture = Capture(model, {"": place})
    longer = lengthened(inputs)
    try:
        with preserved(model):
            short = capture(inputs)[""]
            long = capture(longer)[""] if longer is not None else None
    finally:
        capture.close()
    return kind_by_growth(short, long)


def lengthened(inputs: Mapping[str, Any], extra: int = 3) -> dict[str, Any] | None:
    """The same rows with `extra` positions more, not attended to; None where no input has a length."""
    longer = {}
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point() and value.shape[1] > 1:
            last = value[:, -1:].expand(-1, extra)
            longer[key] = torch.cat([value, torch.zeros_like(last) if "mask" in key else last], dim=1)
    return {**inputs, **longer} if longer else None

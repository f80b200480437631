"""The kind of a feature, where its name does not tell: seen from passes of two lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import ConfigError
from .capture import Capture, Location
from .preserve import preserved


def _kind(tensor: Tensor, rank3: str) -> str:
    return {0: "scalar", 2: "vector", 3: rank3, 4: "map"}.get(tensor.dim(), "tokens")


# --- kinds, where the name does not tell ---------------------------------------------------------------------------


def lengthened(inputs: Mapping[str, Any], extra: int = 3) -> dict[str, Any] | None:
    """The same rows with `extra` positions more, not attended to; None where no input has a length."""
    longer, found = dict(inputs), False
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point() and value.shape[1] > 1:
            last = value[:, -1:].expand(-1, extra)
            longer[key] = torch.cat([value, torch.zeros_like(last) if "mask" in key else last], dim=1)
            found = True
    return longer if found else None


def probe_kinds(model: nn.Module, wanted: Mapping[Feature, Location], inputs: Mapping[str, Any]) -> dict[Feature, str]:
    """The kind of each feature, seen from which dimensions grow with the length of the input."""
    capture = Capture(model, wanted)
    try:
        with preserved(model):
            short = capture(inputs)
            longer = lengthened(inputs)
            long = capture(longer) if longer is not None else {}
    finally:
        capture.close()
    return {feature: kind_of(short[feature], long.get(feature)) for feature in wanted}


def kind_of(short: Tensor, long: Tensor | None) -> str:
    """The kind of a tensor from its shapes at two lengths; `long` is None where the inputs have no length (images)."""
    if not isinstance(short, Tensor):
        raise ConfigError(
            f"found {type(short).__name__} where a tensor was expected; pick one item, as in 'output[0]'"
        )
    if long is None:
        return _kind(short, "tokens")
    grows = [a != b for a, b in zip(short.shape, long.shape, strict=False)]
    if short.dim() == 2 and any(grows):
        form = "a score for each position" if grows[1] else "a row for each token of the whole batch"
        raise ConfigError(
            f"of shape {tuple(short.shape)} it has {form}, which no mask fits: map the logits or hidden states"
        )
    if short.dim() == 4:
        return "attention" if grows[2:] == [True, True] else "heads" if grows[2] and not grows[3] else "map"
    return _kind(short, "tokens" if any(grows) else "map")

"""The kind of a feature: measured by which of its dimensions change with the length and with the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..config.entry import Feature
from ..errors import ConfigError

_BY_RANK = ("scalar", "vector", "vector", "tokens", "map")
_MAY_GROW = {"attention": {2, 3}, "heads": {2}}  # the dimensions that are lengths
_ROWS, _LENGTH, _BOTH, _FIXED = "B", "L", "*", "."


def kind_by_rank(dims: int) -> str:
    return _BY_RANK[dims] if dims < len(_BY_RANK) else "tokens"


def kind_by_name(feature: Feature, tensor: Tensor) -> str:
    """The kind of a feature that nobody can measure: by its name, or by its rank where the name is not one of ours."""
    declared = declared_kind(feature.output)
    if tensor.dim() == 2 and feature.output in ("start_logits", "end_logits"):
        return "positions"
    return declared if tensor.dim() == 4 and declared in ("attention", "heads") else kind_by_rank(tensor.dim())


def declared_kind(output: str) -> str:
    """The kind that a documented name promises, or none; the measured one has to agree."""
    output = output.removeprefix("cross_")
    if output in ("attention", "attention_scores"):
        return "attention"
    if output in ("query", "key", "value"):
        return "heads"
    return "tokens" if output in ("hidden_states", "embedding") else ""


def form_of(shape: Sequence[int], longer: Sequence[int] | None, more: Sequence[int] | None) -> str:
    """What each dimension changes with: B the rows, L the length, * both, . neither; as far as it was measured."""
    form = ""
    for dim, size in enumerate(shape):
        with_length = longer is not None and len(longer) == len(shape) and longer[dim] != size
        with_rows = more is not None and len(more) == len(shape) and more[dim] != size
        form += (_BOTH if with_rows else _LENGTH) if with_length else _ROWS if with_rows else _FIXED
    return form


def measured_kind(shape: Sequence[int], form: str, declared: str = "", images: bool = False) -> str:
    """The kind of a tensor of this shape and `form_of`.

    Args:
        images: the length is that of an image's sides.

    Raises:
        ConfigError: it is one that no mask fits.
    """
    lengths = [dim for dim, change in enumerate(form) if change in (_LENGTH, _BOTH)]
    if len(shape) < 2:
        return _BY_RANK[len(shape)]
    if images:
        return _kind_of_image(form, declared, lengths)
    if len(shape) == 2 and lengths == [1]:
        return "positions"
    if len(shape) == 2 and lengths:
        raise _unmasked(shape, "it has a row for each token of the whole batch", "map the logits or hidden states")
    if 0 in lengths and form[0] == _LENGTH:
        raise _unmasked(shape, "its first dimension is the length", "map a feature whose first dimension is the batch")
    lengths = [dim for dim in lengths if dim]
    if len(shape) == 4 and declared in _MAY_GROW and set(lengths) <= _MAY_GROW[declared]:
        return declared  # a side of it may be that of a picture, or of learned queries
    if not lengths:
        tokens = len(shape) > 4 or (declared == "tokens" and len(shape) == 3)
        return "vector" if len(shape) == 2 else "tokens" if tokens else "map"
    kind = {(1,): "tokens", (2, 3): "attention", (2,): "heads"}.get(tuple(lengths), "")
    if not kind or (kind != "tokens" and len(shape) != 4):
        dims = " and ".join(str(dim) for dim in lengths)
        raise _unmasked(shape, f"its length is in dimension {dims}", "map a feature (batch, length, …)")
    return kind


def _kind_of_image(form: str, declared: str, sides: list[int]) -> str:
    """Whether channels come before or after the places of an image."""
    if declared in ("attention", "heads") and len(form) == 4:
        return declared
    if 1 in sides or (not sides and len(form) == 3):
        return "tokens"
    return "vector" if len(form) == 2 else "map" if len(form) < 5 else "tokens"


def _unmasked(shape: Sequence[int], found: str, way_out: str) -> ConfigError:
    return ConfigError(f"of shape {tuple(shape)} {found}, which no mask fits: {way_out}")

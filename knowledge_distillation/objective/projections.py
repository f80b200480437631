"""Learnable maps from one side's shape to the other's, shaped from one probe batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.entry import Entry, Projection
from ..errors import CheckpointError, ConfigError, nearest
from ..features.deferred import materialized
from ..storage.checkpoint_files import checkpoint_errors, latest

MOST_PARAMETERS = 2**28  # of one projection: 1 GB


class Heads(nn.Module):
    """Each teacher head as a learned weighted mean of student heads: rows of probabilities keep their sum of 1.

    (batch, heads, length, keys) -> (batch, width, length, keys). At the start each teacher head takes mostly after the
    student head at the same relative place.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(3.0 * nn.functional.one_hot(_spread(heads, width), heads).float())

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.weight.softmax(-1).to(maps.dtype)
        return (weight @ maps.flatten(2)).unflatten(-1, maps.shape[2:])


class JoinedHeads(nn.Module):
    """A linear map over the joined heads of queries, keys or values, cut into the other side's heads again."""

    def __init__(self, heads: int, head_width: int, to_heads: int, to_head_width: int) -> None:
        super().__init__()
        self.to_heads = to_heads
        self.linear = nn.Linear(heads * head_width, to_heads * to_head_width)

    def forward(self, heads: Tensor) -> Tensor:
        joined = self.linear(heads.transpose(1, 2).flatten(2))
        return joined.unflatten(-1, (self.to_heads, -1)).transpose(1, 2)


class Resize(nn.Module):
    """A feature map at another size, pooled where it shrinks and interpolated where it grows; channels by 1x1 conv."""

    def __init__(self, channels: int, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Identity() if channels == width else nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, feature: Tensor) -> Tensor:
        if feature.shape[-2] >= self.size[0] and feature.shape[-1] >= self.size[1]:
            resized = F.adaptive_avg_pool2d(feature, self.size)
        else:
            resized = F.interpolate(feature, self.size, mode="bilinear", align_corners=False)
        return self.conv(resized)


class PCA(nn.Module):
    """Embeddings along the directions in which those of the training data vary most; no parameter trains.

    (batch, width) -> (batch, to). What does not vary is not taken away, so that cosines stay about what they were.

    Source: the dimensionality reduction of Reimers and Gurevych, sentence-transformers' model distillation, 2019.
    """

    components: Tensor
    fitted: Tensor

    def __init__(self, width: int, to: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("components", torch.eye(to, width))  # until it is fitted, which the probe comes before
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, feature: Tensor) -> Tensor:
        return feature @ self.components.mT.to(feature.dtype)

    def fit(self, number: Tensor, total: Tensor, products: Tensor) -> float:
        """From the number of rows, their sum (width,) and sum of products (width, width); the share of variance kept.

        Each direction points to where its largest coordinate is positive, so that equal rows give equal projections.
        """
        mean = total / number
        values, vectors = torch.linalg.eigh(products / number - torch.outer(mean, mean))
        directions = vectors.mT.flip(0)[: len(self.components)]
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        self.components.copy_(directions * largest.sign())
        self.fitted.fill_(True)
        return float(values.flip(0)[: len(self.components)].sum() / values.sum())


def see_fitted(projections: Iterable[nn.Module]) -> None:
    """Raise where a projection waits for rows to be fitted on, which only a run has."""
    if any(isinstance(one, PCA) and not one.fitted for one in projections):
        raise ConfigError("pca is fitted by KnowledgeDistiller; in a loop of your own load one: projection_checkpoint")


class Exit(nn.Module):
    """A classifier on a layer inside the model: the first token of a text, the mean of a map, then class scores.

    (batch, length, width), (batch, channels, height, width) or (batch, width) -> (batch, classes).
    Source: Zhang et al., Be Your Own Teacher, 2019.
    """

    def __init__(self, width: int, classes: int, hidden_size: int | None) -> None:
        super().__init__()
        self.head = _mlp(nn.Linear, width, hidden_size, classes) if hidden_size else nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        if feature.dim() == 4:
            feature = feature.mean((2, 3))
        return self.head(feature[:, 0] if feature.dim() == 3 else feature)


def build_projection(projection: Projection, kind: str, feature: Tensor, other: Tensor | None) -> nn.Module:
    """The projection of a feature of a kind, to the shape of the other side.

    Args:
        feature: the probed feature that goes in.
        other: the probed feature to come near to; None where there is none, and `width` has to be given.

    Raises:
        ConfigError: the type does not apply to the kind, or a width is missing.

    Source: the regressor of Romero et al., FitNets, 2015; the matrix W of Jiao et al., TinyBERT, 2020, eq. 8.
    """
    checkpoint_errors = sorted(name for name, kinds in _KINDS.items() if kind in kinds)
    if projection.type not in checkpoint_errors:
        raise ConfigError(
            f"projection {projection.type} does not apply to a feature of kind {kind} {tuple(feature.shape)}. "
            f"These do: {', '.join(checkpoint_errors) or 'none'}"
        )
    if other is None and projection.width is None:
        raise ConfigError(f"projection {projection.type}: nothing tells its width; give width")
    axis = 1 if kind in ("map", "attention") else -1
    width = feature.shape[axis]
    to = projection.width or other.shape[axis]  # type: ignore[union-attr]
    inner = projection.hidden_size or (to if projection.type == "mlp" else 0)
    size = inner * (width + to) if inner and projection.type in ("mlp", "exit") else width * to
    if size > MOST_PARAMETERS:
        raise ConfigError(
            f"projection {projection.type} of {width} to {to} would have {size:,} parameters: at most "
            f"{MOST_PARAMETERS:,}"
        )
    layer: Any = partial(nn.Conv2d, kernel_size=1) if kind == "map" else nn.Linear
    if projection.type in ("linear", "conv1x1"):
        return layer(width, to)
    if projection.type == "mlp":
        return _mlp(layer, width, projection.hidden_size or to, to)
    if projection.type == "conv1x1_bn":
        return nn.Sequential(layer(width, to, bias=False), nn.BatchNorm2d(to))
    if projection.type == "pca":
        if to > width:
            raise ConfigError(f"projection pca makes features narrower: found {width} to {to}. Use linear")
        return PCA(width, to, projection.rows)
    if projection.type == "exit":
        return Exit(width, to, projection.hidden_size)
    if kind == "attention":
        return Heads(width, to)
    if other is None or other.dim() != 4:
        needs = "a feature map on the other side, to have its size"
        if projection.type == "heads":
            needs = "queries, keys or values on the other side, to have their heads"
        raise ConfigError(f"projection {projection.type} needs {needs}")
    if projection.type == "resize":
        return Resize(width, to, (other.shape[2], other.shape[3]))
    return JoinedHeads(feature.shape[1], feature.shape[-1], other.shape[1], other.shape[-1])


def _mlp(layer: Callable[[int, int], nn.Module], width: int, hidden_size: int, to: int) -> nn.Module:
    return nn.Sequential(layer(width, hidden_size), nn.GELU(), layer(hidden_size, to))


_POSITIONAL = ("vector", "tokens", "heads")
_KINDS: Mapping[str, tuple[str, ...]] = {  # type of a projection -> the kinds of features it applies to
    "linear": (*_POSITIONAL, "map"),
    "mlp": (*_POSITIONAL, "map"),
    "exit": ("vector", "tokens", "map"),
    "pca": ("vector",),
    "conv1x1": ("map",),
    "conv1x1_bn": ("map",),
    "resize": ("map",),
    "heads": ("attention", "heads"),
}


def kind_after(projection: Projection, kind: str) -> str:
    """The kind of what a projection gives: an exit gives one vector of class scores for each sample."""
    return "vector" if projection.type == "exit" else kind


def projections_file(path: str) -> Path:
    """Where projections and losses with state are saved: a `.safetensors` file, a run directory or a checkpoint."""
    folder = Path(path)
    return folder if folder.suffix == ".safetensors" else latest(folder) / "projections.safetensors"


def load_projection(module: nn.Module, path: str, key: str) -> None:
    """Load a projection from a `.safetensors` file, a run directory or a checkpoint.

    Args:
        key: the name it has among the projections of a run.

    Raises:
        CheckpointError: the file is not there, or holds no such projection, or one of other shapes.
    """
    file = projections_file(path)
    if not file.is_file():
        raise CheckpointError(f"projection_checkpoint {path}: there is no file {file}")
    with checkpoint_errors(file.parent, file.stem):
        state = load_file(str(file))
    names = sorted({name.split(".")[1] for name in state if name.startswith("projections.")})
    if names and key not in names:
        holds = f"{nearest(key, names)} It holds: {', '.join(names)}"
        raise CheckpointError(f"projection_checkpoint {path} holds no projection {key!r}.{holds}")
    prefix = f"projections.{key}."
    mine: dict[str, Any] = {n.removeprefix(prefix): t for n, t in state.items() if not names or n.startswith(prefix)}
    with checkpoint_errors(file.parent, f"projection {key!r} in {file.stem}"):
        module.load_state_dict(mine)


def _spread(heads: int, width: int) -> Tensor:
    """For each of `width` heads the head at the same relative place among `heads`."""
    return torch.arange(width) * heads // width


def key_of(entry: Entry, side: str, number: int, features: int) -> str:
    """Under which name a projection is held: the entry's, or one that entries share; numbered where features are."""
    projection = entry.projection if side == "student" else entry.teacher_projection
    key = projection.shared or (entry.name if side == "student" else f"{entry.name}:teacher")
    return key if features == 1 else f"{key}:{number}"


def apply_projections(
    projections: nn.ModuleDict, entry: Entry, tensors: tuple[Tensor, ...], side: str = "student"
) -> tuple[Tensor, ...]:
    """One side's features of an entry, through the projections it has there."""
    keys = [key_of(entry, side, number, len(tensors)) for number in range(len(tensors))]
    return tuple(
        projections[key](at_least_float32(*materialized([tensor]))) if key in projections else tensor
        for key, tensor in zip(keys, tensors, strict=True)
    )


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def in_one_precision(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """What a loss compares: in float32, or all in float64 where one of them is; whole numbers as they are."""
    wide = tuple(at_least_float32(tensor) for tensor in tensors)
    types = {tensor.dtype for tensor in wide if tensor.is_floating_point()}
    if len(types) < 2:
        return wide
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in wide)

"""Features given as what they are computed from, for losses that need no more than that.

A feature that is large and cheap to compute, such as an attention map, need not be kept between the forward and the
backward pass: a loss of the table `FUSED` takes the parts, and computes as much of the feature at a time as it uses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, eq=False)
class Deferred(ABC):
    """A feature as its parts: those of its fields that are tensors."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Of the feature."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """As losses take it: at least float32, whatever the parts have."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """The feature itself, with the gradients of its parts."""

    @property
    def parts(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    @property
    def requires_grad(self) -> bool:
        return any(part.requires_grad for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def float(self) -> Deferred:
        """Itself: Accelerate asks this of all outputs of a model under autocast, and losses see to precision."""
        return self

    def dim(self) -> int:
        return len(self.shape)

    def detach(self) -> Deferred:
        return replace(self, **{name: part.detach() for name, part in self.parts.items()})


@dataclass(frozen=True, eq=False)
class AttentionMap(Deferred):
    """The attention of one call: probabilities, (batch, heads, length, keys); or with `scores` those before the mask.

    Args:
        query: (batch, heads, length, head width).
        key: (batch, heads, keys, head width); fewer heads for grouped queries.
        mask: boolean (True attends) or additive, broadcastable to the map; None with `causal` for all keys up to a
            query's own place, without it for all keys.
        scaling: of the dot products; None for head width^-0.5.
        position_bias: added to the scaled dot products, broadcastable to the map.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None = None
    causal: bool = False
    scaling: float | None = None
    position_bias: Tensor | None = None
    scores: bool = False

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.query.shape[:3], self.key.shape[2]])

    @property
    def dtype(self) -> torch.dtype:
        if not self.scores:
            return torch.float32
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def tensor(self) -> Tensor:
        scores = attention_scores(self.query, self.key, self.scaling, self.position_bias)
        if self.scores:
            return scores.to(self.dtype)
        return torch.softmax(masked_scores(scores, self.mask, self.causal), dim=-1, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class HeadLogits(Deferred):
    """Logits of a linear head: `hidden @ weight.T + bias`, (batch, length, classes).

    Args:
        hidden: (batch, length, width).
        weight: (classes, width).
        bias: (classes,) or None.
        precision: in which the model multiplies; None for that of `hidden`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    precision: torch.dtype | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.hidden.shape[:-1], len(self.weight)])

    @property
    def dtype(self) -> torch.dtype:
        return self.precision or self.hidden.dtype

    def tensor(self) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return F.linear(self.hidden.to(self.dtype), self.weight.to(self.dtype), bias)


@dataclass(frozen=True, eq=False)
class TopKLogits(Deferred):
    """The logits of the k likeliest classes, and one for all others.

    Args:
        values: (batch, length, k) logits.
        indices: (batch, length, k) their classes.
        rest: (batch, length) the logit that each other class gets, so that together they have at one temperature T the
            mass they had: T * (logsumexp(others / T) - log(classes - k)).
        classes: how many there are.
        temperature: T.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor
    classes: int
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Tensor | Deferred, k: int, temperature: float = 1.0) -> TopKLogits:
        """The k likeliest classes of (batch, length, classes) logits; those of a head sample by sample.

        Args:
            temperature: by which logits will be divided: at any other the others together have another mass.

        Raises:
            ConfigError: k is not below the number of classes.
        """
        classes = logits.shape[-1]
        if not 0 < k < classes:
            raise ConfigError(f"k lies between 1 and {classes - 1}, the number of classes less one; found {k!r}")
        if isinstance(logits, HeadLogits):
            found = [cls.of(replace(logits, hidden=one[None]).tensor(), k, temperature) for one in logits.hidden]
            values, indices, rest = (torch.cat([one.parts[n] for one in found]) for n in ("values", "indices", "rest"))
            return cls(values, indices, rest, classes, temperature)
        (logits,) = materialized([logits])
        values, indices = logits.topk(k, dim=-1)
        others = logits.to(torch.promote_types(logits.dtype, torch.float32)).scatter(-1, indices, float("-inf"))
        others = others if temperature == 1 else others / temperature
        rest = others.logsumexp(-1) - math.log(classes - k)
        return cls(values, indices, rest if temperature == 1 else rest * temperature, classes, temperature)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.rest.shape, self.classes])

    @property
    def dtype(self) -> torch.dtype:
        return self.rest.dtype

    def tensor(self) -> Tensor:
        return self.beside(None, self.rest.new_empty(self.shape))

    def beside(self, student: Tensor | None, into: Tensor) -> Tensor:
        """The logits, written into a tensor of their shape.

        Args:
            student: logits of the same shape: classes that it leaves out by -inf get nothing of what others share.
        """
        indices, rest = self.indices.long(), self.rest[..., None]
        if student is None:
            into.copy_(rest.expand(self.shape))
        else:
            none = student == -math.inf
            sharing = self.classes - indices.shape[-1] - none.sum(-1, keepdim=True)
            sharing += none.gather(-1, indices).sum(-1, keepdim=True)
            more = math.log(self.classes - indices.shape[-1]) - sharing.log()
            into.copy_((rest + self.temperature * more).expand(self.shape)).masked_fill_(none, -math.inf)
        return into.scatter_(-1, indices, self.values.to(into.dtype))


def materialized(features: Iterable[Tensor | Deferred]) -> tuple[Tensor, ...]:
    """Every feature as the tensor it is."""
    return tuple(feature.tensor() if isinstance(feature, Deferred) else feature for feature in features)


def first_classes(logits: Tensor | Deferred, classes: int) -> Tensor | Deferred:
    """The logits of the first classes, (…, classes), given as the logits are: whole, as a head, or as the largest."""
    if logits.shape[-1] == classes:
        return logits
    if isinstance(logits, HeadLogits):
        bias = None if logits.bias is None else logits.bias[:classes]
        return replace(logits, weight=logits.weight[:classes], bias=bias)
    if isinstance(logits, TopKLogits) and logits.values.shape[-1] < classes:
        # Those of other classes become a second mention of the largest that stays.
        kept = logits.indices < classes
        first = kept.int().argmax(-1, keepdim=True)
        value, index = (part.gather(-1, first) for part in (logits.values, logits.indices))
        some = kept.any(-1, keepdim=True)
        value = torch.where(some, value, logits.rest[..., None].to(value.dtype))
        values, indices = torch.where(kept, logits.values, value), torch.where(kept, logits.indices, index * some)
        return replace(logits, values=values, indices=indices, classes=classes)
    (whole,) = materialized([logits])
    return whole[..., :classes]


def attention_scores(
    query: Tensor,
    key: Tensor,
    scaling: float | None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scaled dot products before the mask, (batch, heads, length, keys); a learned position bias is part of them."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores if position_bias is None else scores + position_bias


def masked_scores(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    rows, keys = scores.shape[-2:]
    if mask is None:
        if not causal or rows == 1:
            return scores
        mask = causal_mask(rows, keys, scores.device)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def causal_mask(rows: int, keys: int, device: torch.device) -> Tensor:
    """(rows, keys): True up to a row's own place, where the last row's is the last key."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)

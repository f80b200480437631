"""From the features of a batch to what is stored of them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.entry import Feature
from ..features.batch_context import mask_keys, mask_of
from ..features.deferred import Deferred, TopKLogits, materialized

_NONE = -128  # a logit of -inf in eight bits


class Span(NamedTuple):
    """Where the samples of a batch lie in a padded dimension of so many places: first place, number of places."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    size: int


@dataclass(frozen=True)
class Form:
    """How one feature is stored.

    Args:
        dims: of one sample; a text stands for the length by the mask of that name.
        dtype: `bfloat16`, `float16`, `float32`, or `int8` with one scale for each row of the last dimension.
        top_k: keep the so many largest logits, and for each of the others the one value that gives them together the
            probability they had; None keeps all.
        temperature: at which they had it.
    """

    dims: tuple[int | str, ...]
    dtype: str
    top_k: int | None = None
    temperature: float = 1.0

    @property
    def parts(self) -> dict[str, tuple[tuple[int | str, ...], torch.dtype]]:
        """Name of each stored tensor -> its dimensions for one sample, and its type."""
        values = self.dims if self.top_k is None else (*self.dims[:-1], self.top_k)
        parts = {"": (values, getattr(torch, self.dtype))}
        if self.dtype == "int8":
            parts["scale"] = (self.dims[:-1], torch.float32)
        if self.top_k is not None:
            parts |= {"classes": (values, torch.int32), "rest": (self.dims[:-1], torch.float32)}
        return parts

    def encode(self, feature: Tensor | Deferred, spans: Mapping[str, Span]) -> dict[str, Tensor]:
        """The stored parts of a batch, on the feature's device, with 0 outside its samples."""
        if self.top_k is None:
            (tensor,) = materialized([feature])
            return self._rounded(blanked_outside(tensor, self.dims, spans))
        likeliest = TopKLogits.of(feature, self.top_k, self.temperature)
        parts = {**self._rounded(likeliest.values), "classes": likeliest.indices.int(), "rest": likeliest.rest.float()}
        return {name: blanked_outside(part, self.parts[name][0], spans) for name, part in parts.items()}

    def _rounded(self, values: Tensor) -> dict[str, Tensor]:
        if self.dtype != "int8":
            return {"": values.to(getattr(torch, self.dtype))}
        values, none = values.float(), values == -torch.inf
        values = values.masked_fill(none, 0.0)
        scale = values.abs().amax(-1) / 127
        steps = values / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        return {"": steps.round().to(torch.int8).masked_fill(none, _NONE), "scale": scale}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor | Deferred:
        """The feature of a batch: what the losses get, from the cache and before it is filled alike."""
        values = parts[""]
        if self.dtype == "int8":
            values = (values.float() * parts["scale"][..., None]).masked_fill(values == _NONE, -torch.inf)
        if self.top_k is None:
            return values
        return TopKLogits(values, parts["classes"], parts["rest"], int(self.dims[-1]), self.temperature)

    def to_dict(self) -> dict[str, Any]:
        return {"dims": list(self.dims), "dtype": self.dtype, "top_k": self.top_k, "temperature": self.temperature}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Form:
        return cls(tuple(form["dims"]), form["dtype"], form["top_k"], form.get("temperature", 1.0))

    def __str__(self) -> str:
        inside = "×".join(f"[{dim}]" if isinstance(dim, str) else str(dim) for dim in self.dims)
        top = "" if self.top_k is None else f", top {self.top_k}"
        top += "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return f"{inside} in {self.dtype}{top}"


def tensor_name(feature: str, part: str) -> str:
    """The name of one stored tensor of a feature."""
    return f"{feature}:{part}" if part else feature


def form_of(
    feature: Feature,
    kind: str,
    tensor: Tensor,
    context: Mapping[str, Any],
    dtype: str,
    top_k: int | None,
    temperature: float = 1.0,
) -> Form:
    """The form of a feature of this kind, from one batch of it and the teacher's context."""
    rows, keys = mask_keys(feature, kind, tensor, context)
    dims: list[int | str] = list(tensor.shape[1:])
    if rows is not None:
        dims[0 if kind == "tokens" else 1] = rows
    if keys is not None:
        dims[-1] = keys
    few = top_k if is_cut(feature, kind, top_k) and top_k < tensor.shape[-1] else None  # type: ignore[operator]
    return Form(tuple(dims), dtype, few, temperature if few else 1.0)


def is_cut(feature: Feature, kind: str, top_k: int | None) -> bool:
    """Whether only some of the classes of a feature are kept, where it has more."""
    return top_k is not None and feature.output.endswith("logits") and kind in ("vector", "tokens")


def spans_of(names: Iterable[str], context: Mapping[str, Any]) -> dict[str, Span]:
    """The span of every sample by each of these masks: from the first place that counts to the last."""
    return {name: span_of(mask_of(context, name)) for name in names}  # type: ignore[arg-type]


def span_of(mask: Tensor) -> Span:
    counts = mask.bool().cpu().numpy()
    start = counts.argmax(1)
    end = counts.shape[1] - counts[:, ::-1].argmax(1)
    return Span(start, np.where(counts.any(1), end - start, 0), counts.shape[1])


def blanked_outside(tensor: Tensor, dims: tuple[int | str, ...], spans: Mapping[str, Span]) -> Tensor:
    """A batch with 0 outside its samples' spans, as it comes back from the cache."""
    for axis, dim in enumerate(dims, start=1):
        if isinstance(dim, str):
            places = np.arange(spans[dim].size)
            start, length = spans[dim].start[:, None], spans[dim].length[:, None]
            inside = torch.from_numpy((places >= start) & (places < start + length)).to(tensor.device)
            shape = [len(inside), *([1] * (tensor.dim() - 1))]
            shape[axis] = tensor.shape[axis]
            tensor = torch.where(inside.view(shape), tensor, 0)
    return tensor

"""From the features of a batch to what is stored of them, and back; and the key of a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ..config.entry import Feature
from ..errors import DataError
from ..features.batch_context import batch_size, mask_keys, mask_of
from ..features.deferred import Deferred, TopKLogits, whole


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
    """

    dims: tuple[int | str, ...]
    dtype: str
    top_k: int | None = None

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
            (tensor,) = whole([feature])
            return self._rounded(blanked_outside(tensor, self.dims, spans))
        likeliest = TopKLogits.of(feature, self.top_k)
        parts = {**self._rounded(likeliest.values), "classes": likeliest.indices.int(), "rest": likeliest.rest.float()}
        return {name: blanked_outside(part, self.parts[name][0], spans) for name, part in parts.items()}

    def _rounded(self, values: Tensor) -> dict[str, Tensor]:
        if self.dtype != "int8":
            return {"": values.to(getattr(torch, self.dtype))}
        values = values.float()
        scale = values.abs().amax(-1) / 127
        steps = values / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        return {"": steps.round().to(torch.int8), "scale": scale}

    def decode(self, parts: Mapping[str, Tensor], deferred: bool = False) -> Tensor | Deferred:
        """The feature of a batch: what the losses get, from the cache and before it is filled alike.

        Args:
            deferred: leave logits as the likeliest and the rest.
        """
        values = parts[""]
        if self.dtype == "int8":
            values = values.float() * parts["scale"][..., None]
        if self.top_k is None:
            return values
        logits = TopKLogits(values, parts["classes"], parts["rest"], int(self.dims[-1]))
        return logits if deferred else logits.tensor()

    def to_dict(self) -> dict[str, Any]:
        return {"dims": list(self.dims), "dtype": self.dtype, "top_k": self.top_k}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Form:
        return cls(tuple(given["dims"]), given["dtype"], given["top_k"])

    def __str__(self) -> str:
        inside = "×".join(f"[{dim}]" if isinstance(dim, str) else str(dim) for dim in self.dims)
        top = "" if self.top_k is None else f", top {self.top_k}"
        return f"{inside} in {self.dtype}{top}"


def form_of(
    feature: Feature, kind: str, tensor: Tensor, context: Mapping[str, Any], dtype: str, top_k: int | None
) -> Form:
    """The form of a feature of this kind, from one batch of it and the teacher's context."""
    rows, keys = mask_keys(feature, kind, tensor, context)
    dims: list[int | str] = list(tensor.shape[1:])
    if rows is not None:
        dims[0 if kind == "tokens" else 1] = rows
    if keys is not None:
        dims[-1] = keys
    few = top_k if feature.output.endswith("logits") and top_k is not None and top_k < tensor.shape[-1] else None
    return Form(tuple(dims), dtype, few)


def spans_of(names: Iterable[str], context: Mapping[str, Any]) -> dict[str, Span]:
    """The span of every sample by each of these masks: from the first place that counts to the last."""
    spans = {}
    for name in names:
        mask = mask_of(context, name)
        assert mask is not None
        spans[name] = span_of(mask)
    return spans


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


def sample_keys(inputs: Mapping[str, Any], context: Mapping[str, Any]) -> NDArray[np.uint64]:
    """A key of 128 bits for each sample: of the teacher's own inputs without padding, whatever batch it came in.

    A sample that begins late, after padding on the left, is another sample: a position may be an input as well.

    Args:
        inputs: what the teacher's `forward` is given, on the CPU.
        context: with the masks.

    Returns:
        (batch, 2).

    Raises:
        DataError: an input is neither a plain value nor a tensor with a row for each sample.
    """
    batch = batch_size(context)
    digests = [xxhash.xxh3_128() for _ in range(batch)]
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Tensor) and value.dim():
            if len(value) != batch:
                raise DataError(
                    f"the teacher's input {name!r} has {len(value)} rows in a batch of {batch} samples: a teacher "
                    "cache cannot tell which are whose"
                )
            _update(digests, name, value, _cut(name, value, inputs, context))
        elif isinstance(value, (Tensor, str, int, float, bool, type(None))):
            plain = value.tolist() if isinstance(value, Tensor) else value
            for digest in digests:
                digest.update(f"{name}={plain!r};".encode())
        else:
            raise DataError(
                f"the teacher's input {name!r} is a {type(value).__name__}, of which a teacher cache can make no key"
            )
    labelled = None if "decoder_attention_mask" in inputs else context.get("decoder_attention_mask")
    if labelled is not None:  # the labels say which places of a decoder count
        span = span_of(labelled)
        for digest, start, length in zip(digests, span.start.tolist(), span.length.tolist(), strict=True):
            digest.update(f"labels {start} {length};".encode())
    words = b"".join(digest.digest() for digest in digests)
    return np.frombuffer(words, dtype=np.uint64).reshape(batch, 2)


def _cut(name: str, value: Tensor, inputs: Mapping[str, Any], context: Mapping[str, Any]) -> Span | None:
    """Which part of each row a teacher looks at: by a mask it is given, or up to the last label a decoder is for."""
    decodes = name.startswith("decoder_")
    key = "decoder_attention_mask" if decodes else "attention_mask"
    mask = inputs.get(key, context.get(key) if decodes else None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape != value.shape[:2]:
        return None
    span = span_of(mask)
    if key in inputs:
        return span
    return Span(np.zeros_like(span.start), span.start + span.length, span.size)


def _update(digests: list[Any], name: str, value: Tensor, span: Span | None) -> None:
    exact = value.float() if value.is_floating_point() else value.long()
    rows = exact.cpu().contiguous().numpy()
    for sample, digest in enumerate(digests):
        row, start = rows[sample], 0
        if span is not None:
            start = int(span.start[sample])
            row = row[start : start + int(span.length[sample])]
            if name in ("attention_mask", "decoder_attention_mask") and row.all():
                continue  # says nothing that the others do not: it may as well not be there
        digest.update(f"{name} {row.dtype} {row.shape} {start};".encode())
        digest.update(np.ascontiguousarray(row))

"""What makes a teacher, and a sample, the same one again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from ..features.batch_context import batch_size
from .cache_format import Span, span_of
from .frozen import stored_weights

_OF_NO_CONSEQUENCE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


class Identity(NamedTuple):
    """Whose features a cache holds; a change of any of them makes them other features."""

    teacher: str
    weights: str
    structure: str
    computed_in: str

    @classmethod
    def of(cls, model: nn.Module, adaptor: Callable[..., Any] | None = None) -> Identity:
        """Of a teacher with the weights it computes with, and the output adaptor that names its features."""
        weights = xxhash.xxh3_128()
        for name, value in stored_weights(model):
            for tensor in plain_tensors(value):
                weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config: Any = getattr(model, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        settings = {key: value for key, value in settings.items() if key not in _OF_NO_CONSEQUENCE}
        shape = json.dumps(settings, sort_keys=True, default=str)
        parts = [type(model).__module__, repr(model), shape, code_of(adaptor)]
        structure = xxhash.xxh3_128(re.sub(r" at 0x[0-9a-f]+", "", repr(parts)).encode())
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        computed_in = str(dtype).removeprefix("torch.")
        return cls(type(model).__name__, weights.hexdigest(), structure.hexdigest(), computed_in)


def plain_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that a weight consists of: itself, or what a quantized one packs."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from plain_tensors(one)
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        yield from plain_tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield value.dequantize() if value.is_quantized else value


def code_of(function: Any) -> Any:
    """What a function does, as far as it can be seen: instructions and constants, and what it closes over."""
    if isinstance(function, partial):
        return [code_of(function.func), function.args, function.keywords]
    function = getattr(function, "__func__", function)
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    if code is None:
        method = vars(type(function)).get("__call__")
        return [type(function).__qualname__, code_of(method) if hasattr(method, "__code__") else None]
    constants = [code_of(value) if isinstance(value, CodeType) else value for value in code.co_consts]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    cells = [code_of(value) if callable(value) else value for value in cells]
    return [code.co_code, code.co_names, constants, cells, getattr(function, "__defaults__", None)]


def sample_keys(inputs: Mapping[str, Any], context: Mapping[str, Any]) -> NDArray[np.uint64]:
    """A key of 128 bits for each sample: of the teacher's own inputs without padding, whatever batch it came in.

    A sample that begins late, after padding on the left, is another sample: a position may be an input as well.

    Args:
        inputs: what the teacher's `forward` takes, on the CPU.
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
    by_labels = None if "decoder_attention_mask" in inputs else context.get("decoder_attention_mask")
    if by_labels is not None:  # the labels say which places of a decoder count
        span = span_of(by_labels)
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

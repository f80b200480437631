"""Losses of language-model heads over large vocabularies: of (batch, length, classes) only some rows are ever held.

The weight of every token is known beforehand, so the forward pass takes, chunk by chunk, the student's logits, the
teacher's, the values and their slope, and adds up at once what hidden states and head get of it. Nothing is computed
again: the backward pass multiplies by the gradient of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...features.deferred import HeadLogits, TopKLogits, materialized
from ...losses.classes import logit_standardization
from ...losses.divergences import js_divergence, reverse_kl, skewed_kl, skewed_reverse_kl, total_variation
from ...losses.labels import IGNORED_LABEL, hard_cross_entropy
from ...losses.logits import kl_divergence, logits_mse, soft_cross_entropy
from .slopes import slope_of

# Values of one buffer of (chunk, classes). With few items at once a GPU would wait for the weights.
ELEMENTS = {"cpu": 1 << 24}
ELEMENTS_ELSEWHERE = 1 << 26
SMALLEST_CHUNK = 16


class Workspace:
    """Buffers of (chunk, classes) by name, used again by every chunk: fresh memory costs more than the arithmetic."""

    def __init__(self, rows: int, classes: int, device: torch.device) -> None:
        self.shape, self.device = (rows, classes), device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        if (name, dtype) not in self._held:
            self._held[name, dtype] = torch.empty(self.shape, dtype=dtype, device=self.device)
        return self._held[name, dtype][:rows]


# What gives the reference of a span of items, of which some count: `read(span, kept, student, workspace)`.
Read = Callable[[slice, Tensor, Tensor, Workspace], Tensor]


@dataclass(frozen=True)
class HeadTerm:
    """One loss on the student's logits.

    Args:
        loss: a loss on logits that gives one value per item.
        reference: the teacher's logits (HeadLogits, TopKLogits or a tensor), or (batch, length) labels.
        rows: (batch, length) the weight of each item; one of weight 0 does not count, whatever stands there.
        args: of the loss.
        factor: of this term in the sum of all: a number or a 0-d tensor.
    """

    loss: Callable[..., Tensor]
    reference: Any
    rows: Tensor
    args: Mapping[str, Any] = field(default_factory=dict)
    factor: Any = 1.0

    @property
    def hard(self) -> bool:
        return self.loss is hard_cross_entropy

    def weights(self) -> Tensor:
        rows = self.rows * (self.reference != IGNORED_LABEL) if self.hard else self.rows
        return rows.flatten()


def head_loss(student: HeadLogits, parts: Sequence[HeadTerm], chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The sum over items of weight times value, of all parts together in one pass over the student's head.

    Args:
        student: hidden states, weight and bias each get a gradient.
        parts: losses, one or more.
        chunk: how many items are taken at once; None for as many as `ELEMENTS` allow.

    Returns:
        (), the sum over parts of factor times sum; and (parts,) the sums themselves, without gradient.
    """
    return _HeadLoss.apply(student.hidden, student.weight, student.bias, student.dtype, parts, chunk)


def _fused(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def fused(student: HeadLogits, reference: Any, rows: Tensor, keys: Tensor | None, **args: Any) -> Tensor:
        return head_loss(student, [HeadTerm(loss, reference, rows, args)])[0]

    return fused


# The losses that look at one item at a time, each as `FUSED` has it.
FUSED_WITH_HEAD: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    loss: _fused(loss)
    for loss in (
        *(kl_divergence, soft_cross_entropy, reverse_kl, js_divergence, skewed_kl, skewed_reverse_kl),
        *(total_variation, logits_mse, logit_standardization, hard_cross_entropy),
    )
}


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        dtype, parts, chunk = rest
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(HeadLogits(hidden, weight, bias, dtype), ctx.needs_input_grad[:3])
            sums = _summed(head, parts, chunk)
        by_hidden = None if head.by_hidden is None else head.by_hidden.view(hidden.shape)
        ctx.save_for_backward(by_hidden, head.by_weight, head.by_bias)
        ctx.dtypes = [None if one is None else one.dtype for one in (hidden, weight, bias)]
        ctx.mark_non_differentiable(sums)
        return torch.stack([part.factor * one for part, one in zip(parts, sums, strict=True)]).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if one is None else (one * upstream.to(one.dtype)).to(dtype) for one, dtype in gradients]
        return *scaled, None, None, None


def _summed(head: _Head, parts: Sequence[HeadTerm], chunk: int | None) -> Tensor:
    """The sum of each part; the gradients of their own sum go to the head."""
    items, classes = len(head.hidden), len(head.weight)
    at_once = ELEMENTS.get(head.hidden.device.type, ELEMENTS_ELSEWHERE)
    size = max(1, min(items, chunk or max(SMALLEST_CHUNK, at_once // classes)))
    workspace = Workspace(size, classes, head.hidden.device)
    weights = [part.weights().to(head.precision)[:, None] for part in parts]
    mask = torch.stack([weight != 0 for weight in weights]).any(0)
    read, slopes = [_reader(part) for part in parts], [slope_of(part.loss) for part in parts]
    sums = torch.zeros(len(parts), dtype=head.precision, device=head.hidden.device)
    for start in range(0, items, size):
        span = slice(start, min(start + size, items))
        buffer = partial(workspace, rows=span.stop - start, dtype=head.precision)
        logits = head.logits(span, mask[span], workspace, buffer("student"))
        for number, part in enumerate(parts):
            own = logits if number == len(parts) - 1 else buffer("copy").copy_(logits)
            weight = weights[number][span]
            reference = read[number](span, weight != 0, own, workspace)
            values, slope = slopes[number](own, reference, buffer("spare"), **part.args)
            sums[number] += values @ weight[:, 0]
            weight = weight * part.factor
            if len(parts) == 1:
                gradient = slope.mul_(weight)
            elif number == 0:
                gradient = torch.mul(slope, weight, out=buffer("gradient"))
            else:
                gradient.addcmul_(slope, weight)
        head.add(span, mask[span], gradient, workspace)
    return sums


class _Head:
    """A head: logits of a span of items, and the gradients, of those wanted, by what the logits are computed from."""

    def __init__(self, logits: HeadLogits, needs_grad: Sequence[bool] = (False, False, False)) -> None:
        dtype, hidden, weight, bias = logits.dtype, logits.hidden, logits.weight, logits.bias
        self.hidden, self.weight = hidden.detach().flatten(0, -2), weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.precision = torch.promote_types(dtype, torch.float32)
        own = self.precision if self.hidden.dtype == torch.float16 else self.hidden.dtype
        self.by_hidden = torch.empty_like(self.hidden, dtype=own) if needs_grad[0] else None
        self.by_weight = torch.zeros_like(self.weight, dtype=self.precision) if needs_grad[1] else None
        self.by_bias = torch.zeros_like(self.weight[:, 0], dtype=self.precision) if needs_grad[2] else None
        self._of_chunk = torch.empty_like(self.weight) if needs_grad[1] and dtype != self.precision else None
        self._largest = self.weight.new_ones(())
        if dtype == torch.float16 and any(needs_grad):
            self._largest = torch.linalg.vector_norm(self.weight, torch.inf).clamp(min=1)

    def logits(self, span: slice, mask: Tensor, workspace: Workspace, into: Tensor) -> Tensor:
        dtype = self.weight.dtype
        product = into if into.dtype == dtype else workspace("product", len(into), dtype)
        if self.bias is None:
            torch.mm(self._rows(span, mask), self.weight.T, out=product)
        else:
            torch.addmm(self.bias, self._rows(span, mask), self.weight.T, out=product)
        return into if product is into else into.copy_(product)

    def add(self, span: slice, mask: Tensor, gradient: Tensor, workspace: Workspace) -> None:
        if self.by_bias is not None:
            self.by_bias += gradient.sum(0)
        rows, dtype = self._rows(span, mask), self.weight.dtype
        if dtype == torch.float16:
            largest = torch.linalg.vector_norm(rows, torch.inf).clamp(min=1)
            rows, scale = rows / largest, _scale(gradient, self._largest)
            gradient.mul_(scale)
        if gradient.dtype != dtype:
            gradient = workspace("product", len(gradient), dtype).copy_(gradient)
        if self.by_hidden is not None:
            self.by_hidden[span] = gradient @ self.weight
            if dtype == torch.float16:
                self.by_hidden[span] /= scale
        if self.by_weight is not None and self._of_chunk is None:
            self.by_weight.addmm_(gradient.T, rows)
        elif self.by_weight is not None and self._of_chunk is not None:  # half precision would lose what chunks add
            torch.mm(gradient.T, rows, out=self._of_chunk)
            if dtype == torch.float16:
                self.by_weight.addcdiv_(self._of_chunk, scale / largest)
            else:
                self.by_weight += self._of_chunk

    def _rows(self, span: slice, mask: Tensor) -> Tensor:
        return torch.where(mask, self.hidden[span], 0.0).to(self.weight.dtype)


def _scale(gradient: Tensor, weight: Tensor) -> Tensor:
    """By what a gradient is multiplied for float16, (): weights of a mean are too small for it, and sums too large.

    Its products, with a head whose largest value is `weight` and with inputs up to 1, stay within the range.
    """
    by_item, by_class = (torch.linalg.vector_norm(gradient, 1, dim=dim).max() for dim in (1, 0))
    return 2.0**15 / torch.maximum(by_item * weight, by_class).clamp(min=2.0**-80)


# --- the reference of a span of items ------------------------------------------------------------------------------


def _reader(part: HeadTerm) -> Read:
    reference = part.reference
    if part.hard:
        labels = reference.flatten()
        return lambda span, mask, student, workspace: labels[span]
    if isinstance(reference, HeadLogits):
        return _of_head(_Head(reference))
    return _of_top_k(reference) if isinstance(reference, TopKLogits) else _of_logits(*materialized([reference]))


def _of_head(head: _Head) -> Read:
    def read(span: slice, mask: Tensor, student: Tensor, workspace: Workspace) -> Tensor:
        return head.logits(span, mask, workspace, workspace("teacher", len(mask), student.dtype))

    return read


def _of_top_k(logits: TopKLogits) -> Read:
    values, indices, rest = logits.values.flatten(0, -2), logits.indices.flatten(0, -2), logits.rest.flatten()

    def read(span: slice, mask: Tensor, student: Tensor, workspace: Workspace) -> Tensor:
        kept = torch.where(mask, values[span], 0.0), indices[span], torch.where(mask[:, 0], rest[span], 0.0)
        likeliest = TopKLogits(*kept, logits.classes, logits.temperature)
        return likeliest.beside(student, workspace("teacher", len(mask), student.dtype))

    return read


def _of_logits(logits: Tensor) -> Read:
    logits = logits.detach().flatten(0, -2)

    def read(span: slice, mask: Tensor, student: Tensor, workspace: Workspace) -> Tensor:
        return workspace("teacher", len(mask), student.dtype).copy_(logits[span]).masked_fill_(~mask, 0.0)

    return read

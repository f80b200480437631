"""Losses on attention maps from the queries and keys that these are computed from, in memory linear in the length.

A map is computed a few rows or heads at a time. The sum of the loss is one number, so its gradient follows in the same
pass, up to that number's own gradient: nothing is computed a second time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...features.attention_by_parts import AT_ONCE, Part, part_of, parts_of
from ...features.deferred import AttentionMap
from ...losses.attention import check_floor

logger = logging.getLogger(__name__)

AT_ONCE_ELSEWHERE = 1 << 25  # values of a map computed at a time, but on a processor

_QUERY_AND_KEY = (True, True, False)  # of which a gradient is wanted
# (student, teacher, left out, epsilon) -> the value of each row, and the slope of the student's scores. Pairs that are
# left out do not count: both maps are 0 there. The maps may be overwritten.
Compare = Callable[[Tensor, Tensor, "Tensor | None", float], tuple[Tensor, Tensor]]


def fused_attention_mse(
    student: AttentionMap, teacher: AttentionMap | Tensor, rows: Tensor, keys: Tensor | None
) -> Tensor:
    """The weighted sum of `attention_mse`.

    Args:
        student: (batch, heads, length, keys).
        teacher: same shape.
        rows: (batch, length) the weight of each row.
        keys: (batch, keys) keys that count; None for all.
    """
    return _summed(student, teacher, rows, keys, Measure("squares" if student.scores else "squares_of_probabilities"))


def fused_attention_kl(
    student: AttentionMap, teacher: AttentionMap | Tensor, rows: Tensor, keys: Tensor | None, epsilon: float = 1e-12
) -> Tensor:
    """The weighted sum of `attention_kl`; arguments as for `fused_attention_mse`."""
    check_floor("attention_kl", epsilon)
    return _summed(student, teacher, rows, keys, Measure("divergence", epsilon))


def fused_attention_cross_entropy(
    student: AttentionMap, teacher: AttentionMap | Tensor, rows: Tensor, keys: Tensor | None, epsilon: float = 1e-12
) -> Tensor:
    """The weighted sum of `attention_cross_entropy`; arguments as for `fused_attention_mse`."""
    check_floor("attention_cross_entropy", epsilon)
    return _summed(student, teacher, rows, keys, Measure("cross_entropy", epsilon))


class Measure(NamedTuple):
    """What a pair of maps is compared by: a name of `_COMPARED`, and the floor of probabilities in logarithms."""

    name: str
    epsilon: float = 0.0


def _summed(
    student: AttentionMap, teacher: AttentionMap | Tensor, rows: Tensor, keys: Tensor | None, measure: Measure
) -> Tensor:
    parts = (student.query, student.key, student.position_bias)
    return _Sum.apply(*parts, student, teacher, rows, keys, measure)


def _squares(student: Tensor, teacher: Tensor, left_out: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
    error = student.sub_(teacher)
    if left_out is not None:
        error.masked_fill_(left_out, 0.0)
    return torch.linalg.vector_norm(error, dim=-1).square_(), error.mul_(2)


def _squares_of_probabilities(
    student: Tensor, teacher: Tensor, left_out: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    error = torch.sub(student, teacher, out=teacher)
    if left_out is not None:
        error.masked_fill_(left_out, 0.0)
    value = torch.linalg.vector_norm(error, dim=-1).square_()
    error.mul_(student)
    slope = error.addcmul_(student, error.sum(-1, keepdim=True), value=-1)
    return value, slope.mul_(2)


def _divergence(
    student: Tensor, teacher: Tensor, left_out: Tensor | None, epsilon: float, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    if left_out is not None:
        teacher.masked_fill_(left_out, 0.0)
    ratio = student.clamp(min=epsilon)
    if entropy:
        torch.div(ratio, teacher.clamp(min=epsilon), out=ratio)
    value = ratio.log_().mul_(teacher).sum(-1).neg_()
    teacher.masked_fill_(student <= epsilon, 0.0)  # no slope below the floor
    return value, student.mul_(teacher.sum(-1, keepdim=True)).sub_(teacher)


_COMPARED: Mapping[str, Compare] = {
    "squares": _squares,
    "squares_of_probabilities": _squares_of_probabilities,
    "divergence": _divergence,
    "cross_entropy": partial(_divergence, entropy=False),
}


class _Sum(torch.autograd.Function):
    """The weighted sum of a loss's rows. It keeps the gradients of what the student's map is computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        position_bias: Tensor | None,
        student: AttentionMap,
        teacher: AttentionMap | Tensor,
        rows: Tensor,
        keys: Tensor | None,
        measure: Measure,
    ) -> Tensor:
        rows, needs_grad = rows.to(torch.promote_types(query.dtype, torch.float32)), ctx.needs_input_grad[:3]
        kernels = None if isinstance(teacher, Tensor) else _kernels(student, teacher)
        if kernels is None:
            value, *gradients = _run(student, teacher, rows, keys, measure, needs_grad)
        else:
            value, *gradients = _run_kernels(kernels, student, teacher, rows, keys, measure, needs_grad)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if part is None else part.dtype for part in (query, key, position_bias)]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if saved is None else (saved * gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None, None


def _kernels(student: AttentionMap, teacher: AttentionMap) -> Any:
    """The module of kernels, where there is a GPU (or Triton's interpreter) and they know such maps; else None."""
    if not student.query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from ...kernels import attention_triton
    except ImportError:
        return None
    suits = all(side.position_bias is None and attention_triton.suits(side.query) for side in (student, teacher))
    return attention_triton if suits and _are_right(student.query.device, student.query.dtype) else None


def _run_kernels(
    kernels: Any,
    student: AttentionMap,
    teacher: Any,
    rows: Tensor,
    keys: Tensor | None,
    measure: Measure,
    needs_grad: tuple[bool, ...],
) -> Any:
    sides = [kernels.Map(m.query, m.key, m.mask, m.causal, float(m.scale), m.scores) for m in (student, teacher)]
    return kernels.run(*sides, rows, keys, *measure, needs_grad)


@lru_cache(maxsize=16)
def _are_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give on this device what the plain form gives, tried once on small maps."""
    from ...kernels import attention_triton

    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, 40, 16, generator=generator).to(device, dtype) for _ in range(4)]
    kept = torch.arange(40, device=device)[None] < 33
    mask = kept[:, None, None]
    query, key, their_query, their_key = drawn
    student, teacher = AttentionMap(query, key, mask), AttentionMap(their_query, their_key, mask)
    sides = (student, teacher, kept.float(), kept)
    try:
        for measure in (Measure("squares_of_probabilities"), Measure("divergence", 1e-12)):
            plain = _run(*sides, measure, _QUERY_AND_KEY)[:3]
            fast = _run_kernels(attention_triton, *sides, measure, _QUERY_AND_KEY)[:3]
            for one, other in zip(plain, fast, strict=True):
                assert one is not None
                torch.testing.assert_close(other, one, rtol=2e-2, atol=2e-2 * float(one.abs().max()))
    except Exception as error:  # whatever a compiler or a driver raises
        first = str(error).strip().split("\n")[0]
        logger.warning("attention losses take the form without kernels on %s: %s", device, first)
        return False
    return True


def _run(
    student: AttentionMap,
    teacher: AttentionMap | Tensor,
    rows: Tensor,
    keys: Tensor | None,
    measure: Measure,
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The weighted sum, and its gradients to the student's query, key and position bias, where wanted."""
    compare = _COMPARED[measure.name]
    ours = _MapByParts(student, rows, keys)
    theirs = _WholeMap(teacher, rows) if isinstance(teacher, Tensor) else _MapByParts(teacher, rows, keys)
    left_out = None if keys is None else ~keys[:, None, None]
    value = rows.new_zeros(())
    sources = (student.query, ours.key, student.position_bias)
    gradients = [
        torch.zeros(source.shape, dtype=rows.dtype, device=rows.device) if want and source is not None else None
        for source, want in zip(sources, needs_grad, strict=True)
    ]
    for part in parts_of(student.shape, AT_ONCE if rows.device.type == "cpu" else AT_ONCE_ELSEWHERE):
        samples, _, places = part
        mine, attends = ours.map(part)
        other, _ = theirs.map(part)
        weight = rows[samples, None, places]
        values, slope = compare(mine, other, None if left_out is None else left_out[samples], measure.epsilon)
        value += (values * weight).sum()
        if any(needs_grad):
            if attends is not None:
                weight = weight * attends
            ours.pull(part, slope, weight, gradients)
    query, key, bias = gradients
    if key is not None:
        key = key.unflatten(1, (student.key.shape[1], -1)).sum(2)
    return value, query, key, bias


class _WholeMap:
    """A map that is there, by parts."""

    def __init__(self, tensor: Tensor, rows: Tensor) -> None:
        self.tensor, self.rows = tensor, rows

    def map(self, part: Part) -> tuple[Tensor, None]:
        counts = self.rows[part[0], None, part[2], None] != 0
        return torch.where(counts, self.tensor[part].to(self.rows.dtype), 0.0), None


class _MapByParts:
    """A map by parts, and the way of a slope back."""

    def __init__(self, source: AttentionMap, rows: Tensor, keys: Tensor | None) -> None:
        self.source, self.counts, self.dtype = source, rows != 0, rows.dtype
        self.key = source.key.detach()
        if keys is not None:
            self.key = torch.where(keys[:, None, :, None], self.key, self.key.nan_to_num(0.0, 0.0, 0.0))
        if self.key.shape[1] != source.query.shape[1]:
            self.key = self.key.repeat_interleave(source.query.shape[1] // self.key.shape[1], dim=1)

    def products(self, part: Part) -> tuple[Tensor, Tensor]:
        """The queries of a part, 0 in padding, and its keys: (samples * heads, length, width)."""
        samples, heads, places = part
        query = torch.where(self.counts[samples, None, places, None], self.source.query[part].detach(), 0.0)
        return query.flatten(0, 1), self.key[samples, heads].flatten(0, 1)

    def map(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """A part of the map, and which of its rows attend to anything; None where all do."""
        query, key = self.products(part)
        nothing = query.new_empty(1, 1, 1)
        scores = torch.baddbmm(nothing, query, key.mT, beta=0, alpha=self.source.scale).to(self.dtype)
        scores = scores.unflatten(0, self.source.query[part].shape[:2])
        if self.source.position_bias is not None:
            scores += part_of(self.source.position_bias.detach(), part)
        if self.source.scores:
            return scores, None
        mask, attends = self.source.mask, None
        if mask is not None and mask.dtype != torch.bool:
            scores += part_of(mask, part).clamp(min=torch.finfo(mask.dtype).min)  # a row may attend to nothing
        elif mask is not None or self.source.causal:
            closed = self._after(part) if mask is None else ~part_of(mask, part)
            scores.masked_fill_(closed, torch.finfo(self.key.dtype).min)
            attends = ~closed.all(-1)
        return torch.softmax(scores, dim=-1), attends

    def _after(self, part: Part) -> Tensor:
        """The keys after a query's own place."""
        length, keys = self.source.shape[2:]
        places = torch.arange(length, device=self.key.device)[part[2], None] + keys - length
        return torch.arange(keys, device=self.key.device) > places

    def pull(self, part: Part, slope: Tensor, weight: Tensor, gradients: list[Tensor | None]) -> None:
        """Add to the gradients of query, key and bias what comes of the slope of a part of the scores."""
        to_query, to_key, to_bias = gradients
        if to_bias is not None:
            own = part_of(to_bias, part)
            own += (slope * weight[..., None]).sum_to_size(own.shape)
        query, key = self.products(part)
        if key.dtype == torch.float16:  # slopes and weights are too small for it
            query, key = query.float(), key.float()
        slope = slope.to(key.dtype).flatten(0, 1)
        weight = (weight * self.source.scale)[..., None]
        if to_query is not None:
            own = to_query[part]
            torch.mul(torch.bmm(slope, key).unflatten(0, own.shape[:2]), weight, out=own)
        if to_key is not None:
            own = to_key[part[:2]]
            query = (query.unflatten(0, (len(own), -1)) * weight).to(slope.dtype).flatten(0, 1)
            own += torch.bmm(slope.mT, query).unflatten(0, own.shape[:2])

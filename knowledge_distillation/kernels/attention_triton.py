"""The sums and gradients of losses on attention maps as kernels for a GPU: no map is ever written to its memory.

A program takes a block of rows of one head, goes over the keys once for the normalisers of both softmaxes, once for
the values of the loss, and once for the gradient of its queries; a second kernel takes a block of keys and goes over
the rows for theirs. Imported only where it is used, since Triton is not everywhere.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MEASURES = {"squares": 0, "squares_of_probabilities": 1, "divergence": 2, "cross_entropy": 3}
WIDEST = 128  # of a head, so that the blocks of both sides fit into shared memory
TYPES = (torch.float32, torch.float16, torch.bfloat16)
_NO_MASK, _BOOLEAN, _ADDITIVE, _CAUSAL = range(4)


class Map(NamedTuple):
    """What a map is computed from.

    Args:
        query: (batch, heads, length, head width).
        key: (batch, heads, keys, head width); fewer heads for grouped queries.
        mask: boolean (True attends) or additive, broadcastable to the map; None with `causal` for all keys up to a
            query's own place, without it for all keys.
        scale: of the dot products.
        scores: the map is the scores before the mask, not probabilities.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    scores: bool


def suits(query: Tensor) -> bool:
    """Whether the kernels know maps of such queries."""
    return query.shape[-1] <= WIDEST and query.dtype in TYPES


def run(
    student: Map,
    teacher: Map,
    rows: Tensor,
    keys: Tensor | None,
    measure: str,
    epsilon: float,
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
    """The weighted sum, and its gradients to the student's query and key, where wanted.

    Args:
        rows: (batch, length) weights, float32.
        keys: (batch, keys) keys that count; None for all.
        measure: one of `MEASURES`.
    """
    batch, heads, length, columns = *student.query.shape[:3], student.key.shape[2]
    device = rows.device
    values = torch.empty(batch, heads, length, device=device)
    # of each row: maximum and sum of exponentials of both sides, the centre of its slope, the weight of its gradient
    normalisers = torch.empty(6, batch, heads, length, device=device)
    to_query = torch.zeros_like(student.query, dtype=torch.float32, memory_format=torch.contiguous_format)
    to_key = torch.zeros(batch, heads, columns, student.key.shape[-1], device=device)
    counted = torch.ones(1, 1, dtype=torch.bool, device=device) if keys is None else keys
    counted = counted.expand(batch, columns)
    rows = rows.contiguous()
    sides = [*_arguments(student, keys), *_arguments(teacher, keys)]
    sizes = (heads, length, columns, epsilon, counted, *counted.stride())
    constants = {
        "MEASURE": MEASURES[measure],
        "SCORES_S": student.scores,
        "SCORES_T": teacher.scores,
        "MASK_S": _mask_kind(student),
        "MASK_T": _mask_kind(teacher),
        "LOWEST_S": torch.finfo(student.query.dtype).min,
        "LOWEST_T": torch.finfo(teacher.query.dtype).min,
        "GROUP_S": heads // student.key.shape[1],
        "GROUP_T": heads // teacher.key.shape[1],
        "WIDTH_S": student.query.shape[-1],
        "WIDTH_T": teacher.query.shape[-1],
        "SPACE_S": max(16, triton.next_power_of_2(student.query.shape[-1])),
        "SPACE_T": max(16, triton.next_power_of_2(teacher.query.shape[-1])),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }
    block = 32 if max(constants["SPACE_S"], constants["SPACE_T"]) * student.query.element_size() > 128 else 64
    constants |= {"ROWS": block, "KEYS": block, "num_stages": 1}
    grid = (triton.cdiv(length, block), batch * heads)
    _rows_kernel[grid](*sides, rows, values, normalisers, to_query, *sizes, GRADIENT=needs_grad[0], **constants)
    if needs_grad[1]:
        grid = (triton.cdiv(columns, block), batch * heads)
        _keys_kernel[grid](*sides, rows, normalisers, to_key, *sizes, **constants)
        to_key = to_key.unflatten(1, (student.key.shape[1], -1)).sum(2)
    return values.sum(), to_query if needs_grad[0] else None, to_key if needs_grad[1] else None, None


def _arguments(side: Map, keys: Tensor | None) -> tuple[object, ...]:
    """Queries, keys, the scale, and the mask with its strides; 0 along what it is broadcast over."""
    key = side.key.detach()
    if keys is not None:
        key = torch.where(keys[:, None, :, None], key, key.nan_to_num(0.0, 0.0, 0.0))
    mask = side.query.new_empty(1) if side.mask is None else side.mask
    strides = (0, 0, 0, 0) if side.mask is None else mask.expand(*side.query.shape[:3], key.shape[2]).stride()
    return side.query.detach().contiguous(), key.contiguous(), side.scale, mask, *strides


def _mask_kind(side: Map) -> int:
    if side.mask is None:
        return _CAUSAL if side.causal else _NO_MASK
    return _BOOLEAN if side.mask.dtype == torch.bool else _ADDITIVE


@triton.jit
def _queries(query, head, places, kept, length, WIDTH: tl.constexpr, SPACE: tl.constexpr):
    """A block of queries of one head, 0 in padding."""
    wide = tl.arange(0, SPACE)
    at = query + (head.to(tl.int64) * length + places[:, None]) * WIDTH + wide[None, :]
    return tl.load(at, mask=kept[:, None] & (wide < WIDTH)[None, :], other=0.0)


@triton.jit
def _keys(key, head, others, columns, WIDTH: tl.constexpr, SPACE: tl.constexpr, GROUP: tl.constexpr):
    """A block of the keys that belong to a head of queries."""
    wide = tl.arange(0, SPACE)
    at = key + ((head // GROUP).to(tl.int64) * columns + others[:, None]) * WIDTH + wide[None, :]
    return tl.load(at, mask=(others < columns)[:, None] & (wide < WIDTH)[None, :], other=0.0)


@triton.jit
def _scores(q, k, scale, mask, s_b, s_h, s_r, s_k, sample, head, places, others, length, columns,
            SCORES: tl.constexpr, MASK: tl.constexpr, LOWEST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of scores, masked for probabilities, and which of its pairs are open."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    inside = (places < length)[:, None] & (others < columns)[None, :]
    opened = inside
    if not SCORES:
        at = mask + sample.to(tl.int64) * s_b + head.to(tl.int64) * s_h
        at = at + places.to(tl.int64)[:, None] * s_r + others[None, :] * s_k
        if MASK == 1:
            opened = tl.load(at, mask=inside, other=0) != 0
            scores = tl.where(opened, scores, LOWEST)
        if MASK == 2:
            scores += tl.maximum(tl.load(at, mask=inside, other=0.0).to(tl.float32), LOWEST)
        if MASK == 3:
            opened = inside & (others[None, :] <= places[:, None] + columns - length)
            scores = tl.where(opened, scores, LOWEST)
        scores = tl.where((others < columns)[None, :], scores, float("-inf"))
    return scores, opened


@triton.jit
def _more(scores, highest, total):
    """Maximum and sum of exponentials of rows, with one more tile."""
    above = tl.maximum(highest, tl.max(scores, 1))
    total = total * tl.exp(highest - above) + tl.sum(tl.exp(scores - above[:, None]), 1)
    return above, total


@triton.jit
def _map(scores, highest, total, SCORES: tl.constexpr):
    """A tile of the map, from its scores and what normalises its rows."""
    if not SCORES:
        scores = tl.exp(scores - highest[:, None]) / total[:, None]
    return scores


@triton.jit
def _slope(student, whole, teacher, centre, epsilon, MEASURE: tl.constexpr):
    """The slope of a tile of the student's scores. `whole` are its probabilities, with those that do not count."""
    if MEASURE == 0:
        return 2 * (student - teacher)
    if MEASURE == 1:
        return 2 * (student * (student - teacher) - whole * centre[:, None])
    return whole * centre[:, None] - tl.where(student > epsilon, teacher, 0.0)


@triton.jit
def _pulled(slope, others, PRECISION: tl.constexpr):
    """A tile of slopes times queries or keys; for float16, which they are too small for, as parts of their largest."""
    if others.dtype != tl.float16:
        return tl.dot(slope.to(others.dtype), others, input_precision=PRECISION)
    largest = tl.maximum(tl.max(tl.abs(slope), 1), 1e-30)[:, None]
    return tl.dot((slope / largest).to(tl.float16), others, input_precision=PRECISION) * largest


@triton.jit
def _rows_kernel(
    q_s, k_s, scale_s, mask_s, b_s, h_s, r_s, c_s,
    q_t, k_t, scale_t, mask_t, b_t, h_t, r_t, c_t,
    weights, values, normalisers, to_query,
    heads, length, columns, epsilon, counted, counted_b, counted_k,
    GRADIENT: tl.constexpr, MEASURE: tl.constexpr,
    SCORES_S: tl.constexpr, SCORES_T: tl.constexpr, MASK_S: tl.constexpr, MASK_T: tl.constexpr,
    LOWEST_S: tl.constexpr, LOWEST_T: tl.constexpr, GROUP_S: tl.constexpr, GROUP_T: tl.constexpr,
    WIDTH_S: tl.constexpr, WIDTH_T: tl.constexpr, SPACE_S: tl.constexpr, SPACE_T: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    sample, head = which // heads, which % heads
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    weight = tl.load(weights + sample * length + places, mask=places < length, other=0.0)
    kept = weight != 0
    ours = _queries(q_s, which, places, kept, length, WIDTH_S, SPACE_S)
    theirs = _queries(q_t, which, places, kept, length, WIDTH_T, SPACE_T)
    high_s = tl.full([ROWS], float("-inf"), tl.float32)
    high_t = tl.full([ROWS], float("-inf"), tl.float32)
    sum_s = tl.zeros([ROWS], tl.float32)
    sum_t = tl.zeros([ROWS], tl.float32)
    attends = tl.zeros([ROWS], tl.int32)
    if MEASURE > 0 or not SCORES_T:
        for start in range(0, columns, KEYS):
            others = start + tl.arange(0, KEYS)
            k = _keys(k_s, which, others, columns, WIDTH_S, SPACE_S, GROUP_S)
            scores, opened = _scores(ours, k, scale_s, mask_s, b_s, h_s, r_s, c_s, sample, head, places, others,
                                     length, columns, SCORES_S, MASK_S, LOWEST_S, PRECISION)  # fmt: skip
            high_s, sum_s = _more(scores, high_s, sum_s)
            attends = tl.maximum(attends, tl.max(opened.to(tl.int32), 1))
            k = _keys(k_t, which, others, columns, WIDTH_T, SPACE_T, GROUP_T)
            scores, opened = _scores(theirs, k, scale_t, mask_t, b_t, h_t, r_t, c_t, sample, head, places, others,
                                     length, columns, SCORES_T, MASK_T, LOWEST_T, PRECISION)  # fmt: skip
            high_t, sum_t = _more(scores, high_t, sum_t)
    value = tl.zeros([ROWS], tl.float32)
    centre = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, KEYS):
        others = start + tl.arange(0, KEYS)
        key_counts = tl.load(counted + sample * counted_b + others * counted_k, mask=others < columns, other=0) != 0
        counts = kept[:, None] & key_counts[None, :]
        k = _keys(k_s, which, others, columns, WIDTH_S, SPACE_S, GROUP_S)
        scores, opened = _scores(ours, k, scale_s, mask_s, b_s, h_s, r_s, c_s, sample, head, places, others,
                                 length, columns, SCORES_S, MASK_S, LOWEST_S, PRECISION)  # fmt: skip
        student = tl.where(counts, _map(scores, high_s, sum_s, SCORES_S), 0.0)
        k = _keys(k_t, which, others, columns, WIDTH_T, SPACE_T, GROUP_T)
        scores, opened = _scores(theirs, k, scale_t, mask_t, b_t, h_t, r_t, c_t, sample, head, places, others,
                                 length, columns, SCORES_T, MASK_T, LOWEST_T, PRECISION)  # fmt: skip
        teacher = tl.where(counts, _map(scores, high_t, sum_t, SCORES_T), 0.0)
        if MEASURE < 2:
            value += tl.sum((student - teacher) * (student - teacher), 1)
            centre += tl.sum(student * (student - teacher), 1)
        else:
            ratio = -tl.log(tl.maximum(student, epsilon))
            if MEASURE == 2:
                ratio += tl.log(tl.maximum(teacher, epsilon))
            value += tl.sum(teacher * ratio, 1)
            centre += tl.sum(tl.where(student > epsilon, teacher, 0.0), 1)
    if SCORES_S or MASK_S == 0 or MASK_S == 2:
        pull = weight * scale_s
    else:
        pull = weight * scale_s * attends
    at = which.to(tl.int64) * length + places
    tl.store(values + at, value * weight, mask=places < length)
    size = tl.num_programs(1).to(tl.int64) * length
    tl.store(normalisers + at, high_s, mask=places < length)
    tl.store(normalisers + size + at, sum_s, mask=places < length)
    tl.store(normalisers + 2 * size + at, high_t, mask=places < length)
    tl.store(normalisers + 3 * size + at, sum_t, mask=places < length)
    tl.store(normalisers + 4 * size + at, centre, mask=places < length)
    tl.store(normalisers + 5 * size + at, pull, mask=places < length)
    if GRADIENT:
        gradient = tl.zeros([ROWS, SPACE_S], tl.float32)
        for start in range(0, columns, KEYS):
            others = start + tl.arange(0, KEYS)
            key_counts = (
                tl.load(counted + sample * counted_b + others * counted_k, mask=others < columns, other=0) != 0
            )
            counts = kept[:, None] & key_counts[None, :]
            k = _keys(k_t, which, others, columns, WIDTH_T, SPACE_T, GROUP_T)
            scores, opened = _scores(theirs, k, scale_t, mask_t, b_t, h_t, r_t, c_t, sample, head, places, others,
                                     length, columns, SCORES_T, MASK_T, LOWEST_T, PRECISION)  # fmt: skip
            teacher = tl.where(counts, _map(scores, high_t, sum_t, SCORES_T), 0.0)
            k = _keys(k_s, which, others, columns, WIDTH_S, SPACE_S, GROUP_S)
            scores, opened = _scores(ours, k, scale_s, mask_s, b_s, h_s, r_s, c_s, sample, head, places, others,
                                     length, columns, SCORES_S, MASK_S, LOWEST_S, PRECISION)  # fmt: skip
            whole = _map(scores, high_s, sum_s, SCORES_S)
            slope = _slope(tl.where(counts, whole, 0.0), whole, teacher, centre, epsilon, MEASURE)
            gradient += _pulled(slope, k, PRECISION)
        wide = tl.arange(0, SPACE_S)
        inside = (places < length)[:, None] & (wide < WIDTH_S)[None, :]
        tl.store(to_query + at[:, None] * WIDTH_S + wide[None, :], gradient * pull[:, None], mask=inside)


@triton.jit
def _keys_kernel(
    q_s, k_s, scale_s, mask_s, b_s, h_s, r_s, c_s,
    q_t, k_t, scale_t, mask_t, b_t, h_t, r_t, c_t,
    weights, normalisers, to_key,
    heads, length, columns, epsilon, counted, counted_b, counted_k,
    MEASURE: tl.constexpr,
    SCORES_S: tl.constexpr, SCORES_T: tl.constexpr, MASK_S: tl.constexpr, MASK_T: tl.constexpr,
    LOWEST_S: tl.constexpr, LOWEST_T: tl.constexpr, GROUP_S: tl.constexpr, GROUP_T: tl.constexpr,
    WIDTH_S: tl.constexpr, WIDTH_T: tl.constexpr, SPACE_S: tl.constexpr, SPACE_T: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    sample, head = which // heads, which % heads
    others = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    key_counts = tl.load(counted + sample * counted_b + others * counted_k, mask=others < columns, other=0) != 0
    mine = _keys(k_s, which, others, columns, WIDTH_S, SPACE_S, GROUP_S)
    other = _keys(k_t, which, others, columns, WIDTH_T, SPACE_T, GROUP_T)
    gradient = tl.zeros([KEYS, SPACE_S], tl.float32)
    size = tl.num_programs(1).to(tl.int64) * length
    for start in range(0, length, ROWS):
        places = start + tl.arange(0, ROWS)
        there = places < length
        weight = tl.load(weights + sample * length + places, mask=there, other=0.0)
        kept = weight != 0
        at = which.to(tl.int64) * length + places
        high_s = tl.load(normalisers + at, mask=there, other=0.0)
        sum_s = tl.load(normalisers + size + at, mask=there, other=1.0)
        high_t = tl.load(normalisers + 2 * size + at, mask=there, other=0.0)
        sum_t = tl.load(normalisers + 3 * size + at, mask=there, other=1.0)
        centre = tl.load(normalisers + 4 * size + at, mask=there, other=0.0)
        pull = tl.load(normalisers + 5 * size + at, mask=there, other=0.0)
        counts = kept[:, None] & key_counts[None, :]
        theirs = _queries(q_t, which, places, kept, length, WIDTH_T, SPACE_T)
        scores, opened = _scores(theirs, other, scale_t, mask_t, b_t, h_t, r_t, c_t, sample, head, places, others,
                                 length, columns, SCORES_T, MASK_T, LOWEST_T, PRECISION)  # fmt: skip
        teacher = tl.where(counts, _map(scores, high_t, sum_t, SCORES_T), 0.0)
        ours = _queries(q_s, which, places, kept, length, WIDTH_S, SPACE_S)
        scores, opened = _scores(ours, mine, scale_s, mask_s, b_s, h_s, r_s, c_s, sample, head, places, others,
                                 length, columns, SCORES_S, MASK_S, LOWEST_S, PRECISION)  # fmt: skip
        whole = _map(scores, high_s, sum_s, SCORES_S)
        slope = _slope(tl.where(counts, whole, 0.0), whole, teacher, centre, epsilon, MEASURE)
        slope = tl.where(kept[:, None], slope * pull[:, None], 0.0)
        gradient += _pulled(tl.trans(slope), ours, PRECISION)
    wide = tl.arange(0, SPACE_S)
    inside = (others < columns)[:, None] & (wide < WIDTH_S)[None, :]
    at = (which.to(tl.int64) * columns + others)[:, None] * WIDTH_S + wide[None, :]
    tl.store(to_key + at, gradient, mask=inside)

"""Losses from queries and keys are what the same losses are on whole attention maps."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tolerance import rounding

from knowledge_distillation.features.deferred import AttentionMap
from knowledge_distillation.losses.attention import attention_cross_entropy, attention_kl, attention_mse
from knowledge_distillation.objective.fused import attention as module
from knowledge_distillation.objective.fused.forms import FUSED

BATCH, HEADS, LENGTH, WIDTH = 3, 4, 7, 6


def closed_to_padding(rows, keys):
    return keys[:, None, None].expand(-1, 1, rows.shape[1], -1)


def additive(rows, keys, lowest=-3.4e38):
    return torch.zeros(len(rows), 1, rows.shape[1], keys.shape[1]).masked_fill(~keys[:, None, None], lowest)


CASES = {
    "plain": {},
    "masked": {"mask": closed_to_padding},
    "additive": {"mask": additive},
    "minus-infinity": {"mask": partial(additive, lowest=-torch.inf)},
    "causal": {"causal": True},
    "causal-cross": {"causal": True, "keys": 9},
    "more-rows-than-keys": {"causal": True, "keys": 4},
    "cross": {"keys": 5, "mask": closed_to_padding},
    "grouped": {"key_heads": 2, "mask": closed_to_padding},
    "one-key-head": {"key_heads": 1, "causal": True},
    "scaled": {"scaling": 0.7},
    "biased": {"bias": (1, HEADS, LENGTH, LENGTH), "mask": closed_to_padding},
    "biased-by-sample": {"bias": (BATCH, 1, LENGTH, LENGTH)},
}
LOSSES = {
    "mse": (attention_mse, {}, False),
    "mse-of-scores": (attention_mse, {}, True),
    "kl": (attention_kl, {}, False),
    "kl-high-floor": (attention_kl, {"epsilon": 0.15}, False),
    "cross-entropy": (attention_cross_entropy, {}, False),
}


INTERPRETED = [
    ("mse", "masked"),
    ("mse", "more-rows-than-keys"),
    ("mse-of-scores", "grouped"),
    ("kl", "minus-infinity"),
    ("kl", "biased"),
    ("kl-high-floor", "causal-cross"),
    ("cross-entropy", "additive"),
]


def masks(keys=LENGTH):
    rows = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    rows[0, 4:] = rows[1, :2] = False
    kept = torch.ones(BATCH, keys, dtype=torch.bool)
    kept[0, 3:] = kept[1, :1] = False
    return rows, kept


def maps(scores=False, keys=LENGTH, key_heads=HEADS, mask=None, causal=False, scaling=None, bias=None, width=WIDTH):
    rows, kept = masks(keys)
    return AttentionMap(
        torch.randn(BATCH, HEADS, LENGTH, width).requires_grad_(),
        torch.randn(BATCH, key_heads, keys, width).requires_grad_(),
        mask(rows, kept) if mask else None,
        causal,
        scaling,
        torch.randn(bias).requires_grad_() if bias else None,
        scores,
    )


def by_hand(loss, student, teacher, weights, keys, **args):
    """The sum with the whole maps, on which padding is 0."""
    counts = (weights != 0)[:, None, :, None] & (True if keys is None else keys[:, None, None])
    student, teacher = (torch.where(counts, side.float(), 0.0) for side in (student.tensor(), teacher))
    values = loss(student, teacher, **args)
    if values.dim() == 4:
        values = torch.where(counts, values, 0.0).sum(-1)
    return (torch.where(weights != 0, 1.0, 0.0)[:, None] * values * weights[:, None]).sum()


def gradients_of(value, student):
    return torch.autograd.grad(value, [p for p in student.parts.values() if p.requires_grad])


def same(found, expected, tolerance=rounding()):  # noqa: B008  (a number)
    scale = float(expected.abs().max().clamp(min=1e-30))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("at_once", [1 << 18, 60, 5], ids=["at-once", "by-head", "by-row"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_whole_maps(monkeypatch, loss, case, at_once):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    function, args, scores = LOSSES[loss]
    student, teacher = maps(scores, **CASES[case]), maps(scores, **CASES[case], width=2 * WIDTH)
    rows, keys = masks(student.shape[-1])
    weights = rows * torch.rand(BATCH, LENGTH)
    expected = by_hand(function, student, teacher.tensor().detach(), weights, keys, **args)
    by_autograd = gradients_of(expected, student)
    for target in (teacher.detach(), teacher.tensor().detach()):
        found = FUSED[function](student, target, weights, keys, **args)
        same(found.detach(), expected.detach())
        for ours, plain in zip(gradients_of(found, student), by_autograd, strict=True):
            same(ours, plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_stands_in_padding_reaches_nothing(loss):
    function, args, scores = LOSSES[loss]
    student, teacher = maps(scores, mask=closed_to_padding), maps(scores, mask=closed_to_padding)
    rows, keys = masks()
    weights = rows * torch.rand(BATCH, LENGTH)
    clean = FUSED[function](student, teacher.tensor().detach(), weights, keys, **args)
    expected = gradients_of(clean, student)
    for garbage in (7.0, torch.inf, torch.nan):
        spoilt = [side.detach() for side in (student, teacher)]
        for side in spoilt:
            side.query[:] = torch.where(rows[:, None, :, None], side.query, garbage)
            side.key[:] = torch.where(keys[:, None, :, None], side.key, garbage)
        learner = spoilt[0]
        learner.query.requires_grad_(), learner.key.requires_grad_()
        counts = rows[:, None, :, None] & keys[:, None, None]
        for target in (spoilt[1], torch.where(counts, teacher.tensor(), garbage).detach()):
            value = FUSED[function](learner, target, weights, keys, **args)
            same(value.detach(), clean.detach())
            for found, gradient in zip(gradients_of(value, learner), expected, strict=True):
                same(found, gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["mse", "mse-of-scores", "kl", "cross-entropy"])
def test_half_precision_is_that_of_its_inputs_alone(loss, dtype):
    """The teacher's map as a cache holds it; and queries and keys as autocast gives them, with small weights."""
    function, args, scores = LOSSES[loss]
    student, teacher = maps(scores), maps(scores).detach()
    weights = torch.full((BATCH, LENGTH), 1e-7)
    stored = teacher.tensor().to(dtype)
    value = FUSED[function](student, stored, weights, None, **args)
    same(value.detach(), FUSED[function](student, stored.float(), weights, None, **args).detach())
    half = AttentionMap(student.query.detach().to(dtype), student.key.detach().to(dtype), scores=scores)
    wide = AttentionMap(half.query.float().requires_grad_(), half.key.float().requires_grad_(), scores=scores)
    half.query.requires_grad_(), half.key.requires_grad_()
    found, expected = (FUSED[function](side, teacher, weights, None, **args) for side in (half, wide))
    assert found.dtype == torch.float32
    same(found.detach(), expected.detach(), 2e-2)
    for ours, plain in zip(gradients_of(found * 1e7, half), gradients_of(expected * 1e7, wide), strict=True):
        assert ours.dtype == dtype
        same(ours.float(), plain, 3e-2)


def long_in_float16(length=1024):
    """The gradients of squared probabilities of long maps, of float16 and of the same numbers in float32."""
    drawn = [torch.randn(1, 1, length, 16).half() / 2 for _ in range(4)]
    teacher = AttentionMap(*(side.float() for side in drawn[2:]))
    gradients = []
    for dtype in (torch.float16, torch.float32):
        student = AttentionMap(*(side.to(dtype).requires_grad_() for side in drawn[:2]))
        value = FUSED[attention_mse](student, teacher, torch.full((1, length), 1 / length), None)
        gradients.append([one.float() for one in gradients_of(value * 2.0**20, student)])
    return zip(*gradients, strict=True)


def test_slopes_of_long_maps_do_not_vanish_in_float16():
    for found, expected in long_in_float16():
        assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_a_gradient_goes_where_it_is_wanted():
    student, teacher, rows = maps(), maps().detach(), torch.ones(BATCH, LENGTH)
    frozen = AttentionMap(student.query.detach(), student.key)
    (found,) = torch.autograd.grad(FUSED[attention_mse](frozen, teacher, rows, None), [student.key])
    both = torch.autograd.grad(3 * FUSED[attention_mse](student, teacher, rows, None), [student.query, student.key])
    same(3 * found, both[1])
    assert not FUSED[attention_mse](student.detach(), teacher, rows, None).requires_grad


def test_an_empty_selection_is_zero_and_attached():
    student = maps()
    value = FUSED[attention_kl](student, maps().detach(), torch.zeros(BATCH, LENGTH), None)
    value.backward()
    assert value.item() == 0 and student.query.grad.eq(0).all()


def test_kernels_are_used_where_they_fit_and_agree():
    """Through Triton's interpreter, in a process of its own: the variable is read when Triton is imported."""
    pytest.importorskip("triton")
    program = """
import sys, torch
sys.path[:0] = [{tests!r}]
import test_fused_attention as here
from knowledge_distillation.kernels import attention_triton
from knowledge_distillation.objective.fused import attention as fused_attention
tried = [fused_attention._are_right(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float16)]
launched, run = [], attention_triton.run
attention_triton.run = lambda *given: (launched.append(given[4]), run(*given))[1]
plain = fused_attention._kernels
for name, case in here.INTERPRETED:
    function, args, scores = here.LOSSES[name]
    given, before = here.CASES[case], len(launched)
    student, teacher = here.maps(scores, **given), here.maps(scores, **given, width=9).detach()
    rows, keys = here.masks(student.shape[-1])
    weights = rows * torch.rand(rows.shape)
    found = here.FUSED[function](student, teacher, weights, keys, **args)
    assert len(launched) == before + (case != "biased"), (name, case)
    fused_attention._kernels = lambda *sides: None
    expected = here.FUSED[function](student, teacher, weights, keys, **args)
    fused_attention._kernels = plain
    here.same(found.detach(), expected.detach())
    for ours, theirs in zip(here.gradients_of(found, student), here.gradients_of(expected, student), strict=True):
        here.same(ours, theirs)
for dtype, tolerance in ((torch.float32, here.rounding()), (torch.float16, 1e-2)):  # more than a block of rows, keys
    query, key = (torch.randn(1, heads, 70, 8).to(dtype).requires_grad_() for heads in (2, 1))
    student = here.AttentionMap(query, key, causal=True)
    teacher = here.AttentionMap(torch.randn(1, 2, 70, 4), torch.randn(1, 2, 70, 4), causal=True)
    found = here.FUSED[here.attention_kl](student, teacher, torch.ones(1, 70), None)
    expected = here.by_hand(here.attention_kl, student, teacher.tensor(), torch.ones(1, 70), None)
    here.same(found.detach(), expected.detach(), tolerance)
    for ours, theirs in zip(here.gradients_of(found, student), here.gradients_of(expected, student), strict=True):
        here.same(ours.float(), theirs.float(), 3 * tolerance)
for found, expected in here.long_in_float16(512):
    assert (found - expected).norm() <= 1e-3 * expected.norm(), (found - expected).norm() / expected.norm()
attention_triton.run = lambda *given: [part if part is None else part + 1 for part in run(*given)]
fused_attention._are_right.cache_clear()
tried.append(fused_attention._are_right(torch.device("cpu"), torch.float32))  # kernels that are wrong are not used
print(len(launched), sorted(set(launched)), tried)
"""
    path = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-c", program.format(tests=str(path.parent))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measures = ["cross_entropy", "divergence", "squares", "squares_of_probabilities"]
    assert done.stdout.strip() == f"{len(INTERPRETED) + 3} {measures} [True, True, False]"

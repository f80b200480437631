"""Losses from queries and keys are what the same losses are on whole attention maps."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from knowledge_distillation.deferred import AttentionMap
from knowledge_distillation.losses import FUSED
from knowledge_distillation.losses import fused_attention as module
from knowledge_distillation.losses.attention import attention_cross_entropy, attention_kl, attention_mse

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


def same(found, expected, tolerance=1e-6):
    scale = float(expected.abs().max().clamp(min=1e-30))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("at_once", [1 << 18, 60, 5], ids=["at-once", "by-head", "by-row"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_whole_maps(monkeypatch, loss, case, at_once):
    monkeypatch.setitem(module.AT_ONCE, "cpu", at_once)
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

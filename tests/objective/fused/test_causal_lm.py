"""Losses computed from hidden states and a head are those of the logits: values, gradients, padding, whole runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.deferred import HeadLogits, TopKLogits
from knowledge_distillation.losses.divergences import reverse_kl
from knowledge_distillation.losses.labels import hard_cross_entropy
from knowledge_distillation.losses.logits import kl_divergence, soft_cross_entropy
from knowledge_distillation.objective.fused.vocabulary import FUSED_WITH_HEAD, HeadTerm, head_loss

SOFT = [loss for loss in FUSED_WITH_HEAD if loss is not hard_cross_entropy]


def states(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


def student(batch: int = 2, length: int = 5, width: int = 4, classes: int = 11, bias: bool = True, **options):
    made = [states(batch, length, width, **options), states(classes, width, **options)]
    made += [states(classes, **options)] if bias else []
    return [one.requires_grad_() for one in made]


def dense(leaves: list[torch.Tensor], parts: list[HeadTerm]) -> torch.Tensor:
    logits = torch.nn.functional.linear(*leaves)
    value = logits.new_zeros(())
    for part in parts:
        reference = part.reference if isinstance(part.reference, torch.Tensor) else part.reference.tensor()
        value = value + part.factor * (part.rows * part.loss(logits, reference, **part.args)).sum()
    return value


def assert_same(leaves: list[torch.Tensor], parts: list[HeadTerm], chunk: int | None, tolerance: float) -> None:
    results = []
    for value in (head_loss(HeadLogits(*leaves), parts, chunk)[0], dense(leaves, parts)):
        results.append([value.detach(), *torch.autograd.grad(value * 0.7, leaves)])
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max().clamp(min=1e-9)
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", SOFT, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("form", ["head", "logits", "top-k"])
def test_values_and_gradients_are_those_of_the_dense_logits(loss, form):
    torch.manual_seed(0)
    teacher = HeadLogits(states(2, 5, 6), states(11, 6) / 2)
    reference = {"head": teacher, "logits": teacher.tensor(), "top-k": TopKLogits.of(teacher.tensor(), 3)}[form]
    assert_same(student(), [HeadTerm(loss, reference, torch.rand(2, 5))], chunk=3, tolerance=1e-12)


@pytest.mark.parametrize("loss", [kl_divergence, soft_cross_entropy, hard_cross_entropy], ids=lambda f: f.__name__)
def test_float32_agrees_to_a_millionth(loss):
    """With the exact ones; sums of many rounded terms, which gradients are, to some millionths."""
    torch.manual_seed(0)
    single = {"dtype": torch.float32}
    leaves = [one.detach() for one in student(4, 16, 8, 300, **single)]
    logits = HeadLogits(states(4, 16, 8, **single), states(300, 8, **single) / 3).tensor()
    reference = torch.randint(300, (4, 16)) if loss is hard_cross_entropy else logits
    results = []
    for compute, dtype in ((head_loss, torch.float32), (None, torch.float64)):
        own = [one.to(dtype).requires_grad_() for one in leaves]
        parts = [
            HeadTerm(loss, reference.to(dtype) if reference.is_floating_point() else reference, torch.ones(4, 16))
        ]
        value = dense(own, parts) if compute is None else compute(HeadLogits(*own), parts, 10)[0]
        results.append([value.detach(), *torch.autograd.grad(value, own)])
    for found, expected, most in zip(*results, (1e-6, 3e-6, 3e-6, 3e-6), strict=True):
        assert (found - expected).abs().max() <= most * expected.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    classes=st.integers(2, 17),
    chunk=st.none() | st.integers(1, 30),
    loss=st.sampled_from([kl_divergence, soft_cross_entropy, reverse_kl]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    scale=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_mask_and_arguments(shape, classes, chunk, loss, temperature, scale, smoothing, bias, seed):
    torch.manual_seed(seed)
    batch, length, width = shape
    rows = torch.rand(batch, length) * (torch.rand(batch, length) > 0.4)
    labels = torch.where(torch.rand(batch, length) > 0.3, torch.randint(classes, (batch, length)), -100)
    args = {"temperature": temperature, "scale_by_temperature": scale}
    soft = HeadTerm(loss, HeadLogits(states(batch, length, 3), states(classes, 3)), rows, args)
    hard = HeadTerm(hard_cross_entropy, labels, torch.ones(batch, length), {"label_smoothing": smoothing}, 0.3)
    leaves = student(batch, length, width, classes, bias)
    for parts in ([soft], [hard], [soft, hard], [hard, soft, soft]):
        assert_same(leaves, parts, chunk, tolerance=1e-10)


@pytest.mark.parametrize("form", ["head", "logits", "top-k"])
def test_what_stands_where_the_weight_is_0_reaches_nothing(form):
    torch.manual_seed(0)
    rows = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    hidden, weight = states(2, 3, 4), states(9, 4)
    teacher, head = states(2, 3, 5), states(9, 5)
    results = []
    for filling in (0.0, float("inf"), float("nan")):
        leaves = [hidden.where(rows[..., None] != 0, filling).requires_grad_(), weight.clone().requires_grad_()]
        bad = teacher.where(rows[..., None] != 0, filling)
        reference = HeadLogits(bad, head)
        if form == "logits":
            reference = reference.tensor()
        elif form == "top-k":
            reference = TopKLogits.of(HeadLogits(teacher, head).tensor(), 2)
            reference.values[rows == 0] = reference.rest[rows == 0, None] = filling
        value = head_loss(HeadLogits(*leaves), [HeadTerm(kl_divergence, reference, rows)], chunk=2)[0]
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for one, other, third in zip(*results, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)
    assert results[0][1][rows == 0].abs().max() == 0


def test_the_sum_of_each_part_comes_without_its_factor():
    torch.manual_seed(0)
    leaves, rows, labels = student(), torch.rand(2, 5), torch.randint(11, (2, 5))
    soft = HeadTerm(kl_divergence, states(2, 5, 11), rows, factor=torch.tensor(0.2))
    hard = HeadTerm(hard_cross_entropy, labels, rows, factor=3.0)
    value, sums = head_loss(HeadLogits(*leaves), [soft, hard])
    expected = torch.stack([dense(leaves, [HeadTerm(p.loss, p.reference, rows)]) for p in (soft, hard)]).detach()
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(value.detach(), 0.2 * expected[0] + 3 * expected[1])
    assert value.requires_grad and not sums.requires_grad


def test_no_item_that_counts_gives_0_with_a_gradient_of_0():
    leaves = student()
    value, _ = head_loss(
        HeadLogits(*leaves), [HeadTerm(hard_cross_entropy, torch.full((2, 5), -100), torch.ones(2, 5))]
    )
    assert value == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(value, leaves))


def test_a_frozen_head_gets_no_gradient_and_a_kept_graph_gives_it_twice():
    hidden, weight = states(1, 4, 3).requires_grad_(), states(7, 3)
    value, _ = head_loss(HeadLogits(hidden, weight), [HeadTerm(kl_divergence, states(1, 4, 7), torch.ones(1, 4))])
    (first,) = torch.autograd.grad(value, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(2 * value, hidden)
    torch.testing.assert_close(second, 2 * first)
    assert not weight.requires_grad


def test_bfloat16_heads_are_near_those_of_float32():
    torch.manual_seed(0)
    leaves = [states(2, 64, 32, dtype=torch.float32), states(500, 32, dtype=torch.float32) / 6]
    leaves = [one.requires_grad_() for one in leaves]
    teacher = HeadLogits(states(2, 64, 48, dtype=torch.float32), states(500, 48, dtype=torch.float32) / 7)
    results = []
    for precision in (torch.bfloat16, None):
        logits = HeadLogits(*leaves, precision=precision)
        value = head_loss(
            logits, [HeadTerm(kl_divergence, teacher, torch.ones(2, 64), {"temperature": 2.0})], chunk=7
        )[0]
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("loss", "most", "leaf"),
    [
        (kl_divergence, 1.0, torch.float32),
        (kl_divergence, 1.0, torch.float16),
        (hard_cross_entropy, 1.0, torch.float16),
        (hard_cross_entropy, 1000.0, torch.float32),
    ],
)
def test_a_mean_in_float16_neither_vanishes_nor_overflows(loss, most, leaf):
    """Its weights are below what the type can hold, and sums without them above; the scale of a loss comes later."""
    torch.manual_seed(0)
    hidden, weight = most * states(1, 512, 16).abs().half(), (states(4096, 16) / 16 / most).half()
    teacher = HeadLogits(hidden.float() + most * states(1, 512, 16).float() / 2, weight.float())
    reference = teacher if loss is kl_divergence else torch.full((1, 512), 7)
    for factor, scale in ((2.0**-20, 2.0**17), (1.0, 1.0 / 8)):
        results = []
        for dtype in (torch.float16, torch.float32):
            leaves = [one.to(leaf if dtype == torch.float16 else dtype).requires_grad_() for one in (hidden, weight)]
            part = HeadTerm(loss, reference, torch.ones(1, 512), factor=factor)
            value, _ = head_loss(HeadLogits(*leaves, precision=dtype), [part], 512)
            results.append([one.float() for one in torch.autograd.grad(value * scale, leaves)])
        for found, expected in zip(*results, strict=True):
            assert (found - expected).norm() <= 2e-3 * expected.norm()


def test_weights_of_half_precision_get_sums_of_float32():
    """Many chunks: a sum in bfloat16 would stand still after some hundred of them."""
    torch.manual_seed(0)
    exact = [torch.ones(1, 1024, 1), torch.zeros(3, 1)]
    leaves = [one.bfloat16().requires_grad_() for one in exact]
    value, _ = head_loss(
        HeadLogits(*leaves), [HeadTerm(hard_cross_entropy, torch.zeros(1, 1024).long(), torch.ones(1, 1024))], 1
    )
    (gradient,) = torch.autograd.grad(value, leaves[1])
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient[0, 0].float(), torch.tensor(-1024 * 2 / 3), rtol=1e-2, atol=0)


def test_top_k_keeps_the_mass_of_the_rest():
    torch.manual_seed(0)
    logits = 3 * states(2, 3, 20)
    kept = TopKLogits.of(logits, 4)
    p, q = logits.softmax(-1), kept.tensor().softmax(-1)
    torch.testing.assert_close(q.gather(-1, kept.indices), p.gather(-1, kept.indices))
    others = torch.ones_like(q).scatter(-1, kept.indices, 0) == 1
    torch.testing.assert_close(q[others].view(2, 3, 16), (p * others).sum(-1, keepdim=True).expand(2, 3, 16) / 16)
    assert kept.shape == logits.shape and torch.equal(kept.detach().tensor(), kept.tensor())


@pytest.mark.parametrize("k", [0, 20, 21])
def test_top_k_of_all_classes_is_refused(k):
    with pytest.raises(ConfigError, match=f"k lies between 1 and 19, the number of classes less one; found {k}"):
        TopKLogits.of(states(1, 1, 20), k)

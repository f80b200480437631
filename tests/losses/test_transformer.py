"""What the losses on transformers have of their own: shapes that differ, rows that are alike, plans and weights."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from cases import probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses.attention import attention_cross_entropy, attention_kl, qkv_relation, value_relation
from knowledge_distillation.losses.hidden import cka, cos, gram, hidden_cosine, mobilebert_feature, pkd
from knowledge_distillation.losses.transport import BertEMD, transport_plan
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

B, L = 3, 5
MASK = torch.arange(L) < torch.tensor([5, 2, 4])[:, None]
ALL = torch.ones(B, L, dtype=torch.bool)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value: torch.Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def gradient(loss, student: torch.Tensor) -> torch.Tensor:
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student).sum(), student)[0]


# --- hidden states -------------------------------------------------------------------------------------------------


def test_cos_is_half_of_hidden_cosine_and_pkd_twice():
    s, t = normal(B, 7), normal(B, 7, seed=1)
    torch.testing.assert_close(hidden_cosine(s, t), 2 * cos(s, t))
    torch.testing.assert_close(pkd(s, t), 2 * hidden_cosine(s, t))
    torch.testing.assert_close(pkd(s, t, mean_all=True) * 7, pkd(s, t))
    torch.testing.assert_close(hidden_cosine(s, t), 1 - F.cosine_similarity(s, t))


@pytest.mark.parametrize(("loss", "apart"), [(hidden_cosine, 1.0), (cos, 0.5), (pkd, 1.0)])
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_a_vector_of_zeros_is_finite_with_gradient_0(loss, apart, zero):
    s, t = (torch.zeros(2, 4) if zero in (side, "both") else torch.ones(2, 4) for side in ("student", "teacher"))
    expected = 0.0 if (loss, zero) == (pkd, "both") else apart
    torch.testing.assert_close(loss(s, t), torch.full((2,), expected))
    slope = gradient(lambda x: loss(x, t), s)
    assert torch.isfinite(slope).all()
    assert zero == "teacher" or not slope.any()


@pytest.mark.parametrize("left", [0, 1, 3])
def test_pkd_takes_the_first_token_that_counts(left):
    s, t = normal(B, L, 4), normal(B, L, 4, seed=1)
    mask = ALL.clone()
    mask[:, :left] = False
    torch.testing.assert_close(pkd(s, t, mask), pkd(s[:, left], t[:, left]))
    torch.testing.assert_close(pkd(s, t), pkd(s[:, 0], t[:, 0]))


def test_mobilebert_feature_can_normalise_each_token():
    s, t = normal(B, L, 6), normal(B, L, 6, seed=1)
    once = mobilebert_feature(s, t, layer_norm=True, epsilon=1e-6)
    torch.testing.assert_close(
        mobilebert_feature(3 * s + 1, t, layer_norm=True, epsilon=1e-6), once, rtol=1e-4, atol=0
    )
    with pytest.raises(ConfigError, match="mobilebert_feature: epsilon is above 0; found 0"):
        mobilebert_feature(s, t, epsilon=0)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("widths", [(2, 3), (7, 4), (40, 30)], ids=["covariances", "one side wide", "inner products"])
def test_cka_of_other_widths_is_its_twin_and_has_the_right_slope(debiased, widths):
    s, t = normal(B, L, widths[0]), normal(B, L, widths[1], seed=1)
    expected = reference.cka(s.numpy(), t.numpy(), MASK.numpy(), debiased=debiased)
    assert near(cka(s, t, MASK, debiased), expected)
    assert torch.autograd.gradcheck(lambda x: cka(x, t, MASK, debiased), s.requires_grad_())


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_does_not_see_rotation_scale_and_shift(debiased):
    s = normal(20, 6)
    turned = s @ torch.linalg.qr(normal(6, 6, seed=1))[0] * 3 + 100
    assert cka(turned, s, debiased=debiased).item() == pytest.approx(0, abs=1e-10)
    assert cka(turned.float(), s.float(), debiased=debiased).item() == pytest.approx(0, abs=1e-4)


def test_cka_debiased_of_unrelated_features_is_about_1():
    values = [
        [cka(normal(24, 64, seed=n), normal(24, 64, seed=n + 50), None, way).item() for n in range(9)]
        for way in (0, 1)
    ]
    assert np.mean(values[0]) < 0.4 and np.mean(values[1]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cka_of_one_point_has_no_slope(debiased, dtype):
    point, cloud = torch.full((12, 4), 0.1, dtype=dtype), normal(12, 4).to(dtype)
    assert cka(point, cloud, debiased=debiased) == 1 and cka(cloud, point, debiased=debiased) == 0
    for student, teacher in ((point, cloud), (cloud, point), (point, point)):
        assert not gradient(lambda x, t=teacher: cka(x, t, debiased=debiased), student).any()


@pytest.mark.parametrize(("items", "debiased"), [(1, False), (3, True)])
def test_cka_of_too_few_items_is_0(items, debiased):
    s = normal(items, 4).requires_grad_()
    loss = cka(s, normal(items, 4, seed=1), debiased=debiased)
    loss.backward()
    assert loss.item() == 0 and not s.grad.any()


def test_gram_of_other_widths_is_its_twin():
    s, t = (side * MASK[..., None] for side in (normal(B, L, 4), normal(B, L, 6, seed=1)))
    pairs = MASK[:, :, None] & MASK[:, None]
    assert near(gram(s, t)[:, 0][pairs].mean(), reference.gram(s.numpy(), t.numpy(), MASK.numpy()))
    same = normal(B, L, 4, seed=1) * MASK[..., None]
    expected = reference.gram(s.numpy(), same.numpy(), MASK.numpy(), channel=True)
    assert near(gram(s, same, MASK, channel=True).mean(), expected)


# --- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [attention_kl, attention_cross_entropy])
def test_the_floor_does_not_touch_ordinary_probabilities(loss):
    s, t = (probabilities(normal(B, 2, L, L, seed=n), ALL) for n in (0, 1))
    exact = (t * -s.log()).sum(-1) + ((t * t.log()).sum(-1) if loss is attention_kl else 0)
    torch.testing.assert_close(loss(s, t), exact, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_())


@pytest.mark.parametrize("loss", [attention_kl, attention_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_rows_are_finite(loss, dtype):
    one, other = torch.eye(4, dtype=dtype)[None, None], torch.eye(4, dtype=dtype).flip(0)[None, None]
    for student in (one, other, torch.zeros_like(one)):
        assert torch.isfinite(loss(student, one)).all()
        assert torch.isfinite(gradient(lambda x: loss(x, one), student)).all()
    torch.testing.assert_close(loss(one, one), torch.zeros(1, 1, 4, dtype=dtype), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="epsilon is above 0 and far below 1; found 0.0"):
        loss(one, one, epsilon=0.0)


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "whole"])
@pytest.mark.parametrize(
    ("heads", "widths", "relation_heads"),
    [((2, 2), (4, 6), None), ((2, 4), (6, 6), None), ((3, 2), (4, 4), 4), ((4, 6), (3, 4), 12), ((1, 1), (6, 9), 3)],
)
def test_relations_of_other_heads_and_widths_are_their_twins(heads, widths, relation_heads, mask):
    s, t = (normal(B, h, L, w, seed=h) for h, w in zip(heads, widths, strict=True))
    counted = ALL if mask is None else mask
    expected = reference.qkv_relation(s.numpy(), t.numpy(), counted.numpy(), relation_heads=relation_heads)
    assert near(qkv_relation(s, t, mask, relation_heads)[counted].mean(), expected)
    joined = [side.transpose(1, 2).flatten(2) for side in (s, t)]
    if relation_heads:
        torch.testing.assert_close(
            qkv_relation(*joined, mask, relation_heads), qkv_relation(s, t, mask, relation_heads)
        )
    if heads[0] == heads[1]:
        expected = reference.value_relation(s.numpy(), t.numpy(), counted.numpy())
        assert near(value_relation(s, t, mask).transpose(1, 2)[counted].mean(), expected)
    assert torch.autograd.gradcheck(lambda x: qkv_relation(x, t, mask, relation_heads), s.requires_grad_())


def test_relations_of_equal_tokens_are_finite():
    same = torch.ones(B, 2, L, 4)
    assert not value_relation(same, 3 * same, MASK).any()
    assert torch.isfinite(gradient(lambda x: value_relation(x, normal(B, 2, L, 4).float() * 1e3, MASK), same)).all()


@pytest.mark.parametrize(
    ("loss", "shapes", "arguments", "message"),
    [
        (value_relation, ((B, 2, L, 4), (B, 3, L, 4)), {}, "the student has 2 heads, the teacher 3. Use qkv_relation"),
        (value_relation, ((B, 2, L, 4), (B, 2, L + 1, 4)), {}, "3 samples of length 5, the teacher 3 of length 6"),
        (
            qkv_relation,
            ((B, L, 12), (B, L, 18)),
            {"relation_heads": 4},
            "12 and the teacher's 18; found 4. These do: 1, 2, 3, 6",
        ),
        (qkv_relation, ((B, L, 12), (B, L, 18)), {"relation_heads": 0}, "found 0. These do: 1, 2, 3, 6"),
        (cka, ((B, 4), (B + 1, 4)), {}, r"the student's feature is \(3, 4\), the teacher's \(4, 4\)"),
        (gram, ((B, L, 4), (B, L + 1, 4)), {}, "Only the last dimension may differ"),
        (gram, ((B, L, 4), (B, L, 6)), {"channel": True}, "the student has 4, the teacher 6. Choose equal widths"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_says_what_would_do(loss, shapes, arguments, message):
    with pytest.raises(ConfigError, match=message):
        loss(*(normal(*shape) for shape in shapes), **arguments)


# --- many layers with many -----------------------------------------------------------------------------------------


def layers(number: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    return [normal(*shape, seed=seed + n) for n in range(number)]


def numpy(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


@settings(deadline=None, derandomize=True, database=None, max_examples=15)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(2, 4),
    st.sampled_from(["tokens", "attention"]),
    st.lists(st.integers(0, L), min_size=B, max_size=B),
    st.floats(0.05, 2.0),
    st.integers(1, 12),
)
def test_bert_emd_is_its_twin(ours, theirs, width, other, kind, lengths, regularisation, iterations):
    mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    shapes = ((B, L, width), (B, L, other)) if kind == "tokens" else ((B, 2, L, L),) * 2
    s, t = layers(ours, *shapes[0]), layers(theirs, *shapes[1], seed=9)
    if kind == "attention":
        s, t = ([side * mask[:, None, None] for side in layer] for layer in (s, t))
    options = {"regularisation": regularisation, "iterations": iterations}
    loss = BertEMD(s, t, **options).double()
    state = {}
    if kind == "tokens" and width != other:
        state["projection"] = tuple(p.detach().numpy() for p in (loss.projection.weight, loss.projection.bias))
    for _ in range(3):  # the weights of the layers move on
        state["student_weights"], state["teacher_weights"] = (
            w.tolist() for w in (loss.student_weights, loss.teacher_weights)
        )
        expected = reference.bert_emd(numpy(s), numpy(t), mask.numpy(), mask.numpy(), **options, **state)
        assert loss(s, t, mask, mask).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for weights in (loss.student_weights, loss.teacher_weights):
            assert (weights > 0).all() and weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("width", [4, 6], ids=["same width", "projected"])
def test_the_gradient_of_bert_emd_is_that_of_its_costs_under_the_plan(width):
    s, t = [x.requires_grad_() for x in layers(2, B, L, 4)], layers(3, B, L, width, seed=9)
    loss = BertEMD(s, t).double().eval()
    inputs = [*s, *loss.parameters()]
    cost = torch.stack([torch.stack([(loss.projection(a) - b)[MASK].square().mean() for b in t]) for a in s])
    plan = transport_plan(cost.detach(), loss.student_weights, loss.teacher_weights, 0.05, 100)
    ours, naive = torch.autograd.grad(loss(s, t, MASK), inputs), torch.autograd.grad((plan * cost).sum(), inputs)
    for one, other in zip(ours, naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_plan_comes_near_the_best_one():
    scipy = pytest.importorskip("scipy.optimize")
    cost = normal(4, 6).abs() + 0.1
    rows, columns = normal(4, seed=1).softmax(0), normal(6, seed=2).softmax(0)
    sums = [np.kron(np.eye(4), np.ones(6)), np.kron(np.ones(4), np.eye(6))]
    best = scipy.linprog(cost.flatten(), A_eq=np.vstack(sums), b_eq=np.concatenate([rows, columns])).fun
    plan = transport_plan(cost, rows, columns, 0.02, 2000)
    torch.testing.assert_close(plan.sum(0), columns)
    torch.testing.assert_close(plan.sum(1), rows, rtol=1e-3, atol=1e-4)
    assert best * (1 - 1e-3) <= (plan * cost).sum().item() <= best + 0.02 * cost.mean() * np.log(4)


def test_equal_models_are_as_near_to_0_as_the_plan_is_to_the_identity():
    s = layers(4, B, L, 6)
    apart = BertEMD(s, s).double()(s, s, MASK)
    mean = torch.stack([(a - b)[MASK].square().mean() for a in s for b in s]).mean()
    assert 0 <= apart <= 1e-4 * mean
    alike = [s[0] + 0.01 * layer for layer in s]
    value = BertEMD(alike, alike).double()(alike, alike, MASK)
    mean = torch.stack([(a - b)[MASK].square().mean() for a in alike for b in alike]).mean()
    assert 0 <= value <= 0.05 * mean * np.log(4)


def test_layers_that_cost_less_weigh_more_and_only_in_training():
    s, t = layers(2, B, L, 4), layers(3, B, L, 4, seed=9)
    s[1] = s[1] * 3
    loss = BertEMD(s, t).double()
    loss.eval()(s, t, MASK)
    assert loss.student_weights.tolist() == [0.5, 0.5]
    loss.train()(s, t, torch.zeros_like(MASK))
    assert loss.student_weights.tolist() == [0.5, 0.5]
    loss(s, t, MASK)
    assert loss.student_weights[0] > loss.student_weights[1]
    saved = BertEMD(s, t).double()
    saved.load_state_dict(loss.state_dict())
    assert torch.equal(saved(s, t, MASK), loss(s, t, MASK)) and torch.equal(
        saved.teacher_weights, loss.teacher_weights
    )
    fixed = BertEMD(s, t, learn_weights=False).double()
    fixed(s, t, MASK)
    assert fixed.student_weights.tolist() == [0.5, 0.5]


def test_equal_layers_keep_the_weights_finite():
    s = [torch.ones(B, L, 4)] * 3
    loss = BertEMD(s, s)
    assert loss(s, s, MASK) == 0 and loss(s, s, MASK) == 0
    torch.testing.assert_close(loss.student_weights, torch.full((3,), 1 / 3))


@pytest.mark.parametrize(
    ("student", "teacher", "arguments", "message"),
    [
        (
            [(B, L, 4), (B, L, 6)],
            [(B, L, 4)],
            {},
            r"layers of one shape, and the student's are \(3, 5, 4\), \(3, 5, 6\)",
        ),
        ([(B, L, 4)], [(B, L + 1, 4)], {}, r"a layer of the student is \(3, 5, 4\), one of the teacher \(3, 6, 4\)"),
        ([(B, 2, L, L)], [(B, 4, L, L)], {}, "Only the width of hidden states may differ"),
        (
            [(B, L, 4)],
            [(B, L, 4)],
            {"regularisation": 0},
            "regularisation is above 0 and iterations 1 or more; found 0",
        ),
        ([(B, L, 4)], [(B, L, 4)], {"iterations": 0}, "found 0.05 and 0"),
    ],
)
def test_layers_that_do_not_fit_are_an_error(student, teacher, arguments, message):
    with pytest.raises(ConfigError, match=message):
        BertEMD([normal(*shape) for shape in student], [normal(*shape) for shape in teacher], **arguments)


def test_bert_emd_stands_in_a_config_with_its_lists():
    ours, theirs = [f"layer{n}.hidden_states" for n in (1, 2)], [f"layer{n}.hidden_states" for n in (1, 2, 3)]
    model = MultiLayerBasedDistillationLoss(
        [{"student": ours, "teacher": theirs, "loss": "bert_emd", "name": "emd", "args": {"iterations": 5}}]
    )
    names = [tuple(Feature(*name.split(".")) for name in side) for side in (ours, theirs)]
    s, t = layers(2, B, L, 4), layers(3, B, L, 6, seed=9)
    student, teacher = (dict(zip(side, given, strict=True)) for side, given in zip(names, (s, t), strict=True))
    context = make_context({"input_ids": torch.zeros(B, L, dtype=torch.long), "attention_mask": MASK.long()})
    model.bind(model.config.check().entries[0], student, teacher, "tokens", context)
    loss = model.losses["emd"]
    assert {"losses.emd.projection.weight", "losses.emd.student_weights"} < set(model.state_dict())
    with torch.no_grad():
        spoilt = {name: layer.masked_fill(~MASK[..., None], float("nan")) for name, layer in student.items()}
        clean = loss.eval()(s, t, MASK)
        assert torch.equal(model.terms(model.project(spoilt), teacher, context).loss, clean)

"""What losses on logits promise beyond their twins: large logits, limits, two classes, labels, arguments."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses.classes import dist, dkd, logit_standardization
from knowledge_distillation.losses.detection import objectness_scaled
from knowledge_distillation.losses.divergences import (
    js_divergence,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from knowledge_distillation.losses.logits import (
    kl_divergence,
    logits_mse,
    shifted_to_labels,
    soft_cross_entropy,
    temperature_per_sample,
)
from knowledge_distillation.losses.table import spec_of

LABELS = torch.tensor([0, 6, -100, 3, 3, 1])


def logits(classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, classes, generator=generator, dtype=torch.float64)
    return student, teacher


def with_gradient(loss, student: Tensor, teacher: Tensor, **arguments) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    values = loss(student, teacher, **arguments)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


LARGE = [
    (kl_divergence, {}),
    (kl_divergence, {"sample_temperature": "flsw"}),
    (kl_divergence, {"sample_temperature": "cwsm"}),
    (kl_divergence, {"probability_shift": True, "labels": LABELS}),
    (soft_cross_entropy, {}),
    (logits_mse, {"centred": True}),
    (reverse_kl, {}),
    (js_divergence, {}),
    (js_divergence, {"beta": 0.1}),
    (js_divergence, {"beta": 0}),
    (js_divergence, {"beta": 1}),
    (skewed_kl, {}),
    (skewed_kl, {"skew": 0}),
    (skewed_reverse_kl, {}),
    (total_variation, {}),
    (dkd, {"labels": LABELS}),
    (dkd, {"labels": LABELS, "temperature": 1.0}),
    (dist, {}),
    (logit_standardization, {}),
]


@pytest.mark.parametrize(("loss", "arguments"), LARGE, ids=lambda value: getattr(value, "__name__", str(value)[:40]))
def test_logits_of_a_thousand_are_exact_in_float32(loss, arguments):
    student, teacher = (side.sign() * 1000 for side in logits())
    student[0] = teacher[0]
    value, gradient = with_gradient(loss, student.float(), teacher.float(), **arguments)
    expected, slope = with_gradient(loss, student, teacher, **arguments)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-5 * max(slope.abs().max().item(), 1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    "loss",
    [kl_divergence, soft_cross_entropy, reverse_kl, js_divergence, skewed_kl, skewed_reverse_kl, total_variation],
)
def test_scaling_by_the_temperature_is_a_factor(loss, temperature):
    student, teacher = logits()
    plain = loss(student, teacher, temperature=temperature, scale_by_temperature=False)
    scaled = loss(student, teacher, temperature=temperature, scale_by_temperature=True)
    torch.testing.assert_close(scaled, plain * temperature**2)
    default = loss(student, teacher, temperature=temperature)
    assert torch.equal(default, scaled if loss is kl_divergence else plain)


def test_the_ends_of_the_jensen_shannon_divergence_are_the_two_divergences_and_their_limits():
    student, teacher = logits()
    forward = kl_divergence(student, teacher)
    backward = reverse_kl(student, teacher)
    assert torch.equal(js_divergence(student, teacher, beta=0), forward)
    assert torch.equal(js_divergence(student, teacher, beta=1), backward)
    near = 1e-6
    torch.testing.assert_close(js_divergence(student, teacher, beta=near) / near, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(js_divergence(student, teacher, beta=1 - near) / near, backward, rtol=1e-4, atol=0)
    torch.testing.assert_close(js_divergence(student, teacher), js_divergence(teacher, student))


def test_skews_bound_a_divergence_that_has_no_bound():
    student, teacher = (side.sign() * 1000 for side in logits())
    assert (reverse_kl(student, teacher) > 100).any()
    for loss in (skewed_kl, skewed_reverse_kl):
        assert (loss(student, teacher, skew=0.1) <= -math.log(0.1) + 1e-12).all()
    student, teacher = logits()
    torch.testing.assert_close(skewed_kl(student, teacher, skew=0), kl_divergence(student, teacher))
    torch.testing.assert_close(skewed_reverse_kl(student, teacher, skew=0), reverse_kl(student, teacher))


def test_decoupled_parts_make_up_the_whole_divergence():
    student, teacher = logits()
    labels = LABELS.clamp(min=0)
    of_label = dkd(student, teacher, labels, alpha=1, beta=0, temperature=2)
    of_others = dkd(student, teacher, labels, alpha=0, beta=1, temperature=2)
    others = 1 - (teacher / 2).softmax(-1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(of_label + others * of_others, kl_divergence(student, teacher, 2))


def test_two_classes_leave_nothing_to_decouple():
    student, teacher = logits(classes=2)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    value, gradient = with_gradient(dkd, student, teacher, labels=labels, alpha=3, beta=8, temperature=2)
    expected, slope = with_gradient(kl_divergence, student, teacher, temperature=2)
    torch.testing.assert_close(value, 3 * expected)
    torch.testing.assert_close(gradient, 3 * slope)


def test_two_classes_are_always_correlated_by_1_or_minus_1():
    student, teacher = logits(classes=2)
    agree = ((student[:, 0] > student[:, 1]) == (teacher[:, 0] > teacher[:, 1])).double().mean().item()
    value, gradient = with_gradient(dist, student, teacher, gamma=0, epsilon=1e-30)
    assert value.item() == pytest.approx(2 * (1 - agree)) and 0 < agree < 1
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_two_standardised_classes_are_a_constant_target():
    student, teacher = logits(classes=2)
    values = logit_standardization(student, teacher, epsilon=1e-30)
    agree = (student[:, 0] > student[:, 1]) == (teacher[:, 0] > teacher[:, 1])
    p = torch.tensor([0.5, -0.5]).double().div(math.sqrt(2)).softmax(0)
    expected = 4 * (p[0] - p[1]) * (p[0].log() - p[1].log())
    torch.testing.assert_close(values, torch.where(agree, 0.0, expected))


def test_a_correlation_sees_neither_scale_nor_items_that_do_not_count():
    student, teacher = (side.view(2, 3, 7) for side in logits())
    mask = torch.tensor([[True, True, False], [False, True, True]])
    counted = dist(student, teacher, mask=mask)
    torch.testing.assert_close(counted, dist(student[mask], teacher[mask]))
    # inter of one item only, intra of none: there is nothing to correlate
    one = torch.tensor([[True, False, False], [False, False, False]])
    assert dist(student, teacher, beta=0, mask=one).item() == 0
    torch.testing.assert_close(dist(student, teacher, mask=one), dist(student[0, :1], teacher[0, :1], gamma=0))


@pytest.mark.parametrize("loss", [dist, logit_standardization], ids=lambda loss: loss.__name__)
def test_constant_and_duplicate_rows_have_finite_gradients(loss):
    student, teacher = logits()
    student[:] = student[:1]
    student[3:] = 0.3
    _, gradient = with_gradient(loss, student, teacher)
    assert gradient.isfinite().all()
    _, gradient = with_gradient(loss, torch.zeros_like(student), torch.zeros_like(teacher))
    assert gradient.isfinite().all()


def test_standardised_logits_have_no_scale_and_no_offset():
    student, teacher = logits()
    torch.testing.assert_close(
        logit_standardization(student, teacher, epsilon=1e-30),
        logit_standardization(7 * student + 2, teacher / 3 - 1, epsilon=1e-30),
    )


def test_centred_logits_have_no_offset():
    student, teacher = logits()
    torch.testing.assert_close(
        logits_mse(student + 5, teacher, centred=True), logits_mse(student, teacher - 2, centred=True)
    )
    torch.testing.assert_close(logits_mse(student, teacher, temperature=3.0), logits_mse(student, teacher) / 9)


def test_a_teacher_that_is_wrong_is_put_right():
    teacher = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    shifted = shifted_to_labels(teacher, torch.tensor([0, 1, -100]))
    assert shifted.tolist() == [[5.0, 1.0, 2.0], [1.0, 5.0, 2.0], [1.0, 5.0, 2.0]]
    assert teacher[0].tolist() == [1.0, 5.0, 2.0]


@pytest.mark.parametrize("loss", [kl_divergence, soft_cross_entropy, logits_mse])
@pytest.mark.parametrize("kind", ["flsw", "cwsm"])
def test_temperatures_per_sample_are_constants_to_the_gradient(loss, kind):
    student, teacher = logits()
    taus = temperature_per_sample(student, teacher, 2.0, kind, 0.5, 1.0, None)
    assert taus.mean().item() == pytest.approx(2.0) and taus.std() > 0.01
    value, gradient = with_gradient(
        loss, student, teacher, temperature=2.0, sample_temperature=kind, temperature_spread=0.5
    )
    for i, tau in enumerate(taus.tolist()):
        one, slope = with_gradient(loss, student[i : i + 1], teacher[i : i + 1], temperature=tau)
        torch.testing.assert_close(value[i : i + 1], one)
        torch.testing.assert_close(gradient[i : i + 1], slope)


def test_harder_samples_are_cooler_and_none_is_frozen():
    student = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    taus = temperature_per_sample(student, teacher, 2.0, "flsw", 1.0, 1.0, None)
    assert taus.tolist() == pytest.approx([2.5, 1.5])
    taus = temperature_per_sample(student, teacher, 2.0, "flsw", 100.0, 1.0, None)
    assert taus.tolist() == pytest.approx([52.0, 0.2])
    mask = torch.tensor([False, True])
    assert temperature_per_sample(student, teacher, 2.0, "flsw", 1.0, 1.0, mask)[1].item() == pytest.approx(2.0)


def test_a_detector_learns_no_boxes_from_the_background():
    student, teacher = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    teacher[..., 4] = torch.tensor([-200.0, 0.0, 200.0])
    student[..., 4] = teacher[..., 4]
    value, gradient = with_gradient(objectness_scaled, student, teacher)
    boxes = (student[..., :4] - teacher[..., :4]).square().sum(-1)
    classes = (student[..., 5:].softmax(-1) - teacher[..., 5:].softmax(-1)).square().sum(-1)
    torch.testing.assert_close(value, torch.tensor([0.0, 0.5, 1.0]) * (boxes + classes))
    assert not gradient[0, 0].any() and gradient[0, 2, :4].all()
    only_boxes = objectness_scaled(student[..., :5], teacher[..., :5])
    torch.testing.assert_close(only_boxes, torch.tensor([0.0, 0.5, 1.0]) * boxes)


S, T = logits()
QUERIES = torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_divergence(S, T, temperature=0), "temperature is above 0; found 0"),
        (lambda: total_variation(S, T, temperature=-1.0), "temperature is above 0; found -1.0"),
        (lambda: js_divergence(S, T, beta=1.5), "beta lies in [0, 1]; found 1.5"),
        (lambda: skewed_kl(S, T, skew=1), "skew lies in [0, 1); found 1"),
        (lambda: skewed_reverse_kl(S, T, skew=-0.1), "skew lies in [0, 1); found -0.1"),
        (lambda: dist(S, T, epsilon=0), "epsilon is above 0; found 0"),
        (lambda: logit_standardization(S, T, epsilon=-1), "epsilon is above 0; found -1"),
        (
            lambda: logit_standardization(S[:, :1], T[:, :1]),
            "loss logit_standardization compares classes: it needs two or more, and finds logits (6, 1)",
        ),
        (
            lambda: dkd(S[:, :1], T[:, :1], LABELS),
            "loss dkd compares classes: it needs two or more, and finds logits (6, 1)",
        ),
        (
            lambda: dkd(S, T, LABELS[:2]),
            "labels (2,) of torch.int64 do not fit logits (6, 7): one class number is needed for each item",
        ),
        (
            lambda: dkd(S, T, LABELS.double()),
            "labels (6,) of torch.float64 do not fit logits (6, 7): one class number is needed for each item",
        ),
        (
            lambda: kl_divergence(S, T, probability_shift=True),
            "probability_shift needs the labels, and the batch has no 'labels'",
        ),
        (
            lambda: kl_divergence(S, T, sample_temperature="flws"),
            "sample_temperature is one of flsw, cwsm; found 'flws'. Nearest: flsw.",
        ),
        (
            lambda: logits_mse(S, T, sample_temperature="flsw", temperature_spread=-1),
            "temperature_spread and temperature_power are 0 or more; found -1 and 1.0",
        ),
        (
            lambda: objectness_scaled(QUERIES, QUERIES, boxes=5),
            "student (2, 3, 5), teacher (2, 3, 5): both are (batch, candidates, boxes + 1 + classes) with boxes=5",
        ),
        (
            lambda: objectness_scaled(QUERIES, QUERIES, class_activation="softmaks"),
            "class_activation is one of softmax, sigmoid, none; found 'softmaks'. Nearest: softmax.",
        ),
        (
            lambda: objectness_scaled(QUERIES, QUERIES, objectness_activation="softmax"),
            "objectness_activation is one of sigmoid, none; found 'softmax'.",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_what_would_do(call, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


def test_logits_mse_is_a_function_of_its_own():
    assert set(spec_of("logits_mse").functions.values()) == {logits_mse}

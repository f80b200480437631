"""The laws every loss obeys inside the loss model: a new line in a table of losses is covered by being there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reference
import torch
from cases import CASES, LENGTH, SOFT, TEACHER_ALONE, Batch, Case, each
from torch import Tensor

from knowledge_distillation.errors import ConfigError

LENGTHS = [5, 2, 4]
CROSS_ENTROPIES = ("cross_entropy", "soft_cross_entropy", "ensemble_cross_entropy")  # on equal models the entropy
NO_DISTANCE = (  # equal models are not worth 0
    "adversarial",  # a discriminator against the student
    *("factor_transfer", "paraphraser", "review_kd", "variational_information"),  # learned maps stand between
    "activation_boundary",  # neurons near 0 pay for their margin
)
CONTRASTIVE = ("crd",)  # equal models still tell samples apart; each batch moves what the next is held against
# What keeps a loss from being 0 on equal models, made negligible.
EXACT = {"dist": {"epsilon": 1e-30}, "pkt": {"epsilon": 1e-300}}
GARBAGE = (math.nan, math.inf, -math.inf, 1e30)
WITH_LENGTH = [case for case in CASES if case.has_length]


def garbage_in_padding(case: Case, feature: Tensor, mask: Tensor) -> Tensor:
    """The feature with nan, inf and large numbers in the rows and keys that are padding."""
    keep = torch.ones_like(feature, dtype=torch.bool)
    for dimension in LENGTH[case.kind]:
        shape = [1] * feature.dim()
        shape[0], shape[dimension] = mask.shape
        keep = keep & mask.bool().view(shape)
    garbage = torch.tensor(GARBAGE, dtype=feature.dtype).repeat(feature.numel() // len(GARBAGE) + 1)
    return torch.where(keep, feature, garbage[: feature.numel()].view(feature.shape))


def padded(case: Case, batch: Batch, number: int, left: bool) -> Batch:
    """The batch with `number` more padding tokens on one side of every sample."""
    sides = (number, 0) if left else (0, number)
    mask = torch.nn.functional.pad(batch.mask, sides)

    def longer(feature: Tensor) -> Tensor:
        for dimension in LENGTH[case.kind]:
            feature = torch.nn.functional.pad(feature.transpose(dimension, -1), sides).transpose(dimension, -1)
        return garbage_in_padding(case, feature, mask)

    labels = None if batch.labels is None else torch.nn.functional.pad(batch.labels, sides, value=-100)
    teacher = None if batch.teacher is None else longer(batch.teacher)
    return replace(batch, student=longer(batch.student), teacher=teacher, mask=mask, labels=labels)


@each(WITH_LENGTH)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_no_value_and_no_gradient(case, left):
    batch = case.batch(LENGTHS)
    model = case.bind(batch)
    value, gradient = batch.gradient(model)
    longer_value, longer_gradient = padded(case, batch, 3, left).gradient(model)
    for dimension in LENGTH[case.kind]:
        start = 3 if left else 0
        added = longer_gradient.narrow(dimension, 0 if left else max(LENGTHS), 3)
        assert torch.equal(added, torch.zeros_like(added))
        longer_gradient = longer_gradient.narrow(dimension, start, max(LENGTHS))
    torch.testing.assert_close(longer_value, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(longer_gradient, gradient, rtol=1e-12, atol=1e-14)


@each([case for case in WITH_LENGTH if case.name not in TEACHER_ALONE])
def test_what_stands_in_padding_has_no_gradient_of_its_own(case):
    batch = case.batch(LENGTHS)
    model = case.bind(batch)
    batch.student = garbage_in_padding(case, batch.student, batch.mask)
    _, gradient = batch.gradient(model)
    outside = garbage_in_padding(case, torch.zeros_like(gradient), batch.mask) != 0
    assert outside.any() and torch.equal(gradient[outside], torch.zeros_like(gradient[outside]))
    assert (gradient[~outside] != 0).any()


@each([case for case in SOFT if case.name not in (*NO_DISTANCE, *CONTRASTIVE)])
def test_equal_models_have_nothing_to_learn(case):
    batch = case.batch(LENGTHS)
    batch.equal()
    value, gradient = batch.gradient(case.bind(batch, args=EXACT.get(case.name, {})))
    expected = 0.0
    if case.probabilities:  # rows stay rows of probabilities: what counts is the gradient of scores before softmax
        gradient = batch.teacher * (gradient - (batch.teacher * gradient).sum(-1, keepdim=True))
    if case.name == "attention_cross_entropy":
        expected = reference.attention_cross_entropy(*[batch.teacher.numpy()] * 2, batch.mask.numpy())
    elif case.name in CROSS_ENTROPIES:
        expected = reference.entropy(batch.student.detach().numpy(), batch.mask.numpy() if case.has_length else None)
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@each(CASES)
def test_an_empty_selection_is_zero_and_still_attached(case):
    model = case.bind(case.batch(LENGTHS))
    empty = case.batch(LENGTHS, seed=1)
    if case.has_length:
        empty.mask = torch.zeros_like(empty.mask)
        empty.student = garbage_in_padding(case, empty.student, empty.mask)
    elif case.labelled:
        empty.labels = torch.full_like(empty.labels, -100)
    else:
        empty = case.batch([])
    value, gradient = empty.gradient(model)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@each([case for case in CASES if case.name not in (*CONTRASTIVE, *TEACHER_ALONE)])
def test_one_batch_of_32_is_four_of_8(case):
    lengths = [1 + (7 * i) % 11 for i in range(32)]
    whole = case.batch(lengths)
    model = case.bind(whole)
    if model.bound["it"].items.layout.name == "batch":
        pytest.skip("compares the items of a batch with each other")
    value, gradient = whole.gradient(model)

    student = whole.student.detach().requires_grad_()
    parts = [part_of(case, replace(whole, student=student), 8 * i, 8) for i in range(4)]
    assert len({part.mask.shape for part in parts}) > 1 or not case.has_length
    counts = {"it": sum(model.counts(part.context)["it"] for part in parts)}
    values = [part.terms(model, counts) for part in parts]
    accumulated = sum(terms.loss for terms in values)
    torch.testing.assert_close(accumulated.detach(), value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sum(terms.values["it"] for terms in values), value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(accumulated, student)[0], gradient, rtol=1e-12, atol=1e-14)


def part_of(case: Case, batch: Batch, start: int, size: int) -> Batch:
    """`size` samples of a batch, cut to the longest of them."""
    mask = batch.mask[start : start + size]
    longest = int(mask.sum(1).max())

    def cut(feature: Tensor | None) -> Tensor | None:
        if feature is None:
            return None
        feature = feature[start : start + size]
        for dimension in LENGTH[case.kind]:
            feature = feature.narrow(dimension, 0, longest)
        return feature

    labels = None if batch.labels is None else batch.labels[start : start + size]
    labels = labels[:, :longest] if labels is not None and labels.dim() == 2 else labels
    return replace(
        batch, student=cut(batch.student), teacher=cut(batch.teacher), mask=mask[:, :longest], labels=labels
    )


@each(CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_losses_are_computed_in_at_least_float32(case, dtype, autocast):
    batch = case.batch(LENGTHS)
    batch.student = batch.student.to(dtype)
    batch.teacher = None if batch.teacher is None else batch.teacher.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    exact = replace(batch, student=batch.student.to(wide))
    exact.teacher = None if batch.teacher is None else batch.teacher.to(wide)
    if case.regression:
        batch.labels = exact.labels = batch.labels.to(wide)
    expected, _ = exact.gradient(case.bind(exact))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value, gradient = batch.gradient(case.bind(batch))
    assert value.dtype == wide and gradient.dtype == dtype
    assert torch.equal(value, expected)


@each([case for case in SOFT if case.name not in TEACHER_ALONE])
def test_no_gradient_reaches_the_teacher(case):
    batch = case.batch(LENGTHS)
    batch.student.requires_grad_()
    batch.teacher.requires_grad_()
    batch.terms(case.bind(batch)).loss.backward()
    assert batch.student.grad is not None and batch.teacher.grad is None


@each([case for case in SOFT if not case.method.own_shapes])
def test_one_head_class_or_channel_is_not_compared_with_many(case):
    batch = case.batch(LENGTHS, width=4, heads=4)
    dimension = 1 if case.kind in ("attention", "heads", "map") else -1
    batch.teacher = batch.teacher.narrow(dimension, 0, 1)
    messages = {
        "attention": "the student has 4 heads, the teacher 1",
        "heads": "the student has 4 heads, the teacher 1",
    }
    different_width = r"the student has \d classes, the teacher 1|widths differ, .* and projection is off"
    with pytest.raises(ConfigError, match=messages.get(case.kind, different_width)):
        case.bind(batch, projection="none")


@each([case for case in SOFT if case.kind == "tokens" and not case.method.own_shapes])
def test_one_token_is_not_compared_with_many(case):
    batch = case.batch(LENGTHS)
    batch.teacher = batch.teacher[:, :1]
    with pytest.raises(
        ConfigError, match=r"\(3, 5, \d\) and .*\(3, 1, \d\): shapes differ where no projection can help"
    ):
        case.bind(batch)


@each([case for case in CASES if case.labelled])
def test_items_labelled_minus_100_do_not_count(case):
    whole = case.batch(LENGTHS)
    model = case.bind(whole)
    whole.labels[1] = -100
    value, gradient = whole.gradient(model)
    kept = torch.tensor([0, 2])
    teacher = None if whole.teacher is None else whole.teacher[kept]
    part = Batch(whole.student.detach()[kept], teacher, whole.mask[kept], whole.labels[kept])
    assert value.item() == pytest.approx(part.terms(model).loss.item(), rel=1e-12)
    assert torch.equal(gradient[1], torch.zeros_like(gradient[1])) and (gradient[0] != 0).any()


@each([case for case in CASES if case.hard])
def test_labels_of_another_shape_are_an_error(case):
    batch = case.batch(LENGTHS)
    batch.labels = batch.labels[:1]
    with pytest.raises(ConfigError, match=r"layer1.feature \(3, .*\) does not fit labels \(1,"):
        case.bind(batch)

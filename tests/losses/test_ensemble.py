"""One student and several teachers: the mean they form, and the discriminator between them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from cases import FEATURES, Batch
from torch import Tensor

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses.ensemble import Adversarial, ensemble_cross_entropy, ensemble_kl
from knowledge_distillation.losses.logits import kl_divergence, soft_cross_entropy
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss


def logits(teachers: int = 3, items: int = 6) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
    drawn = torch.randn(teachers + 1, items, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn[0],), tuple(drawn[1:])


def test_one_teacher_is_no_ensemble():
    student, teacher = logits(teachers=1)
    torch.testing.assert_close(ensemble_kl(student, teacher, 2.0), kl_divergence(student[0], teacher[0], 2.0))
    torch.testing.assert_close(
        ensemble_cross_entropy(student, teacher, 2.0), soft_cross_entropy(student[0], teacher[0], 2.0)
    )


def test_a_student_of_their_mean_has_nothing_to_learn():
    _, teacher = logits()
    mean = sum(t.softmax(-1) for t in teacher) / 3
    student = mean.log().requires_grad_()
    value = ensemble_kl((student,), teacher)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-14
    torch.testing.assert_close(ensemble_cross_entropy((student,), teacher), -(mean * mean.log()).sum(-1))


@pytest.mark.parametrize("loss", [ensemble_kl, ensemble_cross_entropy])
def test_logits_of_a_thousand_are_finite_in_float32(loss):
    student, teacher = ((1000 * side.float().sign() for side in sides) for sides in logits())
    student = next(student).requires_grad_()
    value = loss((student,), tuple(teacher))
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("loss", [ensemble_kl, ensemble_cross_entropy])
def test_scaling_by_the_temperature_is_a_factor(loss):
    student, teacher = logits()
    plain, scaled = (loss(student, teacher, 3.0, scale_by_temperature=scale) for scale in (False, True))
    torch.testing.assert_close(scaled, 9 * plain)
    assert torch.equal(loss(student, teacher, 3.0), scaled if loss is ensemble_kl else plain)


def adversary(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], **options) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(student, teacher, **options).double()


@pytest.mark.parametrize("reversal", [0.0, 0.5, 1.0])
def test_the_student_climbs_where_the_discriminator_descends(reversal):
    student, teacher = logits()
    module = adversary(student, teacher, hidden_size=8)
    student = student[0].clone().requires_grad_()
    value = module((student,), teacher, reversal=reversal)
    assert value.shape == (6,)
    turned, *own = torch.autograd.grad(value.sum(), [student, *module.parameters()])

    def plain(logits: Tensor) -> Tensor:
        inner = [sum(t.softmax(-1) for t in teacher) / 3, logits.softmax(-1)]
        of_teachers, of_student = (module.discriminator(p).squeeze(-1).sigmoid() for p in inner)
        return (-of_teachers.log() - (1 - of_student).log()).sum() / 2

    slope, *expected = torch.autograd.grad(plain(student), [student, *module.parameters()])
    assert slope.abs().max() > 1e-6
    torch.testing.assert_close(turned, -reversal * slope)
    torch.testing.assert_close(own, expected)


def test_a_discriminator_that_cannot_tell_is_worth_log_2():
    student, teacher = logits()
    module = adversary(student, teacher)
    for parameter in module.discriminator[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(module(student, teacher), torch.full((6,), math.log(2), dtype=torch.float64))


def test_the_game_moves_the_student_to_the_teachers():
    torch.manual_seed(0)
    student = torch.zeros(64, 5, dtype=torch.float64).requires_grad_()
    teacher = tuple(torch.tensor([3.0, 0, 0, 0, 0]).double().expand(64, 5) for _ in range(2))
    module = adversary((student,), teacher, hidden_size=16)
    optimizer = torch.optim.Adam([student, *module.parameters()], lr=0.02)
    before = kl_divergence(student.detach(), teacher[0]).mean()
    for _ in range(150):
        optimizer.zero_grad()
        module((student,), teacher, reversal=1.0).mean().backward()
        optimizer.step()
    assert kl_divergence(student.detach(), teacher[0]).mean() < 0.5 * before


def test_the_discriminator_trains_and_is_saved_with_the_projections():
    student, teacher = logits()
    batch = Batch(student[0], torch.cat(teacher, -1), torch.ones(6, 1), None, (1, 3))
    names = [[str(feature) for feature in side] for side in batch.features]
    entry = {"student": names[0], "teacher": names[1], "loss": "adversarial", "args": {"hidden_size": 4}, "name": "it"}
    model = MultiLayerBasedDistillationLoss([entry])
    model.bind(model.config.check().entries[0], *batch.features, "vector", batch.context)
    assert {p.shape[0] for p in model.parameters()} == {4, 1}
    assert "losses.it.discriminator.0.weight" in model.state_dict()
    batch.student.requires_grad_()
    batch.terms(model).loss.backward()
    assert all(p.grad is not None for p in model.parameters()) and batch.student.grad.any()


@pytest.mark.parametrize("loss", ["ensemble_kl", "ensemble_cross_entropy", "adversarial"])
def test_widths_that_differ_are_an_error_and_not_projected(loss):
    student, teacher = {FEATURES[0]: torch.randn(3, 5)}, {f: torch.randn(3, 4 + n) for n, f in enumerate(FEATURES[:2])}
    entry = {"student": [str(FEATURES[0])], "teacher": [str(f) for f in teacher], "loss": loss}
    model = MultiLayerBasedDistillationLoss([entry])
    message = (
        f"loss {loss} compares one student feature with those of several teachers, all of one shape; found student "
        "(3, 5) and teacher (3, 4), (3, 5)"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        model.bind(model.config.check().entries[0], student, teacher, "vector", {})


STUDENT, TEACHER = logits()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble_kl(STUDENT * 2, TEACHER), "found student (6, 5), (6, 5) and teacher (6, 5), (6, 5), (6, 5)"),
        (lambda: ensemble_kl(STUDENT, TEACHER, temperature=0), "temperature is above 0; found 0"),
        (
            lambda: ensemble_cross_entropy((STUDENT[0][:, :1],), (TEACHER[0][:, :1],)),
            "loss ensemble_cross_entropy compares classes: it needs two or more, and finds logits (6, 1)",
        ),
        (lambda: Adversarial(STUDENT, TEACHER, hidden_size=0), "hidden_size is a whole number of 1 or more; found 0"),
        (
            lambda: adversary(STUDENT, TEACHER)(STUDENT, TEACHER, reversal=-1),
            "reversal is 0 or more; found -1",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_what_would_do(call, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()

"""Classes that a model leaves out by a logit of -inf: a loss is that of the other classes, or infinite and says so."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from runs import HARD, bert, distiller
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from knowledge_distillation.errors import ConfigError, DistillationError
from knowledge_distillation.features.deferred import HeadLogits, TopKLogits
from knowledge_distillation.losses import get_loss
from knowledge_distillation.losses.labels import hard_cross_entropy
from knowledge_distillation.losses.logits import kl_divergence
from knowledge_distillation.losses.table import LOSSES
from knowledge_distillation.objective.fused.vocabulary import FUSED_WITH_HEAD, HeadTerm, head_loss

INF = math.inf
CLASSES, KEPT = 9, 6
NAMES = [spec.name for spec in LOSSES if "vector" in spec.functions and (spec.logits or "ensemble" in spec.name)]
BOUNDED = ("js_divergence", "skewed_kl", "skewed_reverse_kl", "total_variation", "dist")  # and finite with one side's
OPTIONS = [{}, {"temperature": 3.0}]
OPTIONS_OF = {
    "logits_mse": [*OPTIONS, {"centred": True}, {"sample_temperature": "flsw"}],
    "kl_divergence": [*OPTIONS, {"sample_temperature": "flsw"}, {"sample_temperature": "cwsm"}],
    "js_divergence": [*OPTIONS, {"beta": 0.0}, {"beta": 1.0}],
    "logit_standardization": [*OPTIONS, {"unbiased": False}],
}


def logits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 5, CLASSES, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, KEPT, (5,), generator=generator)


def value_and_gradient(
    name: str, student: Tensor, teacher: Tensor, labels: Tensor, **options
) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    several = "ensemble" in name
    sides = ((student,), (teacher, teacher.flip(0))) if several else (student, teacher)
    context = {"labels": labels} if name == "dkd" else {}
    value = get_loss(name, "vector")(*sides, **context, **options)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


@pytest.mark.case("A7")
def test_zero_times_the_logarithm_of_zero_is_zero() -> None:
    student, teacher = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, -INF]])
    value, gradient = value_and_gradient("kl_divergence", student, teacher, torch.tensor([0]))
    assert value.item() == pytest.approx(0.70030, abs=5e-6)
    torch.testing.assert_close(gradient, student.softmax(-1) - teacher.softmax(-1))


@pytest.mark.case("A8")
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_both_sides_leave_out_is_none_of_the_loss(name: str) -> None:
    student, teacher, labels = logits()
    masked = [side.clone().index_fill(1, torch.tensor([6, 7, 8]), -INF) for side in (student, teacher)]
    for options in OPTIONS_OF.get(name, OPTIONS):
        found = value_and_gradient(name, *masked, labels, **options)
        expected = value_and_gradient(name, student[:, :KEPT], teacher[:, :KEPT], labels, **options)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[1][:, :KEPT], expected[1], rtol=1e-8, atol=1e-11)
        assert torch.equal(found[1][:, KEPT:], torch.zeros(5, CLASSES - KEPT, dtype=torch.float64))


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
def test_a_bounded_loss_is_finite_where_one_side_leaves_a_class_out(name: str, side: int) -> None:
    """And is what it tends to as the logit goes down."""
    sides = list(logits()[:2])
    results = []
    for low in (-INF, -600.0):
        sides[side] = sides[side].index_fill(1, torch.tensor([2]), low)
        results.append(value_and_gradient(name, *sides, torch.zeros(5).long()))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("name", "side"), [("kl_divergence", 1), ("soft_cross_entropy", 1), ("reverse_kl", 0)])
def test_where_the_target_gives_nothing_the_other_side_counts_for_nothing(name: str, side: int) -> None:
    sides = list(logits()[:2])
    for low in (-INF, -600.0):
        sides[side] = sides[side].index_fill(1, torch.tensor([2]), low)
        value, gradient = value_and_gradient(name, *sides, torch.zeros(5).long())
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
        p, q = (reference.softmax(sides[number][0].tolist()) for number in (side, 1 - side))
        own = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
        entropy = -sum(a * math.log(a) for a in p if a) if name == "soft_cross_entropy" else 0.0
        assert value[0].item() == pytest.approx(own + entropy, rel=1e-9)
    worse, _ = value_and_gradient(
        name, sides[0], sides[1].index_fill(1, torch.tensor([2]), 0.0), labels := logits()[2]
    )
    assert torch.isfinite(worse).all() and labels.shape == (5,)


@pytest.mark.case("A8")
@pytest.mark.parametrize("loss", FUSED_WITH_HEAD, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("form", ["head", "logits", "top-k"])
def test_in_chunks_as_whole(loss, form: str) -> None:
    """Both heads leave classes out by a bias of -inf, the teacher one more; the gradient is finite throughout."""
    torch.manual_seed(0)
    leaves = [torch.randn(2, 5, 4), torch.randn(CLASSES, 4), torch.randn(CLASSES)]
    leaves[2][KEPT:] = -INF
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    teacher = HeadLogits(*(torch.randn(*leaf.shape, dtype=torch.float64) for leaf in leaves))
    teacher.bias[KEPT - (loss is kl_divergence) :] = -INF
    references = {"head": teacher, "logits": teacher.tensor(), "top-k": TopKLogits.of(teacher.tensor(), 4)}
    hard = loss is hard_cross_entropy
    term = HeadTerm(
        loss,
        torch.randint(0, KEPT, (2, 5)) if hard else references[form],
        torch.rand(2, 5),
        {"label_smoothing": 0.2} if hard else {},
    )
    if form == "top-k" and loss.__name__ in ("reverse_kl", "logits_mse", "logit_standardization"):
        return  # refused before the first step
    value = head_loss(HeadLogits(*leaves), [term], chunk=3)[0]
    whole = torch.nn.functional.linear(*leaves)
    target = term.reference
    if form == "top-k" and not hard:  # what the others have together is theirs that the student has
        target = target.beside(whole.detach(), torch.empty_like(whole))
    elif form == "head" and not hard:
        target = target.tensor()
    expected = (term.rows * loss(whole, target, **term.args)).sum()
    assert torch.isfinite(value)
    torch.testing.assert_close(value, expected)
    for found, right in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, right)


def test_label_smoothing_spreads_over_the_classes_there_are() -> None:
    student, _, labels = logits()
    masked = student.index_fill(1, torch.tensor([6, 7, 8]), -INF).requires_grad_()
    found = hard_cross_entropy(masked, labels, label_smoothing=0.1)
    torch.testing.assert_close(found, hard_cross_entropy(student[:, :KEPT], labels, label_smoothing=0.1))
    assert torch.isfinite(torch.autograd.grad(found.sum(), masked)[0]).all()


# --- an infinite loss ------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """A classifier that leaves out the first class of batches whose first id is in `of`; its logit becomes `low`."""

    def __init__(self, model: nn.Module, low: float, *of: int) -> None:
        super().__init__()
        self.model, self.low, self.of = model, low, of

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        logits = self.model(input_ids, attention_mask).logits
        left_out = torch.isin(input_ids[:, :1], torch.tensor(self.of)) & (torch.arange(logits.shape[1]) == 0)
        return SequenceClassifierOutput(logits=logits.masked_fill(left_out, self.low))


def inputs(first: int) -> dict[str, Tensor]:
    ids = torch.full((4, 6), first)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([1, 2, 1, 2])}


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    ("loss", "low", "message"),
    [
        (
            "kl_divergence",
            -INF,
            "loss kl_divergence is inf on the probe batch: the student's output.logits is -inf in 4",
        ),
        (
            "soft_cross_entropy",
            -INF,
            "the student's output.logits is -inf in 4 places; a class whose logit is -inf has",
        ),
        ("logits_mse", -INF, "take a loss that stays finite (js_divergence, skewed_kl, "),
        ("kl_divergence", INF, "is nan on the probe batch: the student's output.logits holds nan or inf in 4 places"),
        ("logits_mse", math.nan, "the student's output.logits holds nan or inf in 4 places"),
    ],
)
def test_an_infinite_loss_says_why_before_the_first_step(loss: str, low: float, message: str) -> None:
    config = [{"teacher": "output.logits", "student": "output.logits", "loss": loss}]
    student = Masked(bert(2, num_labels=3), low, 5)
    with pytest.raises(ConfigError) as error:
        distiller(config, bert(num_labels=3), student, train_dataloader=[inputs(5)]).plan()
    assert message in str(error.value)


@pytest.mark.case("A8")
def test_an_infinite_loss_of_a_later_batch_ends_the_run_and_speaks_of_infinite_logits() -> None:
    config = [{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}]
    student = Masked(bert(2, num_labels=3), -INF, 7)
    run = distiller(config, bert(num_labels=3), student, train_dataloader=[inputs(5), inputs(6), inputs(7)])
    with pytest.raises(DistillationError, match="not finite at step 3 .*logits of -inf, leave out the same"):
        run.train()


def test_a_run_goes_on_where_both_models_leave_out_the_same() -> None:
    config = [{"teacher": "output.logits", "student": "output.logits", "loss": "reverse_kl"}, *HARD]
    models = Masked(bert(num_labels=3), -INF, 5, 7), Masked(bert(2, num_labels=3), -INF, 5, 7)
    run = distiller(config, *models, train_dataloader=[inputs(5), inputs(6), inputs(7)])
    assert math.isfinite(run.train()["loss"])
    assert all(torch.isfinite(parameter).all() for parameter in run.student.parameters())

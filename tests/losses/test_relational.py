"""What the losses on relations promise beyond the laws: sizes that differ, samples that coincide, little memory."""

from __future__ import annotations

import pytest
import reference
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses import relational
from knowledge_distillation.losses.channels import nst
from knowledge_distillation.losses.contrastive import CRD
from knowledge_distillation.losses.relational import (
    correlation_congruence,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

ON_SAMPLES = [similarity_preserving, rkd_distance, rkd_angle, correlation_congruence, pkt]
each = pytest.mark.parametrize("loss", ON_SAMPLES, ids=lambda loss: loss.__name__)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expected(loss, student, teacher, **arguments):
    return reference.__dict__[loss.__name__](student.numpy(), teacher.numpy(), **arguments)


@each
@pytest.mark.parametrize(
    ("student", "teacher"),
    [((6, 4), (6, 9)), ((4, 3, 4, 4), (4, 6, 2, 2)), ((5, 3, 7), (5, 6, 4)), ((4, 3, 7), (4, 5))],
    ids=["widths", "maps", "lengths", "kinds"],
)
def test_only_the_batch_is_common(loss, student, teacher):
    student, teacher = random(*student), random(*teacher, seed=1)
    assert loss(student, teacher).item() == pytest.approx(expected(loss, student, teacher), rel=1e-9)


@each
def test_each_side_has_the_mask_of_its_own_tokens(loss):
    student, teacher = random(5, 4, 3), random(5, 6, 3, seed=1)
    mask, teacher_mask = torch.ones(5, 4, dtype=torch.bool), torch.ones(5, 6, dtype=torch.bool)
    mask[1, 2:], teacher_mask[1, 4:], teacher_mask[2, :3], mask[4] = False, False, False, False
    value = loss(student, teacher, mask=mask, teacher_mask=teacher_mask)
    kept = [0, 1, 2, 3]
    rows = [reference.rows_of(f.numpy(), m.numpy()) for f, m in ((student[kept], mask[kept]), (teacher, teacher_mask))]
    rows[1] = [rows[1][i] for i in kept]
    wanted = [torch.stack([torch.as_tensor(row) for row in side]) for side in rows]
    assert value.item() == pytest.approx(expected(loss, *wanted), rel=1e-9)


@each
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_sample_without_tokens_is_not_there(loss, pooling):
    student, teacher = random(5, 4, 3).requires_grad_(), random(5, 4, 3, seed=1)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[2], mask[3, :2] = False, False
    kept = [0, 1, 3, 4]
    value = loss(student, teacher, mask=mask, pooling=pooling)
    part = loss(student.detach()[kept], teacher[kept], mask=mask[kept], pooling=pooling)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(part.item(), rel=1e-12)
    assert not gradient[~mask].any() and gradient[0].any()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_that_coincide_have_a_finite_gradient(loss, dtype):
    student, teacher = random(6, 7, dtype=dtype) + 3, random(6, 4, seed=1, dtype=dtype)
    student[1], student[4], teacher[5] = student[0], 0, teacher[0]
    value = loss(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all() and gradient.abs().max() < 1
    wanted = expected(loss, student.detach().double(), teacher.double())
    assert value.item() == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-9)


@each
@pytest.mark.parametrize("apart", [1e-7, 1e-5, 1e-3])
def test_samples_that_nearly_coincide_have_a_gradient_of_no_great_size(loss, apart):
    student, teacher = random(6, 7, dtype=torch.float32) + 3, random(6, 4, seed=1, dtype=torch.float32)
    student[1] = student[0] * (1 + apart)
    (gradient,) = torch.autograd.grad(loss(student.requires_grad_(), teacher), student)
    assert gradient.isfinite().all() and gradient.abs().max() < 1 / apart


@each
@pytest.mark.parametrize("student", [torch.zeros(4, 3), torch.zeros(1, 3), torch.ones(1, 3)], ids=str)
def test_a_batch_without_relations_is_worth_a_number_and_no_gradient(loss, student):
    teacher = random(len(student), 5, dtype=torch.float32)
    value = loss(student.clone().requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(loss(student.requires_grad_(), teacher), student)
    assert value.isfinite()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle], ids=lambda loss: loss.__name__)
def test_differences_do_not_drown_in_a_common_offset(loss):
    student, teacher = random(8, 64), random(8, 32, seed=1)
    found = (student + 100).float().requires_grad_()
    exact = student.clone().requires_grad_()
    value = loss(found, (teacher + 100).float())
    wanted = loss(exact, teacher)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    slopes = torch.autograd.grad(value, found)[0].double(), torch.autograd.grad(wanted, exact)[0]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)


@each
def test_samples_are_compared_within_one_batch(loss):
    with pytest.raises(ConfigError, match="compared within a batch: the student has 3, the teacher 2"):
        loss(random(3, 4), random(2, 4))


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (pkt, {"pooling": "fist"}, "pooling is one of mean, first; found 'fist'. Nearest: first."),
        (rkd_distance, {"average": "pair"}, "average is one of all, pairs; found 'pair'. Nearest: pairs."),
        (rkd_angle, {"average": "pairs"}, "average is one of all, triples; found 'pairs'."),
        (pkt, {"average": "sum"}, "average is one of all, off_diagonal_sum; found 'sum'"),
        (pkt, {"epsilon": 0}, "epsilon is a number above 0; found 0"),
        (correlation_congruence, {"kernel": "gauss"}, "kernel is one of taylor, rbf, bilinear; found 'gauss'"),
        (correlation_congruence, {"gamma": -1.0}, "gamma is a number above 0; found -1.0"),
        (correlation_congruence, {"order": 1.5}, "order is a whole number of 1 or more; found 1.5"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_do(loss, arguments, message):
    with pytest.raises(ConfigError) as error:
        loss(random(3, 4), random(3, 4), **arguments)
    assert message in str(error.value)


def test_the_angles_are_the_same_a_few_vertices_at_a_time(monkeypatch):
    student, teacher = random(7, 5).requires_grad_(), random(7, 4, seed=1)
    for average in ("all", "triples"):
        whole = rkd_angle(student, teacher, average=average)
        (slope,) = torch.autograd.grad(whole, student)
        with monkeypatch.context() as patch:
            patch.setattr(relational, "CHUNK", 2 * 7**2)
            parts = rkd_angle(student, teacher, average=average)
            torch.testing.assert_close(torch.autograd.grad(parts, student)[0], slope, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


@each
def test_no_backward_pass_keeps_a_copy_of_a_feature(loss):
    student = random(4, 3, 16, 16, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss(student, student.detach() * 2)
    large = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() >= student.numel()}
    assert large == {student.untyped_storage().data_ptr()}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 5, 5), (2, 6, 5, 5)),
        ((2, 9, 2, 2), (2, 20, 2, 2)),
        ((2, 3, 8, 8), (2, 5, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 7, 7)),
        ((2, 3, 4, 9), (2, 2, 6, 5)),
        ((2, 5, 3), (2, 5, 7)),
    ],
    ids=["by_channel", "by_place", "larger_student", "larger_teacher", "crossed", "tokens"],
)
def test_nst_of_any_sizes_is_its_twin(student, teacher):
    student, teacher = random(*student).requires_grad_(), random(*teacher, seed=1)
    assert nst(student, teacher).shape == (2,)
    assert nst(student, teacher).mean().item() == pytest.approx(expected(nst, student.detach(), teacher), rel=1e-9)
    assert torch.autograd.gradcheck(lambda given: nst(given, teacher), student)


@pytest.mark.parametrize("places", [(2, 2), (5, 5)], ids=["by_place", "by_channel"])
def test_a_channel_that_shows_nothing_has_no_gradient(places):
    student = random(2, 4, *places)
    student[:, 1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(nst(student, random(2, 6, *places, seed=1)).sum(), student)
    assert gradient.isfinite().all() and not gradient[:, 1].any() and gradient[:, 0].any()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 5, 3), (2, 4, 3), r"place by place, so lengths are equal: .* is \(2, 5, 3\), the teacher's \(2, 4, 3\)"),
        ((2, 5, 3), (2, 4, 3, 3), r"two maps, or two features of tokens, of one batch: the student's feature is"),
        ((2, 5, 3, 3), (3, 5, 3, 3), r"of one batch: .* \(2, 5, 3, 3\), the teacher's \(3, 5, 3, 3\)"),
    ],
)
def test_nst_refuses_what_has_no_common_places(student, teacher, message):
    with pytest.raises(ConfigError, match=message):
        nst(random(*student), random(*teacher))


class NeverWaits(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a number, or counting what a mask keeps."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["vector", "tokens", "map"])
@pytest.mark.parametrize("loss", [*ON_SAMPLES, nst, CRD], ids=lambda loss: loss.__name__)
def test_no_loss_waits_for_the_device(loss, kind):
    if loss is nst and kind == "vector":
        pytest.skip("has no places")
    shape = {"vector": (5, 4), "tokens": (5, 3, 4), "map": (5, 3, 4, 4)}[kind]
    student, teacher = random(*shape).float().requires_grad_(), random(*shape, seed=1).float()
    context = {"mask": torch.ones(5, 3, dtype=torch.bool)} if kind == "tokens" else {}
    if loss is CRD:
        loss, context["sample_index"] = CRD(student, teacher, num_samples=9, negatives=3), torch.arange(5)
    with NeverWaits():
        loss(student, teacher, **context).sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()

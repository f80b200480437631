"""Knowledge review: the pyramid of one level, and levels of other sizes and channels."""

from __future__ import annotations

import re

import pytest
import reference
import torch

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses.review import ReviewKD, hcl


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 9), (4, 4), (3, 3), (2, 2), (1, 1), (6, 10), (8, 3), (12, 6)])
def test_the_context_loss_is_its_twin(size):
    student, teacher = random(2, 3, *size), random(2, 3, *size, seed=1)
    expected = reference.review_kd_hcl(student.numpy(), teacher.numpy())
    assert hcl(student, teacher).mean().item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(hcl(student, student), torch.zeros(2).double())
    assert torch.autograd.gradcheck(lambda s: hcl(s, teacher), student.requires_grad_())


LEVELS = [
    ([(2, 3, 8, 8), (2, 4, 4, 4), (2, 6, 2, 2)], [(2, 5, 8, 8), (2, 7, 4, 4), (2, 2, 2, 2)]),
    ([(2, 3, 6, 6), (2, 4, 3, 3)], [(2, 5, 8, 4), (2, 7, 1, 2)]),
    ([(2, 3, 3, 3)], [(2, 5, 3, 3)]),
]


@pytest.mark.parametrize("shapes", LEVELS)
def test_levels_of_other_channels_and_sizes_are_reviewed(shapes):
    student, teacher = (tuple(random(*shape, seed=side) for shape in shapes[side]) for side in (0, 1))
    torch.manual_seed(0)
    loss = ReviewKD(student, teacher).double()
    state = {name: tensor.numpy() for name, tensor in loss.state_dict().items()}
    sides = [tuple(level.numpy() for level in side) for side in (student, teacher)]
    value = loss(student, teacher)
    assert value.mean().item() == pytest.approx(reference.review_kd(*sides, **state), rel=1e-12)
    value.sum().backward()
    assert all((parameter.grad != 0).any() for parameter in loss.parameters())


def test_every_level_of_the_student_hears_of_every_shallower_level_of_the_teacher():
    shapes = LEVELS[0]
    student, teacher = (tuple(random(*shape, seed=side) for shape in shapes[side]) for side in (0, 1))
    loss = ReviewKD(student, teacher).double()
    for level in student:
        level.requires_grad_()
    with torch.no_grad():
        loss.expand[1].weight.zero_(), loss.expand[2].weight.zero_()  # only the shallowest is compared
    loss(student, teacher).sum().backward()
    assert all((level.grad != 0).any() for level in student)


def test_the_width_is_the_deepest_level_s_unless_told():
    student, teacher = ((random(1, 3, 4, 4), random(1, 600, 2, 2)) for _ in range(2))
    assert ReviewKD(student, teacher).reduce[0].out_channels == 512
    assert ReviewKD(student, teacher, width=7).reduce[0].out_channels == 7
    with pytest.raises(ConfigError, match="width is 1 or more; found 0"):
        ReviewKD(student, teacher, width=0)


@pytest.mark.parametrize(
    ("student", "teacher"), [([(2, 3, 4, 4)], [(2, 3, 4, 4), (2, 3, 2, 2)]), ([(2, 3, 4)], [(2, 3, 4, 4)])]
)
def test_features_that_cannot_be_reviewed_are_an_error(student, teacher):
    message = re.escape(f"compares as many maps of the student as of the teacher; found {student} and {teacher}")
    with pytest.raises(ConfigError, match=message):
        ReviewKD([random(*shape) for shape in student], [random(*shape) for shape in teacher])

"""What losses on feature maps promise beyond the laws: other sizes and channels, extreme maps, their own errors."""

from __future__ import annotations

import re

import pytest
import reference
import torch

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses.feature_map import (
    VariationalInformation,
    attention_transfer,
    channel_wise,
    fitnet_hint,
    fsp,
)
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

SIZES = [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((3, 5), (7, 9)), ((2, 6), (5, 3))]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def twin(name, student, teacher, **arguments):
    sides = [tuple(f.numpy() for f in s) if isinstance(s, tuple) else s.numpy() for s in (student, teacher)]
    return getattr(reference, name)(*sides, **arguments)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("norm", [False, True])
def test_attention_transfer_takes_other_channels_and_other_sizes(sizes, norm):
    student, teacher = random(2, 3, *sizes[0]), random(2, 5, *sizes[1])
    value = attention_transfer(student, teacher, norm=norm).mean().item()
    assert value == pytest.approx(twin("attention_transfer", student, teacher, norm=norm), rel=1e-12)


def test_attention_transfer_takes_tokens_of_another_width():
    student, teacher = random(2, 4, 3), random(2, 4, 7)
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    expected = twin("attention_transfer", student, teacher, mask=mask.numpy())
    assert attention_transfer(student, teacher, mask).mean().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-5])
def test_attention_transfer_of_nearly_empty_maps_has_a_finite_gradient(norm, dtype, size):
    student = torch.full((2, 3, 4, 4), size, dtype=dtype, requires_grad=True)
    teacher = torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)]).to(dtype)
    value = attention_transfer(student, teacher, norm=norm)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (attention_transfer, "attention_transfer"),
        (lambda s, t: VariationalInformation(s, t).double()(s, t), "variational_information"),
    ],
)
@pytest.mark.parametrize("shapes", [((2, 4, 3), (2, 5, 3)), ((2, 4, 3), (2, 3, 4, 4))])
def test_positions_that_cannot_be_compared_are_an_error(loss, name, shapes):
    message = f"loss {name} compares position with position: {shapes[0]} of the student and {shapes[1]} of the teacher"
    with pytest.raises(ConfigError, match=re.escape(message)):
        loss(random(*shapes[0]), random(*shapes[1]))


def test_the_half_sum_of_a_hint_is_the_paper_s():
    student, teacher = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    expected = (student - teacher).flatten(1).norm(dim=1) ** 2 / 2
    torch.testing.assert_close(fitnet_hint(student, teacher, half_sum=True), expected)
    torch.testing.assert_close(fitnet_hint(student, teacher), expected / 24)


@pytest.mark.parametrize("sizes", SIZES)
def test_fsp_pools_the_larger_of_two_maps_and_needs_no_equal_sizes_of_both_models(sizes):
    student = random(2, 3, *sizes[0]), random(2, 4, *sizes[1])
    teacher = random(2, 3, 6, 6), random(2, 4, 6, 6)
    assert fsp(student, teacher).mean().item() == pytest.approx(twin("fsp", student, teacher), rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            [(2, 3, 4, 4), (2, 4, 4, 4)],
            [(2, 3, 4, 4), (2, 5, 4, 4)],
            "the student's maps have 3 and 4 channels, the teacher's 3 and 5. Channels are compared one by one",
        ),
        ([(2, 3, 4, 4)], [(2, 3, 4, 4)], "compares two maps of the student with two of the teacher; found [(2, 3, 4"),
        ([(2, 3, 4), (2, 3, 4)], [(2, 3, 4, 4), (2, 3, 4, 4)], "compares two maps of the student with two of the"),
    ],
)
def test_features_that_fsp_cannot_compare_are_an_error(student, teacher, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        fsp(tuple(random(*shape) for shape in student), tuple(random(*shape) for shape in teacher))


def bound(loss, student, teacher, **entry):
    """A loss model of one entry, bound to features of both sides; and its value."""
    names = [[f"layer{n}.feature" for n in range(len(side))] for side in (student, teacher)]
    sides = [side[0] if len(side) == 1 else side for side in names]
    model = MultiLayerBasedDistillationLoss([{"student": sides[0], "teacher": sides[1], "loss": loss, **entry}])
    features = [{Feature(f"layer{n}", "feature"): f for n, f in enumerate(side)} for side in (student, teacher)]
    context = make_context({"pixel_values": student[0]})
    return model, model.bind(model.config.check().entries[0], *features, "map", context).loss


def test_a_projection_gives_fsp_equal_channels():
    student = random(2, 3, 4, 4), random(2, 4, 2, 2)
    teacher = random(2, 5, 4, 4), random(2, 7, 2, 2)
    with pytest.raises(ConfigError, match="or set projection: linear"):
        bound("fsp", student, teacher)
    model, value = bound("fsp", student, teacher, projection="linear")
    assert value.isfinite() and [p.weight.shape[:2] for p in model.projections.values()] == [(5, 3), (7, 4)]


def test_channel_wise_stays_finite_on_peaked_maps():
    student, teacher = (1000 * random(2, 3, 4, 4, seed=seed).float() for seed in (0, 1))
    student.requires_grad_()
    value = channel_wise(student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize("sizes", SIZES)
def test_variational_information_takes_other_channels_and_other_sizes(sizes):
    student, teacher = random(2, 3, *sizes[0]), random(2, 5, *sizes[1])
    loss = VariationalInformation(student, teacher).double()
    state = {name: tensor.numpy() for name, tensor in loss.state_dict().items()}
    expected = twin("variational_information", student, teacher, **state)
    assert loss(student, teacher).mean().item() == pytest.approx(expected, rel=1e-12)


def test_the_variance_begins_where_it_is_told_to_and_learns():
    student, teacher = random(2, 3, 4, 4), random(2, 5, 4, 4)
    loss = VariationalInformation(student, teacher, variance=3.0, epsilon=0.5).double()
    torch.testing.assert_close(torch.nn.functional.softplus(loss.raw_variance) + 0.5, torch.full((5,), 3.0).double())
    loss(student, teacher).sum().backward()
    assert all((parameter.grad != 0).any() for parameter in loss.parameters())


@pytest.mark.parametrize("arguments", [{"variance": 1e-5}, {"epsilon": 0.0}, {"variance": 1.0, "epsilon": 2.0}])
def test_a_variance_below_its_least_is_an_error(arguments):
    with pytest.raises(ConfigError, match="epsilon is above 0 and variance above epsilon; found epsilon"):
        VariationalInformation(random(2, 3), random(2, 3), **arguments)


def test_without_a_regressor_the_entry_s_projection_has_to_give_equal_channels():
    student, teacher = (random(2, 3, 4, 4),), (random(2, 5, 4, 4),)
    entry = {"loss": "variational_information", "args": {"regressor": False}}
    message = re.escape("without a regressor (2, 3, 4, 4) is compared with (2, 5, 4, 4). Leave regressor on, or set")
    with pytest.raises(ConfigError, match=message):
        bound(student=student, teacher=teacher, **entry)
    model, value = bound(student=student, teacher=teacher, **entry, projection="linear")
    assert value.isfinite() and len(model.projections) == 1

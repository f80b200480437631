"""Losses on features before the ReLU: what equal models pay, margins, and where the BatchNorm is found."""

from __future__ import annotations

import re

import pytest
import reference
import torch
from torch import nn

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses.activation import MarginReLU, activation_boundary, margins_of
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

MAP = torch.zeros(2, 4, 3, 3)


def batch_norm(sigma, mu):
    norm = nn.BatchNorm2d(len(sigma))
    norm.weight.data, norm.bias.data = torch.tensor(sigma), torch.tensor(mu)
    return norm


def test_equal_models_pay_only_for_neurons_within_the_margin():
    feature = torch.tensor([[-2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0]])
    each = [activation_boundary(f, f).item() for f in feature.T[:, None]]
    assert each == [0, 0, 0.75**2, 1, 0.75**2, 0, 0]


def test_a_negative_margin_is_an_error():
    with pytest.raises(ConfigError, match="margin is 0 or more; found -1"):
        activation_boundary(MAP, MAP, margin=-1)


@pytest.mark.parametrize(("sigma", "mu"), [(1.0, 0.0), (0.5, 1.0), (2.0, -3.0), (0.7, 2.0), (1.5, -0.1)])
def test_a_margin_is_the_mean_of_the_negative_responses(sigma, mu):
    expected = reference.negative_mean(sigma, mu)
    for sign in (1, -1):
        found = margins_of(batch_norm([sign * sigma], [mu])).item()
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_margin_of_responses_that_are_hardly_ever_negative_is_three_sigma():
    torch.testing.assert_close(margins_of(batch_norm([0.5, 2.0], [1.6, 60.0])), torch.tensor([-1.5, -6.0]).double())


def test_margins_of_constant_channels_and_of_a_norm_without_affine_are_finite():
    found = margins_of(batch_norm([0.0, 0.0, 0.0, 1e-20], [-2.0, 0.0, 2.0, -1e-3]))
    torch.testing.assert_close(found, torch.tensor([-2.0, 0.0, 0.0, -1e-3]).double(), rtol=1e-6, atol=0)
    plain = margins_of(nn.BatchNorm2d(2, affine=False))
    assert plain.tolist() == pytest.approx([reference.negative_mean(1.0, 0.0)] * 2, rel=1e-6)


def test_nothing_is_asked_below_a_response_that_is_off():
    teacher = torch.tensor([-3.0, -3.0, -0.2, -0.2, 2.0]).view(1, 1, 1, 5)
    student = torch.tensor([-4.0, -0.5, -0.3, 0.1, 1.0], requires_grad=True).view(1, 1, 1, 5)
    loss = MarginReLU(student, teacher, margin=-1.0)
    assert loss(student, teacher).item() == pytest.approx(0 + 0.5**2 + 0 + 0.3**2 + 1)


class Block(nn.Module):
    """Convolution and BatchNorm twice, a shortcut registered last, then the ReLU that gives the block's output."""

    def __init__(self, channels, last=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 6, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 1), last(4)
        self.downsample = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))) + self.downsample(x))


def teacher_of(last=nn.BatchNorm2d):
    """Two blocks; every BatchNorm has another bias."""
    model = nn.ModuleDict({"stem": nn.BatchNorm2d(4), "blocks": nn.Sequential(Block(4, last), Block(4, last))})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.bias.data.fill_(-float(number))
    return model


@pytest.mark.parametrize(
    ("feature", "path"),
    [
        ("blocks.0.bn2.output", "blocks.0.bn2"),  # the feature's own module
        ("blocks.1.output", "blocks.1.bn2"),  # the last inside it, the shortcut left out
        ("blocks.output", "blocks.1.bn2"),
        ("blocks.0.relu.input", "blocks.0.bn2"),  # the last before it
        ("blocks.0.bn2.input", "stem"),  # before it in its block stands only one of another width: it has to be named
        ("blocks.0.downsample.1.output", "blocks.0.downsample.1"),
        ("blocks.0.input", "stem"),
    ],
)
def test_the_batch_norm_of_a_feature_is_found(feature, path):
    model = teacher_of()
    layer, _, output = feature.rpartition(".")
    arguments = {"teacher_model": model, "teacher_features": (Feature(layer, output),)}
    if feature in ("blocks.0.bn2.input", "blocks.0.input"):
        with pytest.raises(ConfigError, match=f"no BatchNorm of 4 channels, as the teacher's map has, in {layer} nor"):
            MarginReLU(MAP, MAP, **arguments)
        arguments["batch_norm"] = path
    expected = margins_of(model.get_submodule(path)).float()
    assert torch.equal(MarginReLU(MAP, MAP, **arguments).margins, expected)


def test_a_shortcut_s_batch_norm_is_taken_where_there_is_no_other():
    model = teacher_of(last=nn.Identity)
    loss = MarginReLU(MAP, MAP, teacher_model=model, teacher_features=(Feature("blocks.1", "output"),))
    assert torch.equal(loss.margins, margins_of(model["blocks"][1].downsample[1]).float())


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (
            "blocks.0.conv2",
            {},
            "no BatchNorm of 4 channels, as the teacher's map has, in blocks.0.conv2 nor before it",
        ),
        (
            "layer3",
            {},
            "and layer3 is no module path of the teacher. Set args: {batch_norm: MODULE PATH}, or {margin: ",
        ),
        (
            "blocks.0",
            {"batch_norm": "stem.norm"},
            "batch_norm stem.norm is no module of the teacher; the teacher's map",
        ),
        ("blocks.0", {"batch_norm": "blocks.0.relu"}, "batch_norm blocks.0.relu is a ReLU; the teacher's map needs a"),
        (
            "blocks.0",
            {"batch_norm": "blocks.0.bn1"},
            "batch_norm blocks.0.bn1 is a BatchNorm2d of 6 channels; the tea",
        ),
        ("blocks.0", {"margin": 0.5}, "margin is 0 or less; found 0.5"),
    ],
)
def test_margins_that_cannot_be_had_are_an_error(layer, arguments, message):
    features = (Feature(layer, "output"),)
    with pytest.raises(ConfigError, match=re.escape(message)):
        MarginReLU(MAP, MAP, teacher_model=teacher_of(), teacher_features=features, **arguments)


def test_without_a_teacher_model_the_error_names_what_would_do():
    with pytest.raises(ConfigError, match=r"the feature is no module path .* or \{margin: NUMBER\}"):
        MarginReLU(MAP, MAP)


def test_margins_are_taken_from_the_teacher_when_bound_and_saved_with_the_loss():
    model, teacher = teacher_of(), torch.randn(2, 4, 3, 3)
    entry = {"student": "layer1.feature", "teacher": "blocks.1.output", "loss": "margin_relu", "name": "it"}
    loss_model = MultiLayerBasedDistillationLoss([entry])
    features = {Feature("layer1", "feature"): torch.randn(2, 6, 3, 3)}, {Feature("blocks.1", "output"): teacher}
    context = make_context({"pixel_values": teacher})
    loss_model.bind(loss_model.config.check().entries[0], *features, "map", context, teacher_model=model)
    expected = margins_of(model["blocks"][1].bn2).float()
    assert torch.equal(loss_model.state_dict()["losses.it.margins"], expected)
    assert loss_model.projections["it"].weight.shape[:2] == (4, 6)

"""WRN and ShuffleNetV2: the papers' sizes and shapes, names before and after the ReLU, what transformers expects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForImageClassification

from knowledge_distillation import ConfigError
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.losses.activation import batch_norm_of
from knowledge_distillation.models import (
    ShuffleNetV2Config,
    ShuffleNetV2ForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)
from knowledge_distillation.presets.stage_ends import ModelStage, paired_stages

KINDS = {
    "wide_resnet": {"depth": 10, "widen_factor": 2},
    "shufflenet_v2": {"width_multiplier": 0.5, "stem": "cifar", "image_size": 32},
}


def config(kind: str, **fields):
    return AutoConfig.for_model(kind, **{**KINDS.get(kind, {}), **fields})


def model(kind: str, **fields):
    return AutoModelForImageClassification.from_config(config(kind, **fields))


def parameters(kind: str, **fields) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in model(kind, **fields).parameters())


@pytest.mark.parametrize(
    ("depth", "widen_factor", "num_labels", "number"),
    [
        (16, 1, 10, 175_066),
        (16, 2, 10, 691_674),
        (16, 2, 100, 703_284),
        (28, 4, 10, 5_849_050),
        (28, 4, 100, 5_872_180),
        (40, 2, 10, 2_243_546),
        (40, 2, 100, 2_255_156),
        (28, 10, 10, 36_479_194),
        (28, 10, 100, 36_536_884),
    ],
)
def test_a_wrn_has_the_parameters_of_the_paper(depth, widen_factor, num_labels, number):
    assert parameters("wide_resnet", depth=depth, widen_factor=widen_factor, num_labels=num_labels) == number


@pytest.mark.parametrize(("width", "number"), [(0.5, 1_366_792), (1, 2_278_604), (1.5, 3_503_624), (2.0, 7_393_996)])
def test_a_shufflenet_has_the_parameters_of_the_paper(width, number):
    assert parameters("shufflenet_v2", width_multiplier=width, num_labels=1000, stem="imagenet") == number


@pytest.mark.parametrize(
    ("kind", "size", "shapes"),
    [
        ("wide_resnet", 32, [(16, 32), (32, 32), (64, 16), (128, 8)]),
        ("shufflenet_v2", 32, [(24, 32), (48, 16), (96, 8), (192, 4), (1024, 4)]),
    ],
)
def test_hidden_states_are_the_stages(kind, size, shapes):
    output = model(kind, num_labels=5)(torch.randn(2, 3, size, size), output_hidden_states=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, c, s, s) for c, s in shapes]
    assert output.logits.shape == (2, 5) and output.loss is None


def test_the_stem_of_imagenet_quarters_the_picture():
    output = model("shufflenet_v2", stem="imagenet")(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    assert [state.shape[-1] for state in output.hidden_states] == [16, 8, 4, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_forms_of_transformers(kind):
    net = model(kind, num_labels=3).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    output = net(pixels, labels=labels)
    assert output.hidden_states is None
    assert torch.equal(output.loss, F.cross_entropy(output.logits, labels))
    loss, logits, states = net(pixels, labels=labels, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits) and len(states) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_same_model(kind, tmp_path):
    net = model(kind, num_labels=3, id2label={0: "cat", 1: "dog", 2: "owl"}).eval()
    net.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = torch.randn(2, 3, 32, 32)
    assert type(loaded) is type(net) and torch.equal(loaded.eval()(pixels).logits, net(pixels).logits)
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert all(getattr(loaded.config, key) == value for key, value in KINDS[kind].items())


@pytest.mark.parametrize("kind", KINDS)
def test_names_before_and_after_the_relu(kind):
    net, pixels = model(kind).eval(), torch.randn(2, 3, 32, 32)
    names = catalogue(net, {"pixel_values": pixels})
    numbers = range(1, names.depth() + 1)
    pairs = {n: (Feature(f"stage{n}.activation", "input"), Feature(f"layer{n}", "hidden_states")) for n in numbers}
    places = {feature: names.find(feature).location for pair in pairs.values() for feature in pair}
    capture = Capture(net, places)
    taken = capture({"pixel_values": pixels})
    capture.close()
    states = net(pixels, output_hidden_states=True).hidden_states
    for n, (before, after) in pairs.items():
        assert torch.equal(taken[after], states[n]) and (taken[before] < 0).any()
        assert torch.equal(taken[before].relu(), taken[after])


def test_a_wrn_is_the_papers_blocks():
    """The forward pass, written out block by block as the paper orders it: BatchNorm, ReLU, convolution."""
    net = model("wide_resnet", depth=16, widen_factor=2).eval()
    hidden = net.stem(torch.randn(2, 3, 32, 32))
    pixels = hidden
    norms = {0: net.stage1.blocks[0].norm1, 1: net.stage1.norm, 2: net.stage2.norm}
    for number, stage in enumerate((net.stage1, net.stage2, net.stage3)):
        for place, block in enumerate(stage.blocks):
            first = norms[number] if place == 0 else block.norm1
            activated = F.relu(first(hidden))
            inner = F.relu(block.norm2(F.conv2d(activated, block.conv1.weight, stride=block.conv1.stride, padding=1)))
            shortcut = hidden if block.shortcut is None else block.shortcut(activated)
            hidden = F.conv2d(inner, block.conv2.weight, padding=1) + shortcut
            assert (block.shortcut is None) == (place > 0)
    vector = F.relu(net.stage3.norm(hidden)).mean((2, 3))
    states = [pixels]
    for stage in (net.stage1, net.stage2, net.stage3):
        states.append(stage(states[-1]))
    assert torch.allclose(net.classifier(vector), net.classifier(states[-1].mean((2, 3))), atol=1e-5)


def test_a_shuffled_half_comes_through_a_unit_unchanged():
    unit = model("shufflenet_v2").stage1.units[1].eval()
    hidden = torch.randn(2, 48, 8, 8).relu()
    out = unit(hidden)
    assert torch.equal(out[:, ::2], hidden[:, :24]) and torch.equal(out[:, 1::2], unit.branch(hidden[:, 24:]))


def test_the_batch_norm_of_a_stage_is_found():
    net = model("wide_resnet")
    for n, width in enumerate(net.config.hidden_sizes, start=1):
        stage = getattr(net, f"stage{n}")
        assert batch_norm_of(net, [Feature(f"stage{n}.activation", "input")], width) is stage.norm
        assert batch_norm_of(net, [Feature(f"stage{n}.norm", "output")], width) is stage.norm


def test_dropout_is_between_the_convolutions():
    net = model("wide_resnet", dropout=0.5)
    pixels = torch.randn(2, 3, 32, 32)
    assert not torch.equal(net.train().stage1(net.stem(pixels)), net.stage1(net.stem(pixels)))
    assert net.stage2.blocks[0].dropout.p == 0.5


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("wide_resnet", {"depth": 17}, r"is 10, 16, 22, 28, 34, 40, …: 6n \+ 4; found 17"),
        ("wide_resnet", {"depth": 4}, "found 4"),
        ("wide_resnet", {"widen_factor": 0}, "widen_factor of a wide_resnet is 1 or more; found 0"),
        ("shufflenet_v2", {"width_multiplier": 0.75}, "is one of 0.5, 1.0, 1.5, 2.0; found 0.75"),
        ("shufflenet_v2", {"stem": "cifra"}, "the stem of a shufflenet_v2 is one of imagenet, cifar; found 'cifra'"),
    ],
)
def test_shapes_that_no_paper_has(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        config(kind, **fields)


def test_the_rooms_hold_the_names():
    assert isinstance(model("wide_resnet"), WideResNetForImageClassification)
    assert isinstance(model("shufflenet_v2"), ShuffleNetV2ForImageClassification)
    assert isinstance(config("wide_resnet"), WideResNetConfig)
    assert isinstance(config("shufflenet_v2"), ShuffleNetV2Config)


# --- the ends of stages ----------------------------------------------------------------------------------------------

MAPS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
}


def layers_of(pairs: list[tuple[ModelStage, ModelStage]]) -> list[tuple[int, int]]:
    return [(one.layer, other.layer) for one, other in pairs]


def test_stages_are_paired_from_the_last():
    wide, shuffle = config("wide_resnet"), config("shufflenet_v2")
    assert layers_of(paired_stages(wide, wide)) == [(1, 1), (2, 2), (3, 3)]
    assert layers_of(paired_stages(wide, shuffle)) == [(1, 1), (2, 2), (3, 4)]
    assert layers_of(paired_stages(config("resnet", **MAPS["resnet"]), wide)) == [(1, 2), (2, 3)]
    assert [one.layer for one, _ in paired_stages(*[config("mobilenet_v2", **MAPS["mobilenet_v2"])] * 2)] == [
        1,
        4,
        11,
        15,
    ]
    assert layers_of(paired_stages(*[config("convnext", **MAPS["convnext"])] * 2)) == [(i, i) for i in range(1, 5)]


def test_layers_of_one_size_are_divided():
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    vits = [config("vit", num_hidden_layers=n, **small) for n in (12, 6, 3)]
    assert layers_of(paired_stages(vits[0], vits[1])) == [(3, 2), (6, 3), (9, 4), (12, 6)]
    assert layers_of(paired_stages(vits[0], vits[2])) == [(4, 1), (8, 2), (12, 3)]
    assert layers_of(paired_stages(vits[0], config("wide_resnet"))) == [(12, 3)]
    bert = config("bert", num_hidden_layers=2)
    assert layers_of(paired_stages(config("bert"), bert)) == [(6, 1), (12, 2)]


def test_what_goes_into_the_last_relu_of_a_stage():
    stages = [one for one, _ in paired_stages(*[config("resnet", **MAPS["resnet"])] * 2)]
    assert [stage.before for stage in stages] == [
        "resnet.encoder.stages.0.layers.0.activation.input",
        "resnet.encoder.stages.1.layers.1.activation.input",
    ]
    assert all(stage.normalised for stage in stages)
    shuffle = [one for one, _ in paired_stages(*[config("shufflenet_v2")] * 2)]
    assert [stage.normalised for stage in shuffle] == [False, False, True]
    convnext = [one for one, _ in paired_stages(*[config("convnext", **MAPS["convnext"])] * 2)]
    assert [stage.before for stage in convnext] == [f"layer{n}.hidden_states" for n in range(1, 5)]


def test_looking_at_stages_changes_no_random_number():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    paired_stages(config("wide_resnet"), config("wide_resnet"))
    assert torch.equal(torch.rand(2), wanted)


def test_models_whose_layers_cannot_be_told():
    with pytest.raises(ConfigError, match="the layers of T5Config cannot be told: write the entries out"):
        paired_stages(config("t5"), config("wide_resnet"))
    with pytest.raises(ConfigError, match="needs a teacher and a student, whose layers it pairs"):
        paired_stages(None, config("wide_resnet"))


def test_import_of_the_models_is_lazy(tmp_path: Path):
    import subprocess
    import sys

    code = (
        "import sys, knowledge_distillation.models; print('knowledge_distillation.models.wide_resnet' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.strip() == "False"

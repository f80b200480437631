"""Students cut out of teachers: the chosen layers and all around them, as a model of its own."""

from __future__ import annotations

import re

import pytest
import torch
from families import FAMILIES, TWO_STACKS, Tiny
from tolerance import assert_near
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from knowledge_distillation import MultiLayerBasedDistillationLoss, student_from_teacher
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.plan.bind import bind
from knowledge_distillation.teachers.frozen import FrozenTeacher

CUTTABLE = tuple(family for family in FAMILIES if family not in ("swin", "resnet"))
SHARED = ("albert",)  # one set of weights is every layer
PREFIX = {
    "bert": "bert.encoder.layer.",
    "roberta": "roberta.encoder.layer.",
    "deberta-v2": "deberta.encoder.layer.",
    "mpnet": "mpnet.encoder.layer.",
    "modernbert": "model.layers.",
    "gpt2": "transformer.h.",
    "llama": "model.layers.",
    "vit": "vit.layers.",
    "t5": r"(?:encoder|decoder).block.",
    "bart": r"model.(?:encoder|decoder).layers.",
}


def layers(family: str, chosen: list[int], decoder: list[int] | None = None):
    """`chosen` in the form the family takes; `decoder` counts of two layers."""
    return {"encoder": chosen, "decoder": decoder or [2]} if family in TWO_STACKS else chosen


def logits(model: PreTrainedModel, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


def bound(tiny_model: Tiny, student: PreTrainedModel, config):
    plan = bind(
        MultiLayerBasedDistillationLoss(config),
        {"": student},
        {"": FrozenTeacher(tiny_model.model)},
        {"": tiny_model.inputs},
        {"": tiny_model.inputs},
    )
    plan.close()
    return plan


# --- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CUTTABLE)
def test_every_layer_reproduces_the_teacher_exactly(tiny, family):
    model = tiny(family)
    student = student_from_teacher(model.model, layers(family, [1, 2, 3], [1, 2]))
    assert type(student) is type(model.model)
    assert torch.equal(logits(student, model.inputs), logits(model.model, model.inputs))


@pytest.mark.parametrize("chosen", [[1, 3], [1, -1]], ids=["positive", "negative"])
@pytest.mark.parametrize("family", [f for f in CUTTABLE if f not in SHARED])
def test_weights_are_those_of_the_chosen_layers(tiny, family, chosen):
    model = tiny(family)
    student = student_from_teacher(model.model, layers(family, chosen, [1, -1] if chosen[1] < 0 else [1, 2]))
    theirs, ours = model.model.state_dict(), student.state_dict()
    pattern = re.compile(rf"({PREFIX[family]})(\d+)\.")
    moved = 0
    for name, weight in ours.items():
        found = pattern.match(name)
        source = name
        if found and "decoder." not in found[1]:
            source = f"{found[1]}{(0, 2)[int(found[2])]}.{name[found.end() :]}"
            moved += found[2] == "1"
        assert torch.equal(weight, theirs[source]), name
    assert moved > 3
    assert len(ours) < len(theirs)


@pytest.mark.parametrize("family", CUTTABLE)
def test_the_chosen_layers_run_as_the_teachers_do(tiny, family):
    """Dropping the last layer: what the student gives is what the teacher has one layer earlier."""
    model = tiny(family)
    student = student_from_teacher(model.model, layers(family, [1, 2], [1]))
    for stack, side in model.stacks.items():
        field, last = f"{side}hidden_states", student.eval()(**model.inputs, output_hidden_states=True)
        theirs = model.model(**model.inputs, output_hidden_states=True)
        depth = 1 if stack == "decoder_layer" else 2
        assert len(last[field]) == depth + 1
        if stack == "decoder_layer":  # its encoder is another one
            continue
        for n in range(depth):  # the last is the final norm's where a model has one
            assert_near(last[field][n], theirs[field][n])


@pytest.mark.parametrize("family", CUTTABLE)
def test_the_teacher_stays_as_it_is(tiny, family):
    model = tiny(family)
    model.model.train()
    state = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    config = model.model.config.to_dict()
    student = student_from_teacher(model.model, layers(family, [1, 3], [1]))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.state_dict().items())
    assert model.model.config.to_dict() == config
    assert model.model.training
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_student_is_in_its_teachers_mode(tiny):
    assert not student_from_teacher(tiny("bert").model.eval(), [1]).training


@pytest.mark.parametrize("family", CUTTABLE)
def test_a_student_is_saved_and_loaded_as_any_model(tiny, family, tmp_path):
    model = tiny(family)
    student = student_from_teacher(model.model, layers(family, [1, 3], [2]))
    student.save_pretrained(tmp_path)
    loaded, report = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(loaded, model.inputs), logits(student, model.inputs))
    assert loaded.config.num_hidden_layers == 2


def test_a_layer_may_be_taken_twice_and_in_any_order(tiny):
    model = tiny("bert").model
    student = student_from_teacher(model, [3, 1, 3])
    theirs, ours = model.bert.encoder.layer, student.bert.encoder.layer
    for mine, source in zip(ours, (2, 0, 2), strict=True):
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight, theirs[source].state_dict()[name])
    assert ours[0].output.dense.weight is not ours[2].output.dense.weight


def test_tied_weights_stay_tied(tiny):
    student = student_from_teacher(tiny("gpt2").model, [1, 3])
    assert student.lm_head.weight is student.transformer.wte.weight


def test_one_side_of_an_encoder_decoder_may_stay_whole(tiny):
    model = tiny("t5")
    student = student_from_teacher(model.model, {"decoder": [1]})
    assert (student.config.num_layers, student.config.num_decoder_layers) == (3, 1)
    whole = student_from_teacher(model.model, {"encoder": [1, 2, 3]})
    assert torch.equal(logits(whole, model.inputs), logits(model.model, model.inputs))


def test_t5_keeps_its_position_bias_whichever_layer_comes_first(tiny):
    """The bias of all layers lives in the first one."""
    model = tiny("t5").model
    student = student_from_teacher(model, {"encoder": [2, 3], "decoder": [2]})
    for ours, theirs in ((student.encoder, model.encoder), (student.decoder, model.decoder)):
        one, other = (stack.block[0].layer[0].SelfAttention for stack in (ours, theirs))
        assert torch.equal(one.relative_attention_bias.weight, other.relative_attention_bias.weight)
    assert torch.equal(
        student.encoder.block[0].layer[0].SelfAttention.q.weight,
        model.encoder.block[1].layer[0].SelfAttention.q.weight,
    )


def test_lists_of_one_value_per_layer_are_cut_as_well(tiny, tmp_path):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = tiny("modernbert", layer_types=kinds)
    student = student_from_teacher(model.model, [1, 2])
    assert student.config.layer_types == kinds[:2]
    student = student_from_teacher(model.model, [1, 3])
    assert student.config.layer_types == [kinds[0], kinds[2]]
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.layer_types == [kinds[0], kinds[2]]
    assert model.model.config.layer_types == kinds


def test_a_layer_that_is_built_differently_cannot_move(tiny):
    """ModernBERT's first layer has no norm before attention, so it can be no other layer."""
    message = (
        "layers [2, 1] of ModernBertForSequenceClassification: layer 2 as layer 1 would lose attn_norm.weight; "
        "layer 1 as layer 2 lacks attn_norm.weight; layer 1 of such a student can be 1; "
        "layer 2 of such a student can be 2, 3"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        student_from_teacher(tiny("modernbert").model, [2, 1])


def test_a_sliding_layer_attends_as_it_did_in_the_teacher(tiny):
    model = tiny("modernbert", layer_types=["full_attention", "full_attention", "sliding_attention"])
    student = student_from_teacher(model.model, [1, 3]).eval()
    student.set_attn_implementation("eager")
    with torch.no_grad():
        maps = student(**model.inputs, output_attentions=True).attentions
    assert float(maps[0][0, 0, 0, 6]) > 0
    assert float(maps[1][0, 0, 0, 6]) == 0


# --- the config that maps the kept layers ----------------------------------------------------------


@pytest.mark.parametrize("family", CUTTABLE)
def test_the_returned_config_binds(tiny, family):
    model = tiny(family)
    student, config = student_from_teacher(model.model, layers(family, [1, 3], [2]), return_config=True)
    plan = bound(model, student, config)
    stacks = len(model.stacks)
    kept = 3 if stacks == 2 else 2
    assert len(plan.rows) == stacks + 2 * kept + 1
    assert all(row[3] == "-" for row in plan.rows)  # no projection: equal widths


def test_the_returned_config_maps_each_layer_onto_its_source(tiny):
    _, config = student_from_teacher(tiny("bert").model, [-3, 3], return_config=True)
    assert config == [
        {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "mse"},
        {"teacher": "layer{1,3}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
        {"teacher": "layer{1,3}.attention", "student": "layer{1,2}.attention", "loss": "mse"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
    ]


def test_the_config_of_two_stacks_names_both(tiny):
    _, config = student_from_teacher(tiny("bart").model, {"encoder": [2], "decoder": [1, 2]}, return_config=True)
    assert [entry["teacher"] for entry in config] == [
        "encoder_embedding_layer.embedding",
        "encoder_layer2.hidden_states",
        "encoder_layer2.attention",
        "decoder_embedding_layer.embedding",
        "decoder_layer{1,2}.hidden_states",
        "decoder_layer{1,2}.attention",
        "output.logits",
    ]


def test_a_student_of_all_layers_has_no_loss_to_its_teacher(tiny):
    model = tiny("bert", dropout=0.0)
    student, config = student_from_teacher(model.model, [1, 2, 3], return_config=True)
    output, reference = (m(**model.inputs, output_hidden_states=True) for m in (student, model.model))
    states = [entry for entry in config if "attention" not in entry["teacher"]]
    loss = MultiLayerBasedDistillationLoss(states)
    assert loss(reference, output, model.inputs, model.inputs).item() < 1e-7
    with torch.no_grad():
        student.bert.encoder.layer[0].output.dense.weight.add_(torch.randn(16, 24))
    output = student(**model.inputs, output_hidden_states=True)
    assert loss(reference, output, model.inputs, model.inputs).item() > 1e-2


# --- what cannot be cut ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "chosen", "message"),
    [
        ("bert", [1, 4], "layers [1, 4]: BertForSequenceClassification has layers 1 to 3; found [4]"),
        ("bert", [0], "layers [0]: BertForSequenceClassification has layers 1 to 3; found [0]"),
        ("bert", [-4, 5, 1], "layers [-4, 5, 1]: BertForSequenceClassification has layers 1 to 3; found [-4, 5]"),
        ("bert", [], "layers []: BertForSequenceClassification has layers 1 to 3; found none"),
        ("t5", {"decoder": [3]}, "decoder: layers [3]: T5ForConditionalGeneration has layers 1 to 2; found [3]"),
        (
            "t5",
            {"encoder": [2, 5], "decoder": [9]},
            "encoder: layers [2, 5]: T5ForConditionalGeneration has layers 1 to 3; found [5]; decoder: layers [9]: ",
        ),
        (
            "bert",
            {"encoder": [1]},
            "layers of BertForSequenceClassification are given as a list of layer numbers; found {'encoder': [1]}",
        ),
        (
            "bart",
            [1, 2],
            "layers of BartForConditionalGeneration are given as "
            'a mapping {"encoder": [...], "decoder": [...]}; found [1, 2]',
        ),
        ("t5", {"encoders": [1]}, "layers name 'encoder' and 'decoder'; found ['encoders']"),
        (
            "swin",
            [1],
            "SwinForImageClassification has stages of different widths, so layers cannot be cut out of it one by one",
        ),
        (
            "resnet",
            [1],
            "ResNetForImageClassification has stages of different widths, so layers cannot be cut out",
        ),
    ],
)
def test_what_cannot_be_cut(tiny, family, chosen, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        student_from_teacher(tiny(family).model, chosen)


@pytest.mark.parametrize(
    ("chosen", "message"), [([2, 2], "hold 2 more than once"), ([3, 1], "are not in the teacher's order")]
)
def test_layers_twice_or_in_another_order_are_warned_of(tiny, chosen, message):
    with pytest.warns(
        UserWarning, match=re.escape(f"layers {chosen} of BertForSequenceClassification {message}")
    ) as seen:
        student_from_teacher(tiny("bert").model, chosen)
    assert seen[0].filename == __file__


def test_a_model_whose_config_does_not_build_it(tiny):
    model = tiny("bert").model
    model.config = PretrainedConfig()
    with pytest.raises(ConfigError, match="BertForSequenceClassification cannot be built from its config alone"):
        student_from_teacher(model, [1])

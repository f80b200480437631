"""Adaptors: batches into the inputs of two models, and the outputs of any model into named features."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from families import FAMILIES, TWO_STACKS, WITH_INTERFACE, eager_twin, hooks_left_on, take
from tolerance import assert_near
from torch import nn
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError, DataError
from knowledge_distillation.features import attention
from knowledge_distillation.features.adaptors import (
    AdaptedOutput,
    UnpackableOutput,
    flatten,
    readable,
    ready_made_output,
)
from knowledge_distillation.features.inputs import forward_inputs, named_inputs, same_inputs

LOGITS = Feature("output", "logits")
CPU = torch.device("cpu")


# --- outputs that unpack ---------------------------------------------------------------------------


def bert_output(tiny, **flags):
    model = tiny("bert")
    model.model.set_attn_implementation("eager")
    return UnpackableOutput(model.model.bert(**model.inputs, **flags))


def test_the_classic_four_way_unpack_of_berts_output(tiny):
    output = bert_output(tiny, output_hidden_states=True, output_attentions=True)
    last, pooled, hidden_states, attentions = output
    assert last is output.last_hidden_state
    assert pooled is output.pooler_output
    assert hidden_states is output.hidden_states
    assert attentions is output.attentions
    assert (len(hidden_states), len(attentions)) == (4, 3)


def test_what_was_not_asked_for_is_absent(tiny):
    output = bert_output(tiny)
    last, pooled = output
    assert (len(output), last.shape, pooled.shape) == (2, (2, 7, 16), (2, 16))
    assert list(output.keys()) == ["last_hidden_state", "pooler_output"]


@pytest.mark.parametrize("absent", [None, ()])
def test_none_and_an_empty_tuple_are_absent_and_a_tensor_never_is(absent):
    state = torch.empty(0)
    output = UnpackableOutput({"loss": absent, "logits": state, "attentions": absent})
    assert list(output) == [state]
    assert "loss" not in output
    assert "logits" in output
    assert output.get("attentions", "none") == "none"
    with pytest.raises(KeyError, match="attentions"):
        output["attentions"]
    with pytest.raises(AttributeError, match="this model output has no 'attentions'; it has: logits"):
        output.attentions  # noqa: B018


def test_the_same_field_by_attribute_key_position_and_slice():
    fields = {"logits": torch.ones(1), "hidden_states": (torch.ones(2), torch.ones(3))}
    output = UnpackableOutput({**fields, "attentions": None})
    assert output.logits is output["logits"] is output[0] is output[-2] is fields["logits"]
    assert output[1:] == (fields["hidden_states"],)
    assert output[:2] == output.to_tuple() == tuple(output) == tuple(output.values()) == tuple(fields.values())
    assert dict(output.items()) == dict(fields)
    assert output.get("hidden_states") is fields["hidden_states"]
    with pytest.raises(IndexError, match="out of range"):
        output[2]


def test_an_output_is_copied_as_any_object():
    output = UnpackableOutput({"logits": torch.ones(1)})
    twin = copy.deepcopy(output)
    assert torch.equal(twin.logits, output.logits)
    assert twin.logits is not output.logits
    with pytest.raises(AttributeError, match="_missing"):
        output._missing  # noqa: B018


def test_only_outputs_of_transformers_are_wrapped():
    logits = torch.ones(2)
    assert isinstance(readable(SequenceClassifierOutput(logits=logits)), UnpackableOutput)
    for plain in (logits, (logits,), {"logits": logits}):
        assert readable(plain) is plain


# --- ready-made names of an output -----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_ready_made_names_of_an_output(tiny, family):
    model = tiny(family)
    whole = eager_twin(model.model)(
        **model.inputs, output_hidden_states=True, output_attentions=bool(model.attentions)
    )
    features = flatten(ready_made_output(readable(whole)))
    assert features[LOGITS] is whole.logits
    ours = {**model.hidden_states, **{n: at for n, at in model.attentions.items() if "cross_" not in n}}
    for name, (field, position) in ours.items():
        assert features[Feature(*name.rsplit(".", 1))] is whole[field][position]


def test_a_tensor_alone_is_logits():
    logits = torch.ones(2, 3)
    assert flatten(ready_made_output(logits)) == {LOGITS: logits}


@pytest.mark.parametrize("wrong", [None, [1], {"output": torch.ones(1)}, {"output": {"logits": 1}, "layer1": None}])
def test_what_an_output_adaptor_returns_has_one_form(wrong):
    with pytest.raises(ConfigError, match=re.escape('an output adaptor returns {"layer": {"output": tensor}}')):
        flatten(wrong)


# --- a user's output adaptor -----------------------------------------------------------------------


@pytest.fixture
def adapted():
    """`adapted(tiny_model, adaptor, *names)`: an AdaptedOutput that is closed after the test."""
    opened = []

    def open_adapted(model, adaptor, *names: str) -> AdaptedOutput:
        wanted = [Feature(*name.rsplit(".", 1)) for name in names]
        opened.append(AdaptedOutput(model.model, adaptor, wanted, model.inputs, "student"))
        return opened[-1]

    yield open_adapted
    for one in opened:
        one.close()


def only_logits(output):
    return {"output": {"logits": output.logits}}


def by_hidden_state(output):
    return {**only_logits(output), "bert_layer2": {"hidden_states": output.hidden_states[2]}}


def by_attention(output):
    return {**by_hidden_state(output), "bert_layer2_attention": {"map": output.attentions[1]}}


def by_mean_map(output):
    return {"map_of_layer2": {"mean": output.attentions[1].mean(1)}}


def by_unpacking(output):
    logits, hidden_states, attentions = output
    return {"output": {"logits": logits}, "top": {"hidden_states": hidden_states[-1], "map": attentions[-1]}}


def forgiving(output):
    """Gives what it finds and never fails, so that a wanted name may be missing."""
    layers = {f"layer{n}": {"hidden_states": t} for n, t in enumerate(output.get("hidden_states", ())) if n}
    return {**only_logits(output), **layers}


@pytest.mark.parametrize(
    ("adaptor", "names", "flags"),
    [
        (only_logits, ["output.logits"], (False, False)),
        (by_hidden_state, ["bert_layer2.hidden_states"], (True, False)),
        (forgiving, ["output.logits"], (False, False)),
        (forgiving, ["layer3.hidden_states", "output.logits"], (True, False)),
        (by_attention, ["bert_layer2_attention.map"], (True, True)),
        (by_unpacking, ["top.map", "top.hidden_states"], (True, True)),
    ],
)
def test_no_more_is_switched_on_than_the_adaptor_needs(tiny, adapted, adaptor, names, flags):
    one = adapted(tiny("bert"), adaptor, *names)
    assert (one.flags["output_hidden_states"], one.flags["output_attentions"]) == flags
    assert one.flags["return_dict"] is True


def test_the_models_own_settings_are_tried_first(tiny, adapted):
    model = tiny("bert", output_hidden_states=True)
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    one = adapted(model, by_hidden_state, "bert_layer2.hidden_states")
    assert len(passes) == 1
    assert one.flags["output_attentions"] is False
    assert adapted(model, only_logits, "output.logits").flags["output_hidden_states"] is True


@pytest.mark.parametrize(
    ("family", "training"),
    [(f, False) for f in FAMILIES if f not in ("swin", "resnet")] + [(f, True) for f in WITH_INTERFACE if f != "swin"],
)
def test_an_adaptors_features_are_the_ready_made_ones(tiny, adapted, family, training):
    """Maps come before dropout here as well: so they equal the ready-made ones in training too."""
    model = tiny(family, dropout=0.3)
    model.model.train(training)
    names = [*model.hidden_states, *(name for name in model.attentions if "cross_" not in name), "output.logits"]
    one = adapted(model, ready_made_output, *names)
    torch.manual_seed(4)
    given = one(model.inputs)
    expected = take(model.model, model.inputs, *names, seed=4)
    assert [str(feature) for feature in given] == names
    for feature, tensor in given.items():
        assert_near(tensor, expected[str(feature)])


def test_gradients_flow_through_an_adaptor(tiny, adapted):
    model = tiny("bert")
    features = adapted(model, by_attention, "bert_layer2_attention.map", "bert_layer2.hidden_states")(model.inputs)
    sum(tensor.square().sum() for tensor in features.values()).backward()
    assert float(model.model.bert.encoder.layer[0].output.dense.weight.grad.abs().max()) > 0


def test_a_misspelled_name_gives_the_nearest(tiny):
    model = tiny("bert")
    wanted = [Feature("bert_layer2", "hidden_state")]
    message = "bert_layer2.hidden_state: the student's output adaptor gives no such feature. "
    message += "Nearest: bert_layer2.hidden_states."
    with pytest.raises(ConfigError, match=re.escape(message)):
        AdaptedOutput(model.model, by_hidden_state, wanted, model.inputs, "student")


def test_a_misspelled_name_gives_the_nearest_where_the_adaptor_needs_maps(tiny):
    model = tiny("bert")
    message = "map_of_layer2.means: the teacher's output adaptor gives no such feature. Nearest: map_of_layer2.mean"
    with pytest.raises(ConfigError, match=re.escape(message)):
        AdaptedOutput(model.model, by_mean_map, [Feature("map_of_layer2", "means")], model.inputs, "teacher")
    assert model.model.config._attn_implementation == "sdpa"


def fails_with_an_index(output):
    return {"output": {"logits": output.hidden_states[99]}}


def fails_with_a_key(output):
    return {"output": {"logits": output["scores"]}}


def fails_by_unpacking(output):
    one, two, three, four, five = output
    return {}


def returns_nothing(output):
    return None


@pytest.mark.parametrize(
    ("adaptor", "message"),
    [
        (fails_with_an_index, "the student's output adaptor failed: IndexError: tuple index out of range"),
        (fails_with_a_key, "the student's output adaptor failed: KeyError: 'scores'"),
        (
            fails_by_unpacking,
            "the student's output adaptor failed: ValueError: not enough values to unpack (expected 5, got 3)",
        ),
        (returns_nothing, 'an output adaptor returns {"layer": {"output": tensor}}'),
        (
            lambda output: {"output": {"logits": output.scores}},
            "this model output has no 'scores'; it has: logits, hidden_states, attentions",
        ),
    ],
)
def test_what_an_adaptor_raises_is_told_in_one_kind_of_error(tiny, adaptor, message):
    model = tiny("bert")
    with pytest.raises(ConfigError, match=re.escape(message)):
        AdaptedOutput(model.model, adaptor, [LOGITS], model.inputs, "student")
    assert model.model.config._attn_implementation == "sdpa"


def test_closing_puts_the_model_back(tiny):
    model = tiny("bert")
    before = model.model(**model.inputs).logits
    one = AdaptedOutput(model.model, by_attention, [LOGITS], model.inputs, "student")
    one(model.inputs)
    assert model.model.config._attn_implementation == attention.IMPLEMENTATION
    one.close()
    one.close()
    assert model.model.config._attn_implementation == "sdpa"
    assert not attention._observers
    assert not hooks_left_on(model.model)
    assert torch.equal(model.model(**model.inputs).logits, before)


def test_maps_are_built_only_where_the_adaptor_asks_for_them(tiny, adapted, monkeypatch):
    built, original = [], attention.attention_scores

    def counted(*args, **kwargs):
        built.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(attention, "attention_scores", counted)
    model = tiny("bert")
    one = adapted(model, by_hidden_state, "bert_layer2.hidden_states")
    one(model.inputs)
    assert not built
    one = adapted(model, by_attention, "bert_layer2_attention.map")
    built.clear()
    one(model.inputs)
    assert len(built) == 3


def test_a_model_of_ones_own_gives_its_output_as_it_is():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, features):
            hidden = self.layer(features)
            return hidden, self.head(hidden)

    model, batch = Own(), {"features": torch.randn(3, 4)}

    def adaptor(output):
        hidden, logits = output
        return {"own": {"hidden": hidden}, "output": {"logits": logits}}

    one = AdaptedOutput(model, adaptor, [Feature("own", "hidden")], batch, "student")
    assert one.flags == {}
    assert torch.equal(one(batch)[Feature("own", "hidden")], model.layer(batch["features"]))
    one.close()


# --- inputs ----------------------------------------------------------------------------------------


def test_a_tuple_is_named_by_the_order_of_forwards_parameters(tiny):
    model = tiny("bert")
    ids, mask = model.inputs["input_ids"], model.inputs["attention_mask"]
    assert named_inputs((ids, mask), model.model, "student") == {"input_ids": ids, "attention_mask": mask}
    assert named_inputs([ids], model.model, "student") == {"input_ids": ids}
    assert named_inputs(ids, model.model, "student") == {"input_ids": ids}
    pixels = tiny("vit").inputs["pixel_values"]
    assert named_inputs((pixels,), tiny("vit").model, "student") == {"pixel_values": pixels}


def test_a_mapping_is_copied():
    batch = {"input_ids": torch.ones(1)}
    given = named_inputs(batch, nn.Linear(1, 1), "student")
    assert given == batch
    assert given is not batch


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "the data adaptor returned NoneType for the teacher; a dict or a tuple is needed"),
        ("text", "the data adaptor returned str for the teacher; a dict or a tuple is needed"),
        (3, "the data adaptor returned int for the teacher; a dict or a tuple is needed"),
        (({"a": 1}, 2), "the data adaptor returned 2 inputs for the teacher, whose forward takes 1"),
    ],
)
def test_inputs_in_a_wrong_form(values, message):
    with pytest.raises(DataError, match=message):
        named_inputs(values, nn.Linear(1, 1), "teacher")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_forward_takes_reaches_the_model_and_labels_never_do(tiny, family):
    model = tiny(family)
    batch = {**model.inputs, "labels": torch.zeros(2, dtype=torch.long), "idx": torch.arange(2), "text": ["a", "b"]}
    given = forward_inputs(batch, model.model)
    assert given.keys() == model.inputs.keys()
    assert all(given[key] is batch[key] for key in given)
    assert model.model(**given).loss is None


def test_a_student_need_not_take_what_its_teacher_does(tiny):
    batch = {**tiny("bert").inputs, "token_type_ids": torch.zeros(2, 7, dtype=torch.long)}
    assert "token_type_ids" in forward_inputs(batch, tiny("bert").model)
    assert "token_type_ids" not in forward_inputs(batch, tiny("mpnet").model)


@pytest.mark.parametrize("family", TWO_STACKS)
def test_an_encoder_decoder_makes_its_decoders_input_of_the_labels(tiny, family):
    model = tiny(family)
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    batch = {key: value for key, value in model.inputs.items() if key != "decoder_input_ids"} | {"labels": labels}
    given = forward_inputs(named_inputs(batch, model.model), model.model)
    start, pad = model.model.config.decoder_start_token_id, model.model.config.pad_token_id
    assert given["decoder_input_ids"].tolist() == [[start, 5, 6], [start, 7, 2]]
    assert pad is not None
    assert "labels" not in given
    output = model.model(**given)
    assert torch.equal(output.logits, model.model(**batch).logits)
    assert output.loss is None


def test_an_input_of_the_decoder_that_is_given_is_kept(tiny):
    model = tiny("t5")
    batch = {**model.inputs, "labels": torch.ones(2, 3, dtype=torch.long)}
    assert named_inputs(batch, model.model)["decoder_input_ids"] is model.inputs["decoder_input_ids"]


def test_the_ready_made_data_adaptor_gives_both_models_the_batch(tiny):
    batch = {**tiny("bert").inputs, "labels": torch.tensor([0, 1]), "text": ["a", "b"]}
    teacher, student = same_inputs(CPU, batch)
    assert teacher is student
    assert student.keys() == batch.keys()
    assert torch.equal(student["labels"], batch["labels"])


def test_a_batch_encoding_is_a_batch(tiny):
    model = tiny("bert")
    batch = BatchEncoding({**model.inputs, "idx": torch.arange(2)})
    assert not isinstance(batch, dict)
    _, student = same_inputs(CPU, batch)
    given = forward_inputs(named_inputs(student, model.model), model.model)
    assert type(given) is dict
    assert torch.equal(model.model(**given).logits, model.model(**model.inputs).logits)


def test_tensors_are_moved_to_the_device_and_the_rest_is_left():
    moved, _ = same_inputs(torch.device("meta"), {"input_ids": torch.ones(2), "n": 3})
    assert moved["input_ids"].device.type == "meta"
    assert moved["n"] == 3

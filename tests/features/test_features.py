"""Names: what every family offers under them, and what is said where a name is wrong."""

from __future__ import annotations

import io
import re

import pytest
import torch
from families import FAMILIES, LABELS, NO_INTERFACE, TWO_STACKS, WITH_INTERFACE, eager_twin, hooks_left_on, take
from rich.console import Console
from tolerance import assert_near, rounding
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from knowledge_distillation.cli.listing import list_features, load_any
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.features.inputs import first_rows
from knowledge_distillation.features.kinds import form_of, measured_kind
from knowledge_distillation.features.made_up_inputs import made_up_inputs
from knowledge_distillation.features.preserve import preserved
from knowledge_distillation.features.varied_inputs import other_lengths


def feature(name: str) -> Feature:
    return Feature(*name.rsplit(".", 1))


def names_of(model, inputs):
    return {str(name): known for name, known in catalogue(model, inputs).offers.items()}


# --- the names are the model's own tensors ---------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_the_models_own(tiny, family, training):
    """With dropout on, equal random states have to give equal tensors: capturing draws no random number."""
    model = tiny(family)
    model.model.train(training)
    taken = take(model.model, model.inputs, *model.hidden_states, seed=3)
    torch.manual_seed(3)
    output = model.model(**model.inputs, output_hidden_states=True)
    for name, (field, position) in model.hidden_states.items():
        assert_near(taken[name], output[field][position])


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_a_name_for_every_hidden_state_and_no_more(tiny, family):
    model = tiny(family)
    output = model.model(**model.inputs, output_hidden_states=True)
    states = sum(len(output[f"{side}hidden_states"]) for side in model.stacks.values())
    names = [name for name in names_of(model.model, model.inputs) if name.endswith((".hidden_states", ".embedding"))]
    assert sorted(names) == sorted(model.hidden_states)
    assert len(names) == states


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("swin", "resnet")])
def test_attention_equals_eager_attention(tiny, family):
    model = tiny(family)
    taken = take(model.model, model.inputs, *model.attentions)
    output = eager_twin(model.model)(**model.inputs, output_attentions=True)
    uniform = [t for t in taken.values() if float((t - t.mean(-1, keepdim=True)).detach().abs().max()) < 0.02]
    assert not uniform  # uniform maps would agree whatever the code did
    for name, (field, position) in model.attentions.items():
        assert_near(taken[name], output[field][position])


def test_attention_of_swins_blocks_equals_eager_attention(tiny):
    model = tiny("swin")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "relative_position_bias" in name:
                parameter.normal_()
    names = [f"block{n}.attention" for n in (1, 2, 3)]
    taken = take(model.model, model.inputs, *names)
    reference, twin = [], eager_twin(model.model)
    for path, module in twin.named_modules():
        if path.endswith("attention"):
            module.register_forward_hook(lambda module, args, output: reference.append(output[1]))
    twin(**model.inputs, output_attentions=True)
    assert len(reference) == len(names)
    for name, expected in zip(names, reference, strict=True):
        assert_near(taken[name], expected)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("swin", "resnet")])
def test_in_training_attention_is_taken_before_dropout(tiny, family):
    model = tiny(family, dropout=0.3)
    model.model.train()
    taken = take(model.model, model.inputs, *model.attentions)
    for tensor in taken.values():
        assert_near(tensor.sum(-1), torch.ones(tensor.shape[:-1]))
        assert float(tensor.detach().max()) <= 1 + rounding(1)  # dropout would have scaled the kept ones up
    dropped = eager_twin(model.model).train()(**model.inputs, output_attentions=True)
    field, position = next(iter(model.attentions.values()))
    assert not torch.allclose(dropped[field][position].sum(-1), torch.ones(()))  # the model's own are after dropout


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("swin", "resnet")])
def test_in_training_taking_every_map_draws_the_same_random_numbers_as_eager_attention(tiny, family):
    """Dropout is applied to a built map exactly as eager attention applies it, so the states after it are equal."""
    model = tiny(family)
    model.model.train()
    twin = eager_twin(model.model).train()
    taken = take(model.model, model.inputs, *model.hidden_states, *model.attentions, seed=5)
    torch.manual_seed(5)
    output = twin(**model.inputs, output_hidden_states=True)
    for name, (field, position) in model.hidden_states.items():
        assert_near(taken[name], output[field][position])


@pytest.mark.parametrize("family", FAMILIES)
def test_output_fields_are_the_models_own(tiny, family):
    model = tiny(family)
    names = [name for name in names_of(model.model, model.inputs) if name.startswith("output.")]
    taken = take(model.model, model.inputs, *names)
    output = model.model(**model.inputs)
    assert "output.logits" in names
    for name in names:
        assert_near(taken[name], output[name.removeprefix("output.")])


def test_pooler_output_is_a_vector(tiny):
    model = tiny("bert")
    known = names_of(model.model.bert, model.inputs)
    assert known["output.pooler_output"].kind == "vector"
    assert known["output.last_hidden_state"].kind == "tokens"


def test_a_model_that_returns_a_tensor_offers_logits():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model.forward = lambda x: nn.Sequential.forward(model, x)
    known = names_of(model, {"x": torch.randn(2, 4)})
    assert list(known) == ["layer1.hidden_states", "layer2.hidden_states", "output.logits"]
    assert known["output.logits"].location.path == "2"


class Folded(nn.Module):
    """A model with attention of its own, which holds its map as (batch * heads, length, keys)."""

    def __init__(self):
        super().__init__()
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(8, 8)

    def forward(self, x, output_hidden_states=False, output_attentions=False):
        parts = x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1)
        dropped = self.dropout(torch.softmax(parts @ parts.transpose(1, 2), dim=-1))
        hidden = self.out((dropped @ parts).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2))
        attentions = (dropped.unflatten(0, (-1, 2)),) if output_attentions else None
        return BaseModelOutput(hidden, (x, hidden) if output_hidden_states else None, attentions)


def test_a_map_held_with_heads_and_batch_in_one_dimension_is_unfolded():
    model, inputs = Folded().train(), {"x": torch.randn(3, 5, 8)}
    taken = take(model, inputs, "layer1.attention", "layer1.hidden_states")
    expected = model.eval()(**inputs, output_attentions=True).attentions[0]
    assert_near(taken["layer1.attention"], expected)
    assert catalogue(model, inputs).offers[feature("layer1.attention")].location.source == "input"


# --- query, key, value and scores ------------------------------------------------------------------


def attention_layers(known) -> list[str]:
    """Everything that holds a full set of attention features, as the part of the name before `query`."""
    return [name.removesuffix("query") for name in known if name.endswith("query")]


@pytest.mark.parametrize("family", [f for f in WITH_INTERFACE if f != "t5"])
def test_scores_are_the_scaled_products_of_query_and_key(tiny, family):
    model = tiny(family)
    for prefix in attention_layers(names_of(model.model, model.inputs)):
        names = [prefix + output for output in ("query", "key", "value", "attention_scores")]
        query, key, value, scores = take(model.model, model.inputs, *names).values()
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        expected = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        assert_near(scores, expected)
        assert value.shape[2] == scores.shape[-1]


def test_t5_scores_hold_the_position_bias_and_no_mask(tiny):
    """T5 does not scale; what it adds to the products is learned, and the same for a padded row."""
    model = tiny("t5")
    for layer, causal in (("encoder_layer2", False), ("decoder_layer1", True)):
        query, key, scores = take(
            model.model, model.inputs, *(f"{layer}.{output}" for output in ("query", "key", "attention_scores"))
        ).values()
        bias = scores - query @ key.transpose(2, 3)
        stack = model.model.decoder if causal else model.model.encoder
        first = stack.block[0].layer[0].SelfAttention
        expected = first.compute_bias(scores.shape[2], scores.shape[3]).expand_as(bias)
        assert_near(bias, expected)
    query, key, scores = take(
        model.model,
        model.inputs,
        *(f"decoder_layer1.cross_{output}" for output in ("query", "key", "attention_scores")),
    ).values()
    assert_near(scores, query @ key.transpose(2, 3))


@pytest.mark.parametrize("family", WITH_INTERFACE)
def test_shapes_of_attention_features(tiny, family):
    model = tiny(family)
    known = names_of(model.model, model.inputs)
    prefixes = attention_layers(known)
    assert len(prefixes) == {"t5": 7, "bart": 7}.get(family, 3)
    for prefix in prefixes:
        heads, length, width = known[prefix + "query"].shape[1:]
        keys = known[prefix + "key"].shape[2]
        few = 1 if family == "llama" else heads
        assert known[prefix + "key"].shape[1:] == known[prefix + "value"].shape[1:] == (few, keys, width)
        for output in ("attention", "attention_scores"):
            assert known[prefix + output].shape[1:] == (heads, length, keys)
            assert known[prefix + output].kind == "attention"
        for output in ("query", "key", "value"):
            assert known[prefix + output].kind == "heads"
        if family != "swin":
            text = 5 if prefix.startswith("decoder") else 17 if family == "vit" else 7
            assert (heads, length, keys) == (2, text, 7 if "cross_" in prefix else text)


def test_llamas_query_is_taken_after_rotary_embedding(tiny):
    model = tiny("llama")
    query, raw = take(model.model, model.inputs, "layer2.query", "model.layers.1.self_attn.q_proj.output").values()
    raw = raw.reshape(2, 7, 2, 8).transpose(1, 2)
    torch.testing.assert_close(query[:, :, 0], raw[:, :, 0])  # position 0 is not rotated
    torch.testing.assert_close(query.norm(dim=-1), raw.norm(dim=-1))  # a rotation keeps lengths
    assert float((query - raw)[:, :, 1:].detach().abs().amax(-1).min()) > 1e-3


def test_padding_is_masked_in_attention_and_not_in_scores(tiny):
    model = tiny("bert")
    attention, scores = take(model.model, model.inputs, "layer2.attention", "layer2.attention_scores").values()
    assert float(attention[1, :, :, 4:].detach().abs().max()) == 0
    assert float(scores[1, :, :, 4:].detach().abs().max()) < 100


# --- aliases, module paths -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "alias", "name"),
    [
        ("bert", "bert_layer2.hidden_states", "layer2.hidden_states"),
        ("bert", "layer-1.hidden_states", "layer3.hidden_states"),
        ("bert", "bert_layer-3.attention", "layer1.attention"),
        ("bert", "bert_embedding_layer.embedding", "embedding_layer.embedding"),
        ("deberta-v2", "deberta_v2_layer2.attention", "layer2.attention"),
        ("deberta-v2", "deberta-v2_layer2.attention", "layer2.attention"),
        ("llama", "llama_layer-1.query", "layer3.query"),
        ("vit", "vit_layer1.hidden_states", "layer1.hidden_states"),
        ("t5", "encoder_layer-1.hidden_states", "encoder_layer3.hidden_states"),
        ("bart", "bart_decoder_layer-1.cross_attention", "decoder_layer2.cross_attention"),
        ("swin", "block-1.attention", "block3.attention"),
        ("resnet", "resnet_layer-2.hidden_states", "layer1.hidden_states"),
    ],
)
def test_aliases(tiny, family, alias, name):
    model = tiny(family)
    names = catalogue(model.model, model.inputs)
    assert str(names.canonical(feature(alias))) == name
    assert names.find(feature(alias)) is names.offers[feature(name)]


def test_module_paths(tiny):
    model = tiny("bert")
    seen = {}
    for path in ("bert.encoder.layer.1", "bert.encoder.layer.1.output.dense"):
        model.model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.update({path + ".input": args[0], path + ".output": output})
        )
    names = [*(f"{path}.output" for path in ("bert.encoder.layer.1", "bert.encoder.layer.1.output.dense"))]
    names += [name.replace(".output", ".input") for name in names[:1]] + ["bert.encoder.layer.1.output.dense.input"]
    taken = take(model.model, model.inputs, *names)
    for name in names:
        assert torch.equal(taken[name], seen[name])
    assert torch.equal(
        taken["bert.encoder.layer.1.output"],
        take(model.model, model.inputs, "layer2.hidden_states")["layer2.hidden_states"],
    )


def test_items_of_a_tuple_and_arguments_by_position_and_by_name(tiny):
    model = tiny("deberta-v2")
    taken = take(
        model.model,
        model.inputs,
        "deberta.encoder.layer.0.output[0]",
        "deberta.encoder.layer.1.input[0]",
        "deberta.encoder.layer.1.input",
        "layer1.hidden_states",
    )
    assert all(torch.equal(tensor, taken["layer1.hidden_states"]) for tensor in taken.values())
    named = take(tiny("bert").model, model.inputs, "bert.embeddings.input[input_ids]")
    assert torch.equal(named["bert.embeddings.input[input_ids]"], model.inputs["input_ids"])


def test_a_path_of_no_module_is_not_found(tiny):
    names = catalogue(tiny("bert").model, tiny("bert").inputs)
    assert names.find(feature("bert.encoder.layer.7.output")) is None
    assert names.find(feature("bert.encoder.layer.1.outputs")) is None
    assert names.find(feature("layer4.hidden_states")) is None


# --- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        (
            "bert",
            "bert_layer13.hidden_states",
            "bert_layer13.hidden_states: the teacher has 3 layers. Nearest: bert_layer3.hidden_states.",
        ),
        (
            "bert",
            "layer0.hidden_states",
            "layer0.hidden_states: the teacher has 3 layers. They count from 1; before the first stands",
        ),
        (
            "bert",
            "layer-4.hidden_states",
            "layer-4.hidden_states: the teacher has 3 layers. Nearest: layer1.hidden_states.",
        ),
        (
            "t5",
            "decoder_layer3.query",
            "decoder_layer3.query: the teacher has 2 layers. Nearest: decoder_layer2.query.",
        ),
        ("bert", "layer4.nonsense", "layer4.nonsense: the teacher has 3 layers."),
        (
            "bert",
            "layer2.hidden_state",
            "this layer of the teacher offers hidden_states, query, key, value, attention, attention_scores. "
            "Nearest: hidden_states.",
        ),
        ("bert", "outputs.logits", "outputs.logits: the teacher has no such feature. Nearest: output.logits."),
        ("bert", "bert.encoder.layer.1.outputs.output", "Nearest: bert.encoder.layer.1.output.output."),
        (
            "t5",
            "layer1.hidden_states",
            "layer1.hidden_states: the teacher has no such feature. Nearest: encoder_layer1.hidden_states.",
        ),
        ("deberta-v2", "layer2.query", "offers hidden_states, attention. (attention does not go through"),
    ],
)
def test_explanations_name_the_nearest(tiny, family, name, message):
    model = tiny(family)
    names = catalogue(model.model, model.inputs)
    assert names.find(feature(name)) is None
    assert message in names.explain(feature(name), "teacher")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_note_says_where_attention_is_the_models_own(tiny, family):
    model = tiny(family)
    notes = catalogue(model.model, model.inputs).notes
    expected = ["attention does not go through transformers' attention interface, it runs as the model has it"]
    assert notes == (expected if family in NO_INTERFACE else [])


# --- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("bert", "bert.encoder.layer.1.output.dense.output", "tokens"),
        ("bert", "bert.pooler.output", "vector"),
        ("bert", "bert.encoder.layer.0.attention.self.output[0]", "tokens"),
        ("t5", "decoder.block.0.layer.2.output", "tokens"),
        ("vit", "vit.layers.0.mlp.output", "tokens"),
        ("vit", "vit.embeddings.patch_embeddings.projection.output", "map"),
        ("resnet", "resnet.encoder.stages.1.output", "map"),
        ("resnet", "resnet.pooler.output", "map"),
        ("mpnet", "mpnet.encoder.layer.1.attention.attn.dropout.input[0]", "attention"),
    ],
)
def test_kinds_of_module_paths_are_found_by_two_lengths(tiny, family, name, kind):
    model = tiny(family)
    assert catalogue(model.model, model.inputs).find(feature(name)).kind == kind


@pytest.mark.parametrize(
    ("short", "long", "kind"),
    [
        ((2, 5), (2, 5), "vector"),
        ((2, 5, 8), (2, 8, 8), "tokens"),
        ((2, 5, 4, 8), (2, 8, 4, 8), "tokens"),
        ((2, 8, 5, 5), (2, 8, 8, 8), "attention"),
        ((2, 8, 5, 16), (2, 8, 8, 16), "heads"),
        ((2, 8, 5, 5), (2, 8, 5, 5), "map"),
        ((2, 5), (2, 8), "positions"),
    ],
)
def test_kind_of_shapes_at_two_lengths(short, long, kind):
    assert measured_kind(short, form_of(short, long, None)) == kind


@pytest.mark.parametrize(
    ("short", "long", "message"),
    [
        ((10, 4), (16, 4), "a row for each token of the whole batch"),
        ((2, 5, 5), (2, 8, 8), "its length is in dimension 1 and 2, which no mask fits"),
        ((2, 8, 5), (2, 8, 8), "its length is in dimension 2"),
        ((2, 5, 5, 8), (2, 8, 8, 8), "its length is in dimension 1 and 2"),
        ((5, 2, 8), (8, 2, 8), "its first dimension is the length"),
    ],
)
def test_what_grows_with_the_length_where_no_mask_fits_is_refused(short, long, message):
    with pytest.raises(ConfigError, match=message):
        measured_kind(short, form_of(short, long, None))


def test_what_changes_with_the_rows_and_what_with_the_length():
    assert form_of((2, 4, 6, 6), (2, 4, 3, 3), (3, 4, 6, 6)) == "B.LL"
    assert form_of((12, 8), (6, 8), (18, 8)) == "*."
    assert form_of((2, 8), None, (3, 8)) == "B."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "deberta.encoder.layer.0.output",
            "found tuple where a tensor was expected; pick one item, as in 'output[0]'",
        ),
        ("deberta.encoder.layer.0.output[7]", "deberta.encoder.layer.0 has no such output; it has 0, 1"),
        ("spare.output", "spare does not run in a pass"),
    ],
)
def test_what_is_no_tensor_has_no_kind(tiny, name, message):
    model = tiny("deberta-v2")
    model.model.spare = nn.Identity()
    names = catalogue(model.model, model.inputs)
    assert names.find(feature(name)).problem == message


def test_other_lengths_leave_what_has_none():
    batch = {
        "input_ids": torch.arange(1, 17).view(2, 8),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "bbox": torch.zeros(2, 8, 4),
        "labels": torch.tensor([1, 2]),
    }
    varied = [{key: tuple(value.shape) for key, value in one.inputs.items()} for one in other_lengths(batch)]
    assert [shapes["input_ids"] for shapes in varied] == [(2, 4), (2, 4), (2, 11), (2, 11), (2, 11), (2, 11)]
    assert [shapes["bbox"] for shapes in varied] == [
        (2, 4, 4),
        (2, 8, 4),
        (2, 11, 4),
        (2, 8, 4),
        (2, 11, 4),
        (2, 8, 4),
    ]
    assert all(shapes["labels"] == (2,) for shapes in varied)
    assert [one.inputs["input_ids"].shape[1] for one in other_lengths(batch, longest=8)] == [4, 4]
    assert list(other_lengths({"scale": torch.zeros(2)})) == []
    larger = next(other_lengths({"pixel_values": torch.zeros(2, 3, 4, 4)}))
    assert larger.images and larger.inputs["pixel_values"].shape == (2, 3, 36, 36)


def test_the_decoder_changes_by_another_number_than_the_encoder():
    batch = {"input_ids": torch.ones(2, 8, dtype=torch.long), "decoder_input_ids": torch.ones(2, 8, dtype=torch.long)}
    for varied in other_lengths(batch):
        assert varied.by != varied.decoder_by
        assert varied.inputs["input_ids"].shape[1] == 8 + varied.by
        assert varied.inputs["decoder_input_ids"].shape[1] == 8 + varied.decoder_by


def test_first_rows_leave_what_has_no_rows():
    rows = first_rows({"input_ids": torch.zeros(5, 3), "scale": torch.zeros(7), "flag": True}, rows=2)
    assert rows["input_ids"].shape == (2, 3)
    assert rows["scale"].shape == (7,)
    assert rows["flag"] is True


def test_first_rows_are_all_rows_where_pictures_lie_in_one_row_of_patches():
    """Two patches of the first picture would not be a picture, and its size would be that of another."""
    packed = {"pixel_values": torch.zeros(32, 192), "image_grid_thw": torch.ones(3, 3), "labels": torch.zeros(3)}
    assert {key: len(value) for key, value in first_rows(packed).items()} == {
        "pixel_values": 32,
        "image_grid_thw": 3,
        "labels": 3,
    }


# --- a probe changes nothing -----------------------------------------------------------------------


class Growing(nn.Module):
    """A model that makes its positions anew for an input that is longer than all before, as audio models do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.arange(4.0))

    def forward(self, x):
        if x.shape[1] > len(self.positions):
            self.positions = torch.arange(float(x.shape[1]))
        return x + self.positions[: x.shape[1], None]


def test_a_buffer_that_grows_with_the_input_is_put_back():
    model = nn.Sequential(Growing())
    with preserved(model):
        model(torch.zeros(1, 9, 1))
    assert model[0].positions.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_catalogue_leaves_the_model_and_the_random_state_as_they_were(tiny, family):
    model = tiny(family)
    model.model.train()
    state = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    implementation = [m.config._attn_implementation for m in model.model.modules() if hasattr(m, "config")]
    before = torch.get_rng_state()
    catalogue(model.model, model.inputs)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.state_dict().items())
    assert [m.config._attn_implementation for m in model.model.modules() if hasattr(m, "config")] == implementation
    assert not hooks_left_on(model.model)
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert model.model.training


def test_without_the_catalogues_care_batch_normalisation_would_move(tiny):
    model = tiny("resnet")
    model.model.train()
    buffers = {name: buffer.clone() for name, buffer in model.model.named_buffers()}
    with preserved(model.model):
        model.model(**model.inputs)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.model.named_buffers())
    model.model(**model.inputs)
    assert not all(torch.equal(buffer, buffers[name]) for name, buffer in model.model.named_buffers())


def test_buffers_are_put_back_when_the_pass_fails(tiny):
    model = tiny("resnet")
    model.model.train()
    buffers = {name: buffer.clone() for name, buffer in model.model.named_buffers()}
    model.model.classifier.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        catalogue(model.model, model.inputs)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.model.named_buffers())
    assert not hooks_left_on(model.model)


def test_tied_and_repeated_modules_count_their_calls(tiny):
    """ALBERT runs one module for all its layers; a name says which call."""
    model = tiny("albert")
    known = names_of(model.model, model.inputs)
    for output in ("hidden_states", "attention"):
        places = [known[f"layer{n}.{output}"].location for n in (1, 2, 3)]
        assert len({place.path for place in places}) == 1
        assert [place.call for place in places] == [0, 1, 2]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "resnet"])
def test_names_are_ordered_as_they_are_computed(tiny, family):
    model = tiny(family)
    known = names_of(model.model, model.inputs)
    for stack in model.stacks:
        orders = [known[f"{stack}{n}.hidden_states"].location.order for n in range(1, model.depth(stack) + 1)]
        assert orders == sorted(orders)
        if f"{stack}2.attention" in known:
            assert orders[0] < known[f"{stack}2.attention"].location.order < orders[1]
    if family in TWO_STACKS:
        assert (
            known["encoder_layer3.hidden_states"].location.order < known["decoder_layer1.hidden_states"].location.order
        )


# --- the table of names ----------------------------------------------------------------------------


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("family", ["bert", "mpnet", "t5", "vit", "resnet"])
def test_the_table_lists_every_name_of_a_saved_model(tiny, family, tmp_path):
    model = tiny(family)
    model.model.save_pretrained(tmp_path)
    text = rendered(list_features(str(tmp_path)))
    assert type(model.model).__name__ in text
    for name in [*model.hidden_states, *model.attentions, "output.logits"]:
        assert re.search(rf"\b{re.escape(name)}\b", text)
    assert ("note: attention does not go through" in text) == (family == "mpnet")


def test_a_saved_model_is_loaded_with_its_head(tiny, tmp_path):
    model = tiny("bert")
    model.model.save_pretrained(tmp_path)
    loaded = load_any(str(tmp_path)).eval()
    assert torch.equal(loaded(**model.inputs).logits, model.model(**model.inputs).logits)
    assert loaded(**model.inputs).logits.shape == (2, LABELS)


def test_an_unknown_model_gives_the_nearest_type():
    with pytest.raises(
        ConfigError, match=r"no model 'berd': no such directory, hub name or model_type. Nearest: bert"
    ):
        load_any("berd")


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_made_up_for_every_family(tiny, family):
    model = tiny(family)
    assert model.model(**made_up_inputs(model.model)).logits.shape[0] == 2


def test_no_inputs_are_made_up_for_sound(tiny):
    model = tiny("bert").model
    model.main_input_name = "input_values"
    with pytest.raises(
        ConfigError, match="BertForSequenceClassification takes input_values, for which no inputs can be made up"
    ):
        made_up_inputs(model)

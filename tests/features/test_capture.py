"""Capturing: the tensors asked for, their gradients, no work beyond them, and nothing left behind."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from families import FAMILIES, NO_INTERFACE, WITH_INTERFACE, hooks_left_on, take
from tolerance import assert_near
from torch import nn
from transformers import AutoModelForSequenceClassification

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features import attention
from knowledge_distillation.features.capture import Capture, Location
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.features.signature import accepted_flags, forward_parameters
from knowledge_distillation.teachers.frozen import FrozenTeacher


def places(model, inputs, *names: str) -> dict[str, Location]:
    known = catalogue(model, inputs)
    return {name: known.find(Feature(*name.rsplit(".", 1))).location for name in names}


@pytest.fixture
def capturing():
    """`capturing(tiny_model, *names)`: a Capture that is closed after the test."""
    opened = []

    def open_capture(model, *names: str, **options) -> Capture:
        opened.append(Capture(model.model, places(model.model, model.inputs, *names), **options))
        return opened[-1]

    yield open_capture
    for capture in opened:
        capture.close()


@pytest.fixture
def maps_built(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the attention maps built since the test began."""
    built = []
    original = attention.attention_scores

    def counted(*args, **kwargs):
        scores = original(*args, **kwargs)
        built.append(tuple(scores.shape))
        return scores

    monkeypatch.setattr(attention, "attention_scores", counted)
    return built


def called(model: nn.Module) -> list[str]:
    """The paths of the modules called from now on, as they begin."""
    begun: list[str] = []
    for path, module in model.named_modules():
        if path:
            module.register_forward_pre_hook(lambda module, args, path=path: begun.append(path))
    return begun


def middle(family: str) -> str:
    return "decoder_layer1" if family in ("t5", "bart") else "layer2"


def parameters_before(family: str, model: nn.Module) -> list[nn.Parameter]:
    """The weights of the first layer of the model."""
    first = {
        "albert": "albert_layer_groups.0.",
        "gpt2": "h.0.",
        "t5": "encoder.block.0.",
        "resnet": "stages.0.",
        "bart": "encoder.layers.0.",
        "swin": "encoder.layers.0.",
    }.get(family, "layer.0." if family in ("bert", "roberta", "deberta-v2", "mpnet") else "layers.0.")
    found = [p for name, p in model.named_parameters() if first in name and p.dim() > 1]
    assert found
    return found


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_first_layer_through_captured_states(tiny, capturing, family):
    model = tiny(family)
    model.model.train()
    name = f"{middle(family)}.hidden_states"
    taken = capturing(model, name)(model.inputs)[name]
    (taken * torch.randn_like(taken)).sum().backward()
    gradients = [p.grad for p in parameters_before(family, model.model)]
    assert all(g is not None for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("output", ["attention", "attention_scores", "query", "key", "value"])
@pytest.mark.parametrize("family", WITH_INTERFACE)
def test_gradients_reach_the_first_layer_through_attention(tiny, capturing, family, output):
    model = tiny(family)
    model.model.train()
    name = f"{'block2' if family == 'swin' else middle(family)}.{output}"
    if family in ("t5", "bart"):
        name = f"encoder_layer2.{output}"
    capturing(model, name)(model.inputs)[name].square().sum().backward()
    assert max(float(p.grad.abs().max()) for p in parameters_before(family, model.model) if p.grad is not None) > 0


@pytest.mark.parametrize("family", NO_INTERFACE)
def test_gradients_reach_the_first_layer_through_attention_without_the_interface(tiny, capturing, family):
    model = tiny(family)
    model.model.train()
    capturing(model, "layer2.attention")(model.inputs)["layer2.attention"].square().sum().backward()
    assert max(float(p.grad.abs().max()) for p in parameters_before(family, model.model) if p.grad is not None) > 0


def test_gradients_equal_those_of_the_models_own_output(tiny, capturing):
    one, other = tiny("bert").model.train(), tiny("bert")
    inputs = other.inputs
    other.model.train()
    capture = capturing(other, "layer2.hidden_states", "output.logits")
    torch.manual_seed(1)
    taken = capture(inputs)
    (taken["layer2.hidden_states"].square().mean() + taken["output.logits"].square().mean()).backward()
    torch.manual_seed(1)
    output = one(**inputs, output_hidden_states=True)
    (output.hidden_states[2].square().mean() + output.logits.square().mean()).backward()
    assert_near(*([p.grad for p in model.parameters()] for model in (other.model, one)))


def test_several_features_of_one_module_are_taken_in_one_pass(tiny, capturing):
    model = tiny("bert")
    names = [f"layer{n}.{o}" for n in (1, 3) for o in ("query", "key", "value", "attention", "attention_scores")]
    passes = called(model.model)
    capture = capturing(model, *names)
    passes.clear()
    taken = capture(model.inputs)
    assert sorted(taken) == sorted(names)
    assert passes.count("bert.embeddings") == 1


def test_a_second_pass_gives_the_second_batch(tiny, capturing):
    model = tiny("albert")
    capture = capturing(model, "layer1.hidden_states", "layer3.attention")
    other = {**model.inputs, "input_ids": model.inputs["input_ids"].flip(1)}
    first, second, again = capture(model.inputs), capture(other), capture(model.inputs)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.allclose(first[name], second[name])


# --- nothing more than what is mapped --------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "maps"),
    [
        (["layer2.hidden_states", "output.logits"], 0),
        (["layer1.query", "layer2.key", "layer3.value", "output.logits"], 0),
        (["layer2.attention", "output.logits"], 1),
        (["layer2.attention_scores", "layer2.attention", "output.logits"], 1),
        (["layer1.attention", "layer3.attention_scores", "output.logits"], 2),
    ],
    ids=["states", "query-key-value", "one-map", "map-and-scores", "two-maps"],
)
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "llama", "vit"])
def test_only_mapped_layers_build_a_map(tiny, capturing, maps_built, family, names, maps):
    model = tiny(family)
    capture = capturing(model, *names)
    maps_built.clear()
    capture(model.inputs)
    assert len(maps_built) == maps


def test_the_layers_without_a_map_run_fused_attention(tiny, capturing, monkeypatch):
    model = tiny("bert")
    capture = capturing(model, "layer2.attention", "output.logits")
    fused, original = [], nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        fused.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    capture(model.inputs)
    assert len(fused) == 2


def test_albert_builds_the_maps_of_all_its_calls(tiny, capturing, maps_built):
    """One module is all of ALBERT's layers: a mapped layer taps every call, and the right one is kept."""
    model = tiny("albert")
    capture = capturing(model, "layer2.attention", "output.logits")
    maps_built.clear()
    taken = capture(model.inputs)
    assert len(maps_built) == 3
    everything = take(model.model, model.inputs, *model.attentions)
    assert torch.equal(taken["layer2.attention"], everything["layer2.attention"])
    assert not torch.allclose(everything["layer1.attention"], everything["layer2.attention"])


@pytest.mark.parametrize(
    ("family", "name", "last", "never"),
    [
        ("bert", "layer2.hidden_states", "bert.encoder.layer.1", "bert.encoder.layer.2"),
        ("bert", "layer2.attention", "bert.encoder.layer.1.attention.self", "bert.encoder.layer.1.attention.output"),
        ("bert", "layer2.query", "bert.encoder.layer.1.attention.self", "bert.encoder.layer.1.attention.output"),
        ("bert", "layer3.hidden_states", "bert.encoder.layer.2", "bert.pooler"),
        ("bert", "embedding_layer.embedding", "bert.embeddings", "bert.encoder"),
        ("bert", "bert.encoder.layer.1.input", "bert.encoder.layer.0", "bert.encoder.layer.1.attention"),
        ("deberta-v2", "layer1.attention", "deberta.encoder.layer.0.attention", "deberta.encoder.layer.1"),
        ("mpnet", "layer1.hidden_states", "mpnet.encoder.layer.0", "mpnet.encoder.layer.1"),
        ("llama", "layer1.hidden_states", "model.layers.0", "model.layers.1"),
        ("llama", "layer3.hidden_states", "model.norm", "lm_head"),
        ("gpt2", "layer2.attention", "transformer.h.1.attn", "transformer.h.1.mlp"),
        ("t5", "encoder_layer2.hidden_states", "encoder.block.1", "encoder.block.2"),
        ("t5", "encoder_layer3.hidden_states", "encoder.dropout", "decoder"),
        ("bart", "decoder_layer1.cross_attention", "model.decoder.layers.0.encoder_attn", "model.decoder.layers.1"),
        ("vit", "layer1.hidden_states", "vit.layers.0", "vit.layers.1"),
        ("swin", "block2.attention", "swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.blocks.1"),
        ("resnet", "layer1.hidden_states", "resnet.encoder.stages.0", "resnet.encoder.stages.1"),
    ],
)
def test_the_pass_stops_after_the_deepest_mapped_module(tiny, capturing, family, name, last, never):
    model = tiny(family)
    capture = capturing(model, name)
    begun = called(model.model)
    _, output = capture.run(model.inputs)
    assert output is None
    assert last in begun
    assert never not in begun
    begun.clear()
    capturing(model, name, stop_early=False).run(model.inputs)
    assert never in begun  # a whole pass does call it


def test_albert_stops_after_the_mapped_call(tiny, capturing):
    model = tiny("albert")
    capture = capturing(model, "layer2.hidden_states")
    begun = called(model.model)
    capture(model.inputs)
    assert begun.count("albert.encoder.albert_layer_groups.0") == 2


def test_a_pass_that_stopped_early_leaves_the_model_whole(tiny, capturing):
    model = tiny("bert")
    before = model.model(**model.inputs).logits
    capture = capturing(model, "layer1.hidden_states")
    capture(model.inputs)
    assert torch.equal(model.model(**model.inputs).logits, before)  # a pass of somebody else runs whole
    assert capture.run(model.inputs)[1] is None


def test_the_whole_output_comes_back_where_the_pass_was_whole(tiny, capturing):
    model = tiny("bert")
    taken, output = capturing(model, "layer1.hidden_states", stop_early=False).run(model.inputs)
    assert torch.equal(output.logits, model.model(**model.inputs).logits)
    assert output.hidden_states is None
    assert output.attentions is None
    assert list(taken) == ["layer1.hidden_states"]


def test_a_pass_is_lean_even_where_the_config_asks_for_everything(tiny, capturing):
    model = tiny("gpt2", output_hidden_states=True, use_cache=True)
    assert model.model(**model.inputs).hidden_states is not None
    _, output = capturing(model, "layer1.hidden_states", stop_early=False).run(model.inputs)
    assert output.hidden_states is None
    assert output.past_key_values is None


def test_fields_are_taken_from_the_whole_output(tiny):
    model = tiny("bert")
    wanted = {"logits": Location("field", item="logits"), "state": Location("field", item="hidden_states[2]")}
    capture = Capture(model.model, wanted)
    taken, output = capture.run(model.inputs)
    assert not capture.stop_early
    assert torch.equal(taken["logits"], output.logits)
    assert torch.equal(taken["state"], model.model(**model.inputs, output_hidden_states=True).hidden_states[2])
    assert capture.flags["output_attentions"] is False


def test_a_model_that_takes_no_flags_is_given_none():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, features):
            return self.second(self.first(features).tanh())

    model, batch = Plain(), {"features": torch.randn(3, 4)}
    assert accepted_flags(model) == {}
    assert forward_parameters(model) == (["features"], False)
    capture = Capture(model, {"a": Location("output", "first"), "b": Location("input", "second", 0)})
    taken = capture(batch)
    capture.close()
    assert torch.equal(taken["a"], model.first(batch["features"]))
    assert torch.equal(taken["b"], taken["a"].tanh())


# --- gradient checkpointing ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradient_checkpointing_changes_no_feature_and_no_gradient(tiny, family):
    names = ["layer2.hidden_states", "layer2.attention", "layer1.query"]
    taken, gradients = [], []
    for checkpointing in (False, True):
        model = tiny(family, dropout=0.0)
        model.model.train()
        if checkpointing:
            model.model.gradient_checkpointing_enable()
        capture = Capture(model.model, places(model.model, model.inputs, *names))
        assert capture.stop_early is not checkpointing
        features = capture(model.inputs)
        sum(tensor.square().sum() for tensor in features.values()).backward()
        capture.close()
        taken.append(features)
        gradients.append({name: p.grad for name, p in model.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    for before, after in (taken, gradients):
        assert_near(after, before)


def test_under_gradient_checkpointing_the_pass_runs_whole(tiny, capturing):
    model = tiny("bert")
    model.model.train().gradient_checkpointing_enable()
    capture = capturing(model, "layer1.hidden_states")
    begun = called(model.model)
    _, output = capture.run(model.inputs)
    assert output is not None
    assert "classifier" in begun


# --- nothing left behind ---------------------------------------------------------------------------


def tapped(model):
    return any(module in attention._taps for module in model.modules())


@pytest.mark.parametrize("setting", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "t5", "bart", "llama", "swin"])
def test_closing_puts_everything_back(tiny, family, setting):
    model = tiny(family)
    model.model.set_attn_implementation(setting)
    name = {"swin": "block1.attention"}.get(family, next(iter(model.attentions), ""))
    state = next(iter(model.hidden_states))
    wanted = places(model.model, model.inputs, name, state)
    settings = [m.config._attn_implementation for m in model.model.modules() if hasattr(m, "config")]
    before = model.model(**model.inputs).logits
    capture = Capture(model.model, wanted)
    assert model.model.config._attn_implementation == attention.IMPLEMENTATION
    assert hooks_left_on(model.model)
    assert tapped(model.model)
    capture(model.inputs)
    capture.close()
    capture.close()  # twice does no harm
    assert set(settings) == {setting}
    assert [m.config._attn_implementation for m in model.model.modules() if hasattr(m, "config")] == settings
    assert not hooks_left_on(model.model)
    assert not tapped(model.model)
    assert not attention._observers
    assert torch.equal(model.model(**model.inputs).logits, before)


def test_without_a_mapped_map_the_implementation_is_not_touched(tiny, capturing):
    model = tiny("bert")
    capturing(model, "layer2.hidden_states", "output.logits")
    assert model.model.config._attn_implementation == "sdpa"


def test_an_error_in_the_pass_does_not_spoil_the_next(tiny, capturing):
    model = tiny("bert")
    capture = capturing(model, "layer2.hidden_states", "output.logits")
    expected = capture(model.inputs)
    with pytest.raises(IndexError):
        capture({**model.inputs, "input_ids": model.inputs["input_ids"] + 1000})
    again = capture(model.inputs)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_two_captures_of_one_model_do_not_disturb_each_other(tiny, capturing):
    model = tiny("bert")
    deep = capturing(model, "layer3.hidden_states")
    expected = deep(model.inputs)
    shallow = capturing(model, "layer1.hidden_states")
    assert torch.equal(deep(model.inputs)["layer3.hidden_states"], expected["layer3.hidden_states"])
    assert list(shallow(model.inputs)) == ["layer1.hidden_states"]
    shallow.close()
    assert torch.equal(deep(model.inputs)["layer3.hidden_states"], expected["layer3.hidden_states"])


@pytest.mark.parametrize("first_closed", [0, 1])
def test_two_captures_of_one_map_do_not_disturb_each_other(tiny, first_closed):
    """As when a second run is planned on a student whose first plan is still open."""
    model = tiny("bert")
    names = ["layer2.attention", "layer3.query"]
    expected = take(model.model, model.inputs, *names)
    captures = [Capture(model.model, places(model.model, model.inputs, *names)) for _ in range(2)]
    for capture in captures:
        taken = capture(model.inputs)
        assert all(torch.equal(taken[name], expected[name]) for name in names)
    captures.pop(first_closed).close()
    taken = captures[0](model.inputs)
    assert all(torch.equal(taken[name], expected[name]) for name in names)
    captures[0].close()
    assert model.model.config._attn_implementation == "sdpa"
    assert not tapped(model.model)


def test_a_copy_of_a_captured_model_is_free(tiny, capturing):
    model = tiny("bert")
    before = model.model(**model.inputs).logits
    capture = capturing(model, "layer1.attention", "layer2.hidden_states")
    expected = capture(model.inputs)
    twin = copy.deepcopy(model.model)
    assert_near(twin(**model.inputs).logits, before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    again = capture(model.inputs)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_capturing_a_frozen_teacher_leaves_the_callers_model_alone(tiny):
    model = tiny("bert")
    teacher = FrozenTeacher(model.model)
    capture = Capture(teacher.model, places(teacher.model, model.inputs, "layer1.attention", "layer2.hidden_states"))
    assert model.model.config._attn_implementation == "sdpa"
    assert teacher.model.config._attn_implementation == attention.IMPLEMENTATION
    assert not hooks_left_on(model.model)
    whole = model.model(**model.inputs, output_hidden_states=True)
    assert len(whole.hidden_states) == 4
    capture.close()


def test_a_model_saved_while_captured_loads_as_if_it_had_not_been(tiny, capturing, tmp_path):
    model = tiny("bert")
    before = model.model(**model.inputs).logits
    capturing(model, "layer1.attention")
    model.model.save_pretrained(tmp_path)
    assert attention.IMPLEMENTATION not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(loaded(**model.inputs).logits, before)


# --- the attention function itself -----------------------------------------------------------------


class _Module(nn.Module):
    """Stands in for an attention module of a model."""

    def __init__(self, is_causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, groups
        self.eval()


MASKS = {
    "none": lambda shape: None,
    "boolean": lambda shape: torch.rand(shape).gt(0.3) | torch.eye(shape[-2], shape[-1], dtype=torch.bool),
    "additive": lambda shape: torch.randn(shape),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["heads-equal", "two-groups", "one-key"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tapped_module_gives_what_fused_attention_gives(mask, causal, heads, dtype):
    query, few = torch.randn(2, heads[0], 6, 8, dtype=dtype), (2, heads[1], 6, 8)
    key, value = torch.randn(few, dtype=dtype), torch.randn(few, dtype=dtype)
    given = MASKS[mask]((2, 1, 6, 6))
    given = given.to(dtype) if mask == "additive" else given
    module, seen = _Module(causal, heads[0] // heads[1]), {}
    expected, nothing = attention.sdpa_with_maps(module, query, key, value, given, scaling=0.5)
    take = lambda module, tensors: seen.update(tensors)  # noqa: E731
    untap = attention.tap(module, frozenset(attention.MAPS), take)
    result, returned = attention.sdpa_with_maps(module, query, key, value, given, scaling=0.5)
    assert nothing is None
    assert returned is seen["attention"]
    assert_near(result, expected, dtype=torch.float32)  # as maps are
    expanded = value.repeat_interleave(heads[0] // heads[1], 1).to(torch.float32)
    by_hand = (seen["attention"].float() @ expanded).transpose(1, 2).to(dtype)
    assert_near(by_hand, expected, dtype=torch.float32)
    untap()
    assert attention.sdpa_with_maps(module, query, key, value, given, scaling=0.5)[1] is None


def test_one_query_row_after_cached_keys_sees_all_of_them():
    module, seen = _Module(is_causal=True), {}
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 5, 4)
    with attention.observe(frozenset({"attention"}), lambda module, tensors: seen.update(tensors)):
        attention.sdpa_with_maps(module, query, key, key, None)
    assert float(seen["attention"].min()) > 0


def test_a_softcap_bends_the_scores():
    scores = attention.attention_scores(torch.full((1, 1, 1, 4), 9.0), torch.full((1, 1, 1, 4), 9.0), 1.0, softcap=5.0)
    torch.testing.assert_close(scores, torch.full((1, 1, 1, 1), 5.0))


def test_a_module_is_given_to_its_taps_and_to_every_observer():
    module, query = _Module(is_causal=False), torch.randn(1, 2, 3, 4)
    given = {"one": [], "other": [], "observer": []}
    takes = {name: lambda module, tensors, name=name: given[name].append(set(tensors)) for name in given}
    untap_one = attention.tap(module, frozenset({"query"}), takes["one"])
    untap_other = attention.tap(module, frozenset({"attention"}), takes["other"])
    with attention.observe(frozenset({"query"}), takes["observer"]):
        attention.sdpa_with_maps(module, query, query, query, None)
        attention.sdpa_with_maps(_Module(is_causal=False), query, query, query, None)
    untap_other()
    attention.sdpa_with_maps(module, query, query, query, None)
    untap_one()
    attention.sdpa_with_maps(module, query, query, query, None)
    states, everything = {"query", "key", "value"}, {"query", "key", "value", "attention", "attention_scores"}
    assert given == {"one": [everything, states], "other": [everything], "observer": [everything, states]}


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_offer_the_interface(tiny, family):
    assert attention.offers_interface(tiny(family).model) == (family in WITH_INTERFACE)


def test_the_implementation_is_put_back_when_the_pass_fails(tiny):
    model = tiny("bert").model
    with pytest.raises(ValueError, match="input_ids"):
        catalogue(model, {})
    assert model.config._attn_implementation == "sdpa"


def test_locations_read_as_data():
    place = Location("output", "encoder.layer.1", 0)
    assert place == Location("output", "encoder.layer.1", 0)
    assert re.fullmatch(r"Location\(source='output', path='encoder.layer.1', item=0, .*\)", repr(place))
    with pytest.raises(AttributeError, match="cannot assign to field 'path'"):
        place.path = "elsewhere"

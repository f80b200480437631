"""Names and kinds of models that are not the usual ones: each input of docs/reliability.md's section of that name."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf
from families import eager_twin, take
from runs import bert, distiller
from tolerance import assert_near
from torch import nn

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError, DataError
from knowledge_distillation.features import attention
from knowledge_distillation.features.adaptors import AdaptedOutput
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.features.inputs import checked_inputs, forward_inputs, named_inputs
from knowledge_distillation.features.measure import measure

TEXT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART = {
    "vocab_size": 99,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
T5 = {"vocab_size": 99, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


def tokens(length: int = 9, rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 98, (rows, length))
    mask = torch.ones_like(ids)
    mask[1, length - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def wide(model):
    """Weights wide enough that attention is far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


def kinds(model, inputs) -> dict[str, str]:
    return {str(name): offer.kind for name, offer in catalogue(model, inputs).offers.items()}


# --- asking for a feature changes no other output ------------------------------------------------------------------


@pytest.mark.case("C1")
def test_a_map_of_falcon_leaves_its_outputs_as_they_are():
    """Asked for attention under sdpa, its own code adds the mask as numbers 0 and 1: the causal mask is gone."""
    model, inputs = wide(hf.FalconForCausalLM(hf.FalconConfig(**TEXT))), tokens()
    before = model(**inputs).logits
    assert not torch.allclose(model(**inputs, output_attentions=True).logits, before, atol=1e-2)
    taken = take(model, inputs, "layer2.attention", "output.logits")
    attended = inputs["attention_mask"].bool()
    assert_near(taken["output.logits"][attended], before[attended])
    later = torch.ones(9, 9).triu(1).bool()
    assert float(taken["layer2.attention"][0].detach()[:, later].max()) == 0
    assert_near(taken["layer2.attention"].sum(-1), torch.ones(2, 2, 9))
    assert model.config._attn_implementation == "sdpa"
    assert "computes attention eagerly" in catalogue(model, inputs).notes[0]


@pytest.mark.case("C1")
def test_falcon_with_alibi_adds_it_twice_in_eager_attention_so_that_its_maps_are_refused():
    names = catalogue(wide(hf.FalconForCausalLM(hf.FalconConfig(**TEXT, alibi=True))), tokens())
    assert Feature("layer2", "attention") not in names.offers
    assert "would change the model's other outputs, in eager attention as well" in names.notes[-1]


@pytest.mark.case("C1")
def test_an_adaptor_that_reads_falcons_maps_leaves_its_outputs_as_they_are():
    model, inputs = wide(hf.FalconForCausalLM(hf.FalconConfig(**TEXT))), tokens()
    before, wanted = model(**inputs).logits, [Feature("own", "map"), Feature("own", "logits")]
    adapted = AdaptedOutput(
        model,
        lambda output: {"own": {"map": output.attentions[1], "logits": output.logits}},
        wanted,
        inputs,
        "teacher",
    )
    attended = inputs["attention_mask"].bool()
    assert_near(adapted(inputs)[wanted[1]][attended], before[attended])
    adapted.close()
    assert model.config._attn_implementation == "sdpa"


class Fickle(nn.Module):
    """Has maps to hand out, and gives other logits when asked for them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, output_attentions=False, output_hidden_states=False):
        hidden = self.layer(x) * (2 if output_attentions else 1)
        maps = (torch.softmax(hidden @ hidden.mT, -1)[:, None],) if output_attentions else None
        return hf.modeling_outputs.BaseModelOutput(hidden, (x, hidden) if output_hidden_states else None, maps)


@pytest.mark.case("C1")
def test_where_no_way_to_the_maps_leaves_the_outputs_they_are_refused():
    model, inputs = Fickle(), {"x": torch.randn(2, 6, 4)}
    names = catalogue(model, inputs)
    assert sorted(map(str, names.offers)) == [
        "embedding_layer.embedding",
        "layer1.hidden_states",
        "output.last_hidden_state",
    ]
    said = "attention is not offered: asking for attention maps would change the model's other outputs"
    assert said in names.explain(Feature("layer1", "attention"), "teacher")
    reads_maps = lambda output: {"own": {"map": output.attentions[0]}}  # noqa: E731
    with pytest.raises(
        ConfigError, match="output adaptor reads attention maps: asking for attention maps would change"
    ):
        AdaptedOutput(model, reads_maps, [Feature("own", "map")], inputs, "teacher")


@pytest.mark.case("C1")
def test_models_that_ask_for_the_name_of_the_implementation_find_one_they_know():
    """Sparse attention of DeepSeek-V3.2 and others masks only under "eager" and "sdpa", seen on long inputs alone."""
    model = bert(2).eval()
    restore = attention.switch_on(model)
    assert model.config._attn_implementation == "sdpa"
    assert hf.AttentionInterface()["sdpa"] is not hf.integrations.sdpa_attention.sdpa_attention_forward
    restore()
    assert hf.AttentionInterface()["sdpa"] is hf.integrations.sdpa_attention.sdpa_attention_forward


def test_a_model_without_users_of_its_maps_runs_the_plain_function(monkeypatch):
    model, other, inputs = bert(2).eval(), bert(2, seed=1).eval(), tokens()
    inputs["input_ids"] = inputs["input_ids"] % 40
    restore, seen = attention.switch_on(model), []
    with attention.observe(frozenset({"query"}), lambda module, tensors: seen.append(module)):
        other(**inputs)
        assert not seen
        model(**inputs)
    restore()
    assert len(seen) == 2


def test_a_probe_is_four_passes_of_a_few_rows(monkeypatch):
    model, rows = bert(2).eval(), []
    model.register_forward_pre_hook(lambda m, a, kw: rows.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    state, numpy_state = torch.get_rng_state(), __import__("numpy").random.get_state()[1].copy()
    measure(model, {"input_ids": torch.ones(2, 9, dtype=torch.long)})
    assert rows == [(3, 9), (3, 9), (2, 9), (2, 5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert (__import__("numpy").random.get_state()[1] == numpy_state).all()


# --- composites ----------------------------------------------------------------------------------------------------


@pytest.mark.case("C2")
@pytest.mark.parametrize("architecture", ["Detr", "ConditionalDetr"])
def test_the_switch_is_for_the_parts_that_offer_the_interface(architecture):
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", out_features=["stage1"]
    )
    sizes = {key: value for key, value in BART.items() if key != "vocab_size"}
    config = getattr(hf, f"{architecture}Config")(
        **sizes, backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, num_queries=5
    )
    model, inputs = (
        wide(getattr(hf, f"{architecture}ForObjectDetection")(config)),
        {"pixel_values": torch.randn(2, 3, 32, 32)},
    )
    before = model(**inputs).logits
    known = kinds(model, inputs)
    names = ["decoder_layer2.attention", "decoder_layer2.cross_attention", "encoder_layer1.attention", "output.logits"]
    assert [known[name] for name in names] == ["attention", "attention", "attention", "tokens"]
    taken = take(model, inputs, *names)
    assert taken["decoder_layer2.cross_attention"].shape == (2, 2, 5, taken["encoder_layer1.attention"].shape[-1])
    assert_near(taken["output.logits"], before)


# --- kinds are measured --------------------------------------------------------------------------------------------


class Streams(nn.Module):
    """Hidden states of several streams, (batch, length, 4, width), as of DeepSeek-V4; what it calls maps are none."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False, output_attentions=False):
        first = self.embed(input_ids)[:, :, None].expand(-1, -1, 4, -1)
        states = (first, self.mix(first))
        pooled = (states[1].mean(2) * attention_mask[..., None]).sum(1)
        maps = (self.mix(first).mean(2),) if output_attentions else None
        output = hf.modeling_outputs.SequenceClassifierOutput(logits=self.head(pooled))
        if output_hidden_states:
            output.hidden_states, output.attentions = states, maps
        return output


@pytest.mark.case("C3", "C4")
def test_hidden_states_of_four_dimensions_are_masked_over_their_length():
    teacher, student = Streams(), Streams()
    batch = {"input_ids": torch.randint(0, 40, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    batch["attention_mask"][1:, 4:] = 0
    entries = [{"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": "it"}]
    run = distiller(entries, teacher, student, train_dataloader=[batch])
    plan = run.plan()
    assert [*plan.students[""].kinds.values()] == ["tokens"]
    losses = []
    for ids in (batch["input_ids"], torch.where(batch["attention_mask"].bool(), batch["input_ids"], 39)):
        again = distiller(
            entries, teacher, student, train_dataloader=[{**batch, "input_ids": ids}], learning_rate=1e-9
        )
        losses.append(again.train()["it"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # what stands at padding does not count
    names = catalogue(teacher, batch)
    assert Feature("layer1", "attention") not in names.offers
    assert "attentions of shape 4×7×8 are no maps of queries and keys" in names.notes
    assert "are no maps of queries and keys" in names.explain(Feature("layer1", "attention"), "teacher")


@pytest.mark.case("C4")
def test_what_rwkv_calls_attentions_is_no_map():
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    names = catalogue(hf.RwkvModel(hf.RwkvConfig(**sizes)).eval(), {"input_ids": tokens()["input_ids"]})
    assert not [name for name in names.offers if name.output == "attention"]
    assert "attentions of shape 2×9×32 are no maps" in names.explain(Feature("layer2", "attention"), "student")


# --- encoder, decoder and cross maps -------------------------------------------------------------------------------


def two_stacks(family: str):
    if family == "led":
        config = hf.LEDConfig(**BART, attention_window=4, max_encoder_position_embeddings=64)
        return hf.LEDForConditionalGeneration(config)
    if family == "longt5":
        return hf.LongT5ForConditionalGeneration(hf.LongT5Config(**T5, num_decoder_layers=2, local_radius=3))
    part = hf.T5GemmaModuleConfig(**TEXT, num_key_value_heads=1, head_dim=8, layer_types=["full_attention"] * 2)
    return hf.T5GemmaForConditionalGeneration(
        hf.T5GemmaConfig(encoder=part, decoder={**part.to_dict(), "is_decoder": True})
    )


@pytest.mark.case("C5")
@pytest.mark.parametrize(
    ("family", "encoder"),
    [("led", "encoder_attentions of shape"), ("longt5", "encoder_attentions of shape"), ("t5gemma", "")],
)
def test_maps_of_two_stacks_are_told_apart(family, encoder):
    model, inputs = wide(two_stacks(family)), tokens()
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :6]
    names = catalogue(model, inputs)
    own = ["decoder_layer1.attention", "decoder_layer2.attention", "decoder_layer2.cross_attention"]
    taken = take(model, inputs, *own, *([] if encoder else ["encoder_layer2.attention"]))
    output = eager_twin(model)(**inputs, output_attentions=True)
    assert_near(taken["decoder_layer2.attention"], output.decoder_attentions[1])
    assert_near(taken["decoder_layer2.cross_attention"], output.cross_attentions[1])
    assert taken["decoder_layer2.cross_attention"].shape[2:] == (6, 9)
    if encoder:  # it attends in windows or blocks, and says so
        assert any(note.startswith(encoder) and "no maps of queries and keys" in note for note in names.notes)
        assert Feature("encoder_layer1", "attention") not in names.offers
    else:
        assert_near(taken["encoder_layer2.attention"], output.encoder_attentions[1])


# --- the same names each time --------------------------------------------------------------------------------------


@pytest.mark.case("C6")
def test_bigbird_has_the_same_names_after_a_short_batch_and_after_a_long_one():
    def fresh():
        sizes = {**TEXT, "max_position_embeddings": 128}
        return hf.BigBirdModel(hf.BigBirdConfig(**sizes, block_size=4, num_random_blocks=1)).eval()

    short, long = fresh(), fresh()
    first = kinds(short, tokens(9))
    assert first == kinds(short, tokens(9)) == kinds(long, tokens(64))
    assert "layer2.attention" in first
    assert (short.attention_type, long.attention_type) == ("original_full", "block_sparse")  # the probe is no batch


@pytest.mark.case("C6")
def test_llava_has_the_same_names_with_a_picture_and_without():
    sight = {**{k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}}
    vision = hf.CLIPVisionConfig(**sight, image_size=16, patch_size=8)
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_id=98)
    model, text = wide(hf.LlavaForConditionalGeneration(config)), tokens()
    pictured = {**text, "input_ids": text["input_ids"].clone(), "pixel_values": torch.randn(2, 3, 16, 16)}
    pictured["input_ids"][:, 1:5] = 98
    without, with_picture = kinds(model, text), kinds(model, pictured)
    assert "layer2.attention" in without
    assert with_picture.items() - without.items() <= {("output.image_hidden_states", "vector")}
    assert without.items() <= with_picture.items()
    places = {str(name): offer.location for name, offer in catalogue(model, text).offers.items()}
    given = catalogue(model, pictured).offers[Feature("embedding_layer", "embedding")].location
    assert (given.source, given.path) == ("input", places["embedding_layer.embedding"].path)


STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [2, 2, 2, 2], "num_attention_heads": [1, 2, 2, 2]}
HIERA = {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}


@pytest.mark.parametrize(
    ("architecture", "sizes", "names"),
    [
        ("Segformer", STAGES, [f"block{number}" for number in range(1, 9)]),
        ("GLPN", STAGES, [f"block{number}" for number in range(1, 9)]),
        ("Hiera", HIERA, [f"layer{number}" for number in range(1, 5)]),
    ],
)
def test_stages_of_a_picture_have_all_their_maps_named(architecture, sizes, names):
    """The first hidden state comes after the first stage; keys are fewer than queries, or in windows."""
    model = wide(getattr(hf, f"{architecture}Model")(getattr(hf, f"{architecture}Config")(**sizes)))
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    offered = [name.layer for name in catalogue(model, inputs).offers if name.output == "attention"]
    assert offered == names
    expected = eager_twin(model)(**inputs, output_attentions=True).attentions
    for number in (0, len(names) - 1):
        name = f"{names[number]}.attention"
        assert_near(take(model, inputs, name)[name], expected[number])


class Wrapped(nn.Module):
    """As PEFT wraps a model: a base around the model, and a forward that hands everything on."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.config = model.config

    def get_base_model(self):
        return self.base_model.model

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.base_model.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.case("C6")
@pytest.mark.parametrize("wrapper", ["like peft", "peft"])
def test_a_wrapped_model_offers_what_its_base_offers(wrapper):
    base, inputs = bert(2).eval(), tokens()
    inputs["input_ids"] = inputs["input_ids"] % 40
    expected = kinds(base, inputs)
    if wrapper == "peft":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).eval()
    else:
        model = Wrapped(base)
    assert kinds(model, inputs) == expected
    names = catalogue(model, inputs)
    assert names.find(Feature("bert_layer-1", "attention")) is names.offers[Feature("layer2", "attention")]
    inside = names.find(Feature("bert.encoder.layer.1", "output"))
    assert inside.location.path == "base_model.model.bert.encoder.layer.1"
    assert inside.kind == "tokens"
    maps = take(model, inputs, "layer2.attention")["layer2.attention"]
    assert_near(maps, take(base, inputs, "layer2.attention")["layer2.attention"])


# --- what forward takes --------------------------------------------------------------------------------------------


class HandsOn(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class ByName(HandsOn):
    def forward(self, **kwargs):
        return self.model(**kwargs)


class Handed(hf.BertForSequenceClassification):
    """A class of transformers, whose `forward` no longer says what it takes."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def of_class(kind):
    def made(model):
        made = kind(model.config)
        made.load_state_dict(model.state_dict())
        return made

    return made


class Named(nn.Module):
    """Names one parameter, and hands the others on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(3, 2)

    def forward(self, input_ids, **kwargs):
        return self.head(self.model(input_ids, **kwargs).logits)


WRAPS = [HandsOn, nn.DataParallel, lambda model: HandsOn(HandsOn(model)), Named, of_class(Handed)]


@pytest.mark.case("C7")
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapper_takes_what_the_model_inside_takes(wrap):
    base = bert(2, num_labels=3).eval()
    inputs = {**tokens(), "token_type_ids": torch.zeros(2, 9, dtype=torch.long), "sample": torch.arange(2)}
    assert [*checked_inputs(inputs, wrap(base), "student")] == ["input_ids", "attention_mask", "token_type_ids"]
    pair = named_inputs((inputs["input_ids"], inputs["attention_mask"]), wrap(base))
    assert [*pair] == ["input_ids", "attention_mask"]


def test_no_gradient_within_reentrant_checkpointing_is_called_so():
    student = bert(2)
    student.gradient_checkpointing_enable({"use_reentrant": True})
    entries = [{"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"}]
    with pytest.raises(ConfigError, match=r"within reentrant gradient checkpointing .* set use_reentrant=False"):
        distiller(entries, bert(), student).plan()


@pytest.mark.case("C7")
def test_a_model_in_data_parallel_has_its_names_and_teaches():
    base, inputs = bert(), tokens()
    inputs["input_ids"] = inputs["input_ids"] % 40
    assert kinds(nn.DataParallel(base), inputs) == kinds(base, inputs)
    assert kinds(ByName(ByName(base)), inputs) == kinds(base, inputs)
    assert kinds(of_class(Handed)(base), inputs) == kinds(base, inputs)
    entries = [
        {"teacher": "bert_layer4.hidden_states", "student": "layer2.hidden_states", "loss": "mse", "name": "it"}
    ]
    plain, parallel = (distiller(entries, teacher, bert(2, seed=3)) for teacher in (base, nn.DataParallel(base)))
    assert plain.train()["it"] == parallel.train()["it"]


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, features):
        return self.second(self.first(features["x"]))


class OfAnything(OfDict):
    def forward(self, **batch):
        return super().forward(batch)


@pytest.mark.case("C7")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            OfDict,
            "It takes: features. Where features is a whole batch, a data adaptor has to say so: {'features': batch}",
        ),
        (OfAnything, "The forward of OfAnything names no parameter, and is not wrapped around one model that does"),
    ],
)
def test_what_matches_nothing_is_told_what_to_do(model, message):
    with pytest.raises(DataError, match=re.escape(f"the student takes nothing of what the batch has (x). {message}")):
        checked_inputs({"x": torch.zeros(2, 3)}, model(), "student")
    assert forward_inputs({"features": {}}, OfDict()) == {"features": {}}

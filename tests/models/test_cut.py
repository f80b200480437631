"""Cutting where layers are not all alike: hybrids, backbones, several stacks, adapters, depth in the arithmetic."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import tiny
from tolerance import assert_near
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from knowledge_distillation import MultiLayerBasedDistillationLoss, student_from_teacher
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.plan.bind import bind
from knowledge_distillation.teachers.frozen import FrozenTeacher

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "use_cache": False,
}
DECODER = {**SIZES, "num_key_value_heads": 2}
MOE = {**DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {"shared_expert_intermediate_size": 16}
DEEPSEEK = {
    **DECODER,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}
MAMBA2 = {"mamba_headdim": 8, "n_mamba_heads": 4, "mamba_expand": 2, "mamba_ngroups": 1, "mamba_d_state": 4}
PER_LAYER = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 50}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
LINEAR |= {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
BART = {"vocab_size": 50, "d_model": 16, "max_position_embeddings": 32, "init_std": 0.3}
BART |= {f"{side}_layers": 4 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
BART |= {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE |= {"image_size": 32, "patch_size": 8, "initializer_range": 0.3}
WAV2VEC2 = {
    **{key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")},
    "num_hidden_layers": 3,
    "conv_dim": [16] * 3,
    "conv_stride": [2] * 3,
    "conv_kernel": [3] * 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
TEXT = {"input_ids": torch.arange(3, 17).view(2, 7)}
PICTURES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}


def build(name: str, config: PretrainedConfig | None = None, **settings: Any) -> PreTrainedModel:
    """A model in eval mode, each time with the same weights."""
    kind = getattr(hf, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(kind.config_class(**settings) if config is None else config).eval()


def outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        first = model(**inputs)[0]
    return first if isinstance(first, Tensor) else first[0]


class Skipped(nn.Module):
    """A layer that is not there, for all that it still says of itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *others: Any, **named: Any) -> Tensor:
        return hidden_states


def skipping(teacher: PreTrainedModel, path: str, numbers: Sequence[int]) -> PreTrainedModel:
    """A copy of the teacher in which the other layers hand on what they are given."""
    whole = copy.deepcopy(teacher)
    layers = whole.get_submodule(path)
    for number, layer in enumerate(layers, start=1):
        if number not in numbers:
            layers[number - 1] = Skipped(layer)
    return whole


def spliced(teacher: PreTrainedModel, path: str, numbers: Sequence[int], student: PreTrainedModel) -> PreTrainedModel:
    """A copy of the teacher that runs its chosen layers alone, under the student's config."""
    whole = copy.deepcopy(teacher)
    layers = whole.get_submodule(path)
    whole.set_submodule(path, nn.ModuleList(layers[number - 1] for number in numbers))
    for module in whole.modules():
        if getattr(module, "config", None) is not None:
            module.config = student.config
    return whole


def reloaded(student: PreTrainedModel, folder: Path) -> PreTrainedModel:
    student.save_pretrained(folder)
    loaded, report = type(student).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return loaded.eval()


def binds(config: list[dict[str, Any]], teacher: nn.Module, student: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    loss = MultiLayerBasedDistillationLoss(config)
    bind(loss, {"": student}, {"": FrozenTeacher(teacher)}, {"": inputs}, {"": inputs}).close()


# --- settings that follow from the layers --------------------------------------------------------------------------

HYBRIDS = {  # what -> model, its settings, list of layers, layers to keep, settings of the student
    "the first layers are dense": (
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "first_k_dense_replace": 1},
        "model.layers",
        [2, 4],
        {"first_k_dense_replace": 0},
    ),
    "some of the first layers are kept": (
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "first_k_dense_replace": 2},
        "model.layers",
        [1, 4],
        {"first_k_dense_replace": 1},
    ),
    "every other layer is sparse": (
        "Qwen3MoeForCausalLM",
        {**MOE, "head_dim": 8, "decoder_sparse_step": 2},
        "model.layers",
        [2, 4],
        {"decoder_sparse_step": 1},
    ),
    "dense layers are listed": (
        "Qwen2MoeForCausalLM",
        {**MOE, **SHARED, "mlp_only_layers": [0, 2]},
        "model.layers",
        [2, 3],
        {"mlp_only_layers": [1]},
    ),
    "layers without rotation": ("SmolLM3ForCausalLM", DECODER, "model.layers", [1, 4], {"no_rope_layers": [1, 0]}),
    "linear and full attention": (
        "Qwen3NextForCausalLM",
        {**MOE, **SHARED, **LINEAR, "head_dim": 8},
        "model.layers",
        [2, 4],
        {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "local and global attention, written twice": (
        "GPTNeoForCausalLM",
        {
            **{key: SIZES[key] for key in ("vocab_size", "hidden_size", "max_position_embeddings", "use_cache")},
            "num_layers": 4,
            "num_heads": 2,
            "window_size": 3,
            "attention_types": [[["global", "local"], 2]],
        },
        "transformer.h",
        [2, 4],
        {"attention_layers": ["local", "local"], "attention_types": [[["local"], 1], [["local"], 1]]},
    ),
    "windows": (
        "LongformerForMaskedLM",
        {**SIZES, "attention_window": [8, 4, 4, 8], "sep_token_id": 2},
        "longformer.encoder.layer",
        [2, 4],
        {"attention_window": [4, 8]},
    ),
    "a list of kinds, and no count": (
        "NemotronHForCausalLM",
        {
            **DECODER,
            "head_dim": 8,
            "layers_block_type": ["linear_attention", "full_attention", "linear_attention", "mlp"],
            "ssm_state_size": 4,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 1,
        },
        "model.layers",
        [2, 3],
        {"layers_block_type": ["full_attention", "linear_attention"], "num_hidden_layers": 2},
    ),
    "places that the layers themselves know": (
        "Zamba2ForCausalLM",
        {**DECODER, **MAMBA2, "layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
        "model.layers",
        [2, 4],
        {"layers_block_type": ["hybrid"] * 2, "hybrid_layer_ids": [0, 1]},
    ),
    "a few kinds, again and again": (
        "RecurrentGemmaForCausalLM",
        {
            **{**DECODER, "head_dim": 8, "lru_width": 16, "attention_window_size": 4},
            "block_types": ["recurrent", "recurrent", "attention"],
        },
        "model.layers",
        [1, 3, 4],
        {"block_types": ["recurrent", "attention", "recurrent"]},
    ),
    "the last layers take over keys and values": (
        "Gemma4ForCausalLM",
        {
            **{**DECODER, **PER_LAYER, "head_dim": 8, "global_head_dim": 8, "sliding_window": 3},
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        "model.layers",
        [1, 3, 4, 6],
        {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2},
    ),
    "settings of single layers, by place": (
        "EmbeddingGemma2TextModel",
        {**DECODER, "hidden_size_per_layer_input": 4, "head_dim": 8, "sliding_window": 3},
        "layers",
        [2, 4],
        {"layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.mark.case("B1", "B4")
@pytest.mark.parametrize("what", HYBRIDS)
def test_settings_of_single_layers_are_cut_with_them(what, tmp_path):
    name, settings, path, chosen, expected = HYBRIDS[what]
    teacher = build(name, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = student_from_teacher(teacher, chosen)
    assert {key: getattr(student.config, key) for key in expected} == expected
    by_place = hasattr(teacher.config, "hybrid_layer_ids") or hasattr(teacher.config, "hidden_size_per_layer_input")
    alone = skipping(teacher, path, chosen) if by_place else spliced(teacher, path, chosen, student)
    expectation = outputs(alone, TEXT)
    assert by_place or torch.equal(outputs(student, TEXT), expectation)
    assert_near(outputs(student, TEXT), expectation)
    assert_near(outputs(reloaded(student, tmp_path), TEXT), expectation)


@pytest.mark.case("B1")
def test_a_weight_is_neither_lost_nor_borrowed():
    teacher = build("DeepseekV3ForCausalLM", **DEEPSEEK, first_k_dense_replace=2)
    message = (
        "layers [3, 1] of DeepseekV3ForCausalLM: layer 3 as layer 1 would lose mlp.experts.gate_up_proj, "
        "mlp.experts.down_proj, mlp.gate.weight, mlp.gate.e_score_correction_bias and 3 more; layer 3 as layer 1 "
        "lacks mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight; layer 1 of such a student can be 1, 2"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        student_from_teacher(teacher, [3, 1])


@pytest.mark.case("B1")
def test_a_layer_that_would_read_what_another_wrote_is_refused():
    """Layer 4 takes over the keys and values of layer 3, so layer 2 cannot stand for that."""
    sizes = {**DECODER, **PER_LAYER, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 1}
    teacher = build("Gemma4ForCausalLM", **sizes, layer_types=["full_attention"] * 4)
    with pytest.raises(ConfigError, match="layer 1 of such a student can be 3"):
        student_from_teacher(teacher, [2, 4])
    assert student_from_teacher(teacher, [1, 3, 4]).config.num_kv_shared_layers == 1


@pytest.mark.case("B7", "B8")
def test_a_model_that_its_config_does_not_build_is_refused_with_the_reason():
    class WithMore(hf.LlamaForCausalLM):
        def __init__(self, config, more):
            super().__init__(config)

    cut_by_hand = build("LlamaForCausalLM", **DECODER)
    cut_by_hand.model.layers = cut_by_hand.model.layers[:3]
    with pytest.raises(ConfigError, match=r"has 3 modules in model.layers, and by its config 4, so layers cannot"):
        student_from_teacher(cut_by_hand, [1, 3])
    with pytest.raises(ConfigError, match=r"WithMore cannot be built from its config alone \(TypeError: .*'more'"):
        student_from_teacher(WithMore(hf.LlamaConfig(**DECODER), 1), [1, 3])


@pytest.mark.case("B2")
def test_a_layer_whose_norm_would_be_lost_is_refused():
    model = tiny("modernbert").model
    message = "layer 2 as layer 1 would lose attn_norm.weight; layer 1 of such a student can be 1"
    with pytest.raises(ConfigError, match=re.escape(f"layers [2, 3] of {type(model).__name__}: {message}")):
        student_from_teacher(model, [2, 3])


@pytest.mark.case("B3")
@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("Dinov2Backbone", {"out_indices": [2, 4], "mlp_ratio": 2}, ["stage1", "stage2"]),
        ("Dinov2ForImageClassification", {"mlp_ratio": 2}, ["stage2"]),
        ("DINOv3ViTModel", {}, ["stage2"]),
        ("BeitForImageClassification", {}, ["stage2"]),
    ],
)
def test_a_cut_backbone_loads(name, settings, kept, tmp_path):
    teacher = build(name, **{**IMAGE, **settings})
    student = student_from_teacher(teacher, [2, 4])
    assert student.config.out_features == kept
    loaded = reloaded(student, tmp_path)
    assert loaded.config.out_features == kept
    assert torch.equal(outputs(loaded, PICTURES), outputs(student, PICTURES))


# --- which stack ---------------------------------------------------------------------------------------------------


@pytest.mark.case("B5")
@pytest.mark.parametrize("chosen", [[2, 4], {"decoder": [2, 4]}], ids=["list", "mapping"])
def test_a_decoder_of_an_encoder_decoder_has_one_stack(chosen):
    teacher = build("BartForCausalLM", **BART)
    student = student_from_teacher(teacher, chosen)
    assert (student.config.decoder_layers, len(student.model.decoder.layers)) == (2, 2)
    expectation = outputs(spliced(teacher, "model.decoder.layers", [2, 4], student), TEXT)
    assert torch.equal(outputs(student, TEXT), expectation)


@pytest.mark.case("B5")
def test_a_list_that_is_as_long_as_the_model_is_deep_by_chance_stays():
    teacher = build("Wav2Vec2ForCTC", **WAV2VEC2)
    sounds = {"input_values": torch.linspace(-1, 1, 800).view(2, 400)}
    student = student_from_teacher(teacher, [1, 3], inputs=sounds)
    assert student.config.conv_dim == [16] * 3
    assert student.config.conv_kernel == [3] * 3
    expectation = outputs(spliced(teacher, "wav2vec2.encoder.layers", [1, 3], student), sounds)
    assert torch.equal(outputs(student, sounds), expectation)


@pytest.mark.case("B5")
def test_a_detector_is_cut_by_encoder_and_decoder():
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {key: value for key, value in BART.items() if key not in ("vocab_size", "max_position_embeddings")}
    teacher = build("DetrForObjectDetection", **sizes, backbone_config=backbone, num_queries=3, num_labels=2)
    with pytest.raises(ConfigError, match=re.escape('a mapping {"encoder": [...], "decoder": [...]}; found [2, 4]')):
        student_from_teacher(teacher, [2, 4])
    student = student_from_teacher(teacher, {"encoder": [1, 2, 3], "decoder": [1, 2, 3, 4]}, inputs=PICTURES)
    assert (len(student.model.encoder.layers), len(student.model.decoder.layers)) == (3, 4)


def test_one_side_is_cut_although_the_other_is_as_deep_by_default():
    teacher = build(
        "MT5ForConditionalGeneration", vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=4, num_heads=2
    )
    student = student_from_teacher(teacher, {"encoder": [2, 4]})
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 4)


def test_places_of_all_layers_are_places():
    teacher = build(
        "Llama4ForCausalLM",
        **{**DECODER, "head_dim": 8, "intermediate_size_mlp": 24, "num_local_experts": 2},
        interleave_moe_layer_step=1,
    )
    student = student_from_teacher(teacher, [2, 4])
    assert (student.config.moe_layers, student.config.no_rope_layers) == ([0, 1], [1, 0])


@pytest.mark.case("B6")
@pytest.mark.parametrize(
    ("name", "settings", "outputs"),
    [
        ("MambaForCausalLM", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4}, []),
        ("FNetForMaskedLM", {k: v for k, v in SIZES.items() if k != "num_attention_heads"}, []),
        (
            "Qwen3NextForCausalLM",
            {**MOE, **SHARED, **LINEAR, "head_dim": 8},
            [{"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"}],
        ),
    ],
)
def test_the_returned_config_names_what_both_offer(name, settings, outputs):
    teacher = build(name, **settings)
    student, config = student_from_teacher(teacher, [2, 4], return_config=True)
    assert config == [
        {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "mse"},
        {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
        *outputs,
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
    ]
    binds(config, teacher, student, TEXT)


def _image_to_text() -> PreTrainedModel:
    decoder = hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2, n_positions=32, add_cross_attention=True)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(**IMAGE), decoder)
    return build("VisionEncoderDecoderModel", config)


def _t5gemma() -> PreTrainedModel:
    side = hf.T5GemmaModuleConfig(**DECODER, head_dim=8, sliding_window=3)
    return build("T5GemmaForConditionalGeneration", hf.T5GemmaConfig(encoder=side, decoder=side, vocab_size=50))


def _llava() -> PreTrainedModel:
    vision = hf.CLIPVisionConfig(**IMAGE)
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**DECODER), image_token_index=49)
    return build("LlavaForConditionalGeneration", config)


def _clip() -> PreTrainedModel:
    text = {**SIZES, "eos_token_id": 49}
    return build("CLIPModel", hf.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=8))


DECODED = {"decoder_input_ids": TEXT["input_ids"][:, :5]}
COMPOSITES = {  # what -> model, layers to keep, where each stack lies, inputs, what the list names
    "VisionEncoderDecoder": (
        _image_to_text,
        {"encoder": [2, 4], "decoder": [1, 3]},
        {"encoder.layers": [2, 4], "decoder.transformer.h": [1, 3]},
        {**PICTURES, **DECODED},
        ["encoder_layer{1,2}.hidden_states", "decoder_layer{1,2}.hidden_states"],
    ),
    "T5Gemma": (
        _t5gemma,
        {"encoder": [2, 4], "decoder": [2, 3]},
        {"model.encoder.layers": [2, 4], "model.decoder.layers": [2, 3]},
        {**TEXT, **DECODED},
        ["encoder_layer{1,2}.hidden_states", "decoder_layer{1,2}.hidden_states"],
    ),
    "LLaVA": (
        _llava,
        {"text_model": [1, 4]},
        {"model.language_model.layers": [1, 4]},
        TEXT,
        ["layer{1,2}.hidden_states"],
    ),
    "CLIP": (
        _clip,
        {"text_model": [2, 4], "vision_model": [1, 3]},
        {"text_model.encoder.layers": [2, 4], "vision_model.encoder.layers": [1, 3]},
        {**TEXT, **PICTURES},
        ["text_model.encoder.layers.{0,1}.output", "vision_model.encoder.layers.{0,1}.output"],
    ),
}


@pytest.mark.case("B7")
@pytest.mark.parametrize("what", COMPOSITES)
def test_a_model_of_several_parts_is_cut_by_part(what, tmp_path):
    make, chosen, places, inputs, named = COMPOSITES[what]
    teacher = make()
    student, config = student_from_teacher(teacher, chosen, return_config=True, inputs=inputs)
    for path, numbers in places.items():
        theirs, ours = teacher.get_submodule(path), student.get_submodule(path)
        assert len(ours) == len(numbers)
        for layer, number in zip(ours, numbers, strict=True):
            state = theirs[number - 1].state_dict()
            assert all(torch.equal(weight, state[name]) for name, weight in layer.state_dict().items())
    assert [entry["student"] for entry in config if entry["student"] in named] == named
    binds(config, teacher, student, inputs)
    loaded = reloaded(student, tmp_path)
    assert torch.equal(outputs(loaded, inputs), outputs(student, inputs))
    message = "are given as a mapping {" + ", ".join(f'"{name}": [...]' for name in ("text_model", "vision_model"))
    if what == "CLIP":
        with pytest.raises(ConfigError, match=re.escape(message + "}; found [1, 2]")):
            student_from_teacher(teacher, [1, 2])


@pytest.mark.case("B7")
def test_a_tower_that_no_made_up_input_reaches_is_run_on_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = student_from_teacher(_llava(), {"vision_tower": [2, 4]})
    assert student.config.vision_config.num_hidden_layers == 2
    assert student.config.text_config.num_hidden_layers == 4


# --- adapters and other forms --------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A layer with something added to it, as PEFT puts around layers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.added = layer, nn.Parameter(torch.full_like(layer.weight, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.base_layer.weight + self.added, self.base_layer.bias)

    def merge(self) -> None:
        self.base_layer.weight.data += self.added

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer


class Wrapper(nn.Module):
    """A model around one with adapters, as PEFT's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def merge_and_unload(self) -> nn.Module:
        attention = self.model.bert.encoder.layer[0].attention.self
        attention.query.merge()
        attention.query = attention.query.get_base_layer()
        return self.model


@pytest.mark.case("B8")
@pytest.mark.parametrize("wrapped", [True, False], ids=["a model around the model", "adapters inside it"])
def test_adapters_are_merged_into_a_copy(wrapped):
    model = tiny("bert")
    attention = model.model.bert.encoder.layer[0].attention.self
    attention.query = Adapter(attention.query)
    before = copy.deepcopy(model.model.state_dict())
    expectation = model.model(**model.inputs).logits
    student = student_from_teacher(Wrapper(model.model) if wrapped else model.model, [1, 2, 3])
    assert_near(student(**model.inputs).logits, expectation)
    assert type(student) is type(model.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


@pytest.mark.case("B8")
def test_lora_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny("bert")
    expectation = model.model(**model.inputs).logits
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, task_type="SEQ_CLS")
    teacher = peft.get_peft_model(model.model, settings).eval()
    student = student_from_teacher(teacher, [1, 2, 3])
    assert_near(student(**model.inputs).logits, teacher(**model.inputs).logits)
    assert (student(**model.inputs).logits - expectation).abs().max() > 1e-3


@pytest.mark.case("B8")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "a student is cut out of a transformers model; found Linear: give the model inside"),
        (
            lambda: nn.DataParallel(tiny("bert").model),
            "a student is cut out of a transformers model; found DataParallel: give the model inside it",
        ),
        (
            lambda: tiny("bert").model.to("meta"),
            "bert.embeddings.word_embeddings.weight lies on no device (offloaded), so it cannot be copied: load it",
        ),
    ],
)
def test_what_is_no_whole_model(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        student_from_teacher(make(), [1])


# --- the generation config -----------------------------------------------------------------------------------------


@pytest.mark.case("A5")
def test_the_generation_config_is_the_teachers(tmp_path):
    teacher = tiny("llama").model
    teacher.generation_config.update(eos_token_id=[2, 7], temperature=0.6, top_p=0.9, do_sample=True, pad_token_id=3)
    student = student_from_teacher(teacher, [1, 3])
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()
    student.generation_config.temperature = 0.1
    assert teacher.generation_config.temperature == 0.6
    loaded = reloaded(student, tmp_path).generation_config
    assert (loaded.eos_token_id, loaded.do_sample, loaded.pad_token_id, loaded.top_p) == ([2, 7], True, 3, 0.9)


# --- depth in the arithmetic ---------------------------------------------------------------------------------------


def test_depth_in_a_layers_arithmetic_is_said():
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True).model
    with pytest.warns(UserWarning, match="depth enters the arithmetic of GPT2LMHeadModel's layers: layer 3"):
        student_from_teacher(model, [1, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student_from_teacher(model, [1, 2])


def test_drop_path_of_another_rate_is_said():
    teacher = build("BeitForImageClassification", **IMAGE, drop_path_rate=0.3)
    with pytest.warns(UserWarning, match="layer 2 as layer 1: drop_path is a BeitDropPath, not a Identity"):
        student_from_teacher(teacher, [2, 4])


def test_modules_that_take_turns_cannot_be_cut():
    """ALBERT with two groups: the student's second layer would be of the other group."""
    model = tiny("albert", num_hidden_layers=4, num_hidden_groups=2).model
    with pytest.raises(ConfigError, match="are a few modules that take turns by their number: layer 2 gives other"):
        student_from_teacher(model, [1, 2])


def test_inputs_that_the_model_does_not_run_on():
    with pytest.raises(ConfigError, match="BertForSequenceClassification does not run on these inputs"):
        student_from_teacher(tiny("bert").model, [1], inputs={"pixel_values": torch.zeros(1)})


def test_a_cut_changes_no_random_number_and_no_mode():
    model = tiny("bert").model.train()
    torch.manual_seed(0)
    student_from_teacher(model, [1, 3])
    one = torch.rand(1)
    torch.manual_seed(0)
    type(model)(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 2}))
    assert torch.equal(torch.rand(1), one)
    assert model.training

"""Every model type of the installed transformers as a tiny model, from its config alone.

Nothing is written down for a family where a rule does: numbers of a config become small by what they are called, so
that widths stay divisible by heads and parts fit each other. `family_inputs.py` has inputs for them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

WIDTH, HEADS, HEAD, VOCABULARY, DEPTH, PICTURE = 32, 2, 16, 128, 4, 64
LARGEST = 20_000_000  # parameters of what still counts as tiny

# Which of a family's models: those with a head first, for their logits; that which trains the family before others.
_KINDS = (
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQUENCE_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "TIME_SERIES_PREDICTION",
)


_TABLES = [getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES") for kind in _KINDS]
_TABLES.append(modeling_auto.MODEL_MAPPING_NAMES)
_TABLES += [v for k, v in vars(modeling_auto).items() if k.startswith("MODEL_") and k.endswith("_MAPPING_NAMES")]


def families() -> list[str]:
    """The model types that an Auto class of transformers builds; the others are parts of these."""
    return sorted(name for name in CONFIG_MAPPING if any(name in table for table in _TABLES))


def architectures(model_type: str) -> list[type[PreTrainedModel]]:
    """The classes that may stand for a family, the best first."""
    names = [table[model_type] for table in _TABLES if model_type in table]
    kinds = [getattr(transformers, name if isinstance(name, str) else name[0], None) for name in names]
    found = [kind for kind in kinds if kind is not None]
    own = [kind for kind in found if kind.config_class is CONFIG_MAPPING[model_type]]
    return list(dict.fromkeys(own or found))


# --- configs -----------------------------------------------------------------------------------------------------

# What a number of a config becomes, by the first pattern that its name matches; None leaves it.
_SIZES: tuple[tuple[str, Any], ...] = (
    (r"(key_value|kv).*heads?$|heads?_kv$", lambda v: 1 if v == 1 else HEADS),
    (r"^mamba_(d_head|head_?dim)$", lambda v: WIDTH),
    (r"^mamba_d_ssm$", lambda v: 2 * WIDTH),
    (r"^rotary_dim$", lambda v: 8),
    (r"(^|_)d_head$", lambda v: HEAD),
    (r"(num_|n_|^)group|(topk|expert)_group|^(mamba_)?n_?groups$", lambda v: 1),
    (r"heads?$", lambda v: min(v, HEADS)),
    (r"^(qk_nope_head_dim|qk_rope_head_dim)$", lambda v: 8 if v else 0),
    (r"head_dim|attention_head_size|^d_kv$|kv_channels|attention_key_size", lambda v: HEAD if v else v),
    (r"rank$", lambda v: min(v, 8)),
    (r"vocab_size|vocab$", lambda v: min(v, VOCABULARY)),
    (r"token_id$|token_index$|_id$", None),
    (r"(layers|^n_layer|^depth|_depth|num_blocks)$", lambda v: min(v, DEPTH)),
    (r"dense_replace|moe_layer_start", lambda v: min(v, 1)),
    (r"num_kv_shared", lambda v: 0),
    (r"position|n_ctx|seq_len|max_seq|context_length", lambda v: min(v, 64)),
    (r"experts_per|top_?k$|moe_k$|num_selected|index_kpool", lambda v: min(v, 2)),
    (r"shared_experts", lambda v: min(v, 1)),
    (r"num.*experts$|n_routed_experts", lambda v: min(v, 4)),
    (r"image_size|img_size|input_size|pretrain", lambda v: min(v, PICTURE) if v > 8 else v),
    (r"patch_size|patch_stride", lambda v: min(v, 8)),
    (r"^window_size$", lambda v: min(v, 2)),
    (r"sliding_window|window_size|local_attention|attention_window", lambda v: min(v, 4) if v > 0 else v),
    (r"kernel", lambda v: min(v, 7 if v % 2 else 16)),
    (r"stride|ratio|factor|scale|type_vocab|pad|bins?$|merge|num_labels|groups", lambda v: min(v, 16)),
    (r"intermediate|ffn|d_ff|mlp|inner|feed_?forward", lambda v: min(v, 2 * WIDTH) if v > 8 else v),
    (r"queries|codebooks|latents|proposals|num_points|frames|num_query", lambda v: min(v, 8)),
    (r"size|dim|width|channels|features|embd|d_model|filters|hidden|conv_dim|planes", lambda v: min(v, WIDTH)),
)
_FIXED = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "initializer_factor": 1.0,
    "use_cache": False,
    "layerdrop": 0.0,
    "use_mamba_kernels": False,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "feature_size": 4}
_EFFICIENT = {
    "hidden_dim": 80,
    "width_coefficient": 0.25,
    "image_size": PICTURE,
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
}
# What no rule finds: numbers that have to fit each other in one family alone.
_OWN: dict[str, dict[str, Any]] = {
    "align": {"projection_dim": 80},
    "align_vision_model": _EFFICIENT,
    "autoformer": _SERIES,
    "bridgetower_vision_model": {"hidden_size": 64},
    "bridgetower_text_model": {"hidden_size": 64},
    "bridgetower": {"hidden_size": 64},
    "bros": {"dim_bbox_sinusoid_emb_2d": 8 * 4, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": HEAD},
    "chameleon": {"vocabulary_map": {"<image>": 95}},
    "clap_audio_model": {"spec_size": 64, "patch_embeds_hidden_size": 16, "hidden_size": 128, "window_size": 2},
    "clvp": {"projection_dim": 64},
    "clvp_decoder": {"hidden_size": 64},
    "clvp_encoder": {"hidden_size": 64, "projection_dim": 64},
    "codegen": {"n_head": 4, "rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {f"{kind}_attention": _ROPE for kind in ("full", "sliding")}},
    "d_fine": {"encoder_in_channels": [16, 16, 16], "decoder_in_channels": [32, 32, 32]},
    "deimv2": {"encoder_in_channels": [16, 16, 16], "decoder_in_channels": [32, 32, 32]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots1": {"moe_intermediate_size": 16, "n_shared_experts": 1},
    "dots3_note_text": {"head_dim": HEAD},
    "dpt": {"backbone_out_indices": [0, 1, 2, 3]},
    "efficientnet": _EFFICIENT,
    "emu3": {"vocabulary_map": {"<image>": 95, "<|extra_200|>": 94}, "pad_token_id": 0},
    "ernie4_5_vl_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "exaone4_5_vision": {"window_size": 32},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "hgnet_v2": {
        "embedding_size": 8,
        "hidden_sizes": [16] * 4,
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 16],
        "stage_mid_channels": [8] * 4,
        "stage_out_channels": [16] * 4,
        "stage_numb_of_layers": [1] * 4,
    },
    "informer": _SERIES,
    "llama4": {"pad_token_id": 0},
    "mobilevit": {"hidden_sizes": [16, 32, 32]},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 16},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4]},
    "swin2sr": {"num_heads": [2, 2], "depths": [1, 1]},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "time_series_transformer": _SERIES,
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "levit": {"patch_size": 16},
    "lilt": {"hidden_size": 48},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"head_dim": WIDTH},
    "seggpt": {"merge_index": 0, "intermediate_hidden_state_indices": [0, 1, 2, 3]},
    "wav2vec2-bert": {"vocab_size": 32},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "xlnet": {"d_head": HEAD},
}
_UNSAID = {  # where a config leaves None
    "head_dim": HEAD,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "num_local_experts": 4,
}
_LEFT_OUT = ("transformers_version", "model_type", "dtype", "torch_dtype", "out_features", "stage_names")
_LEFT_OUT += ("architectures", "id2label", "label2id", "_name_or_path", "auto_map")


def tiny_config(model_type: str) -> PretrainedConfig:
    """The config of a family's tiny model."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**_small_settings(kind()))


def _small_settings(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of a config and its parts, made small."""
    whole = config.to_dict()
    depths = {v for k, v in whole.items() if isinstance(v, int) and re.search(r"layers?$|^depth$", k) and v > DEPTH}
    settings: dict[str, Any] = {}
    latent = "qk_rope_head_dim" in whole  # attention whose heads have parts of their own for positions
    for key in whole:
        value = vars(config).get(key, whole[key])
        if key in _LEFT_OUT:
            continue
        if isinstance(value, PretrainedConfig):
            settings[key] = type(value)(**_small_settings(value))
        else:
            settings[key] = _small(key, value, depths)
    if latent and "head_dim" in settings:
        settings["head_dim"] = 8
    if isinstance(settings.get("rope_parameters"), dict) and "rope_type" in settings["rope_parameters"]:
        settings["rope_parameters"]["mrope_section"] = _sections(settings)
    settings |= _OWN.get(config.model_type, {})
    if settings.get("per_layer_config"):
        settings["per_layer_config"] = _first_and_last(settings["per_layer_config"], max(depths, default=DEPTH))
    return settings


def _sections(settings: Mapping[str, Any]) -> list[int]:
    """How a rotary embedding is shared out between time, height and width."""
    rope = settings["rope_parameters"]
    half = int(HEAD * rope.get("partial_rotary_factor", settings.get("partial_rotary_factor") or 1)) // 2
    return [half // 4, half // 2 - half // 8, half - half // 4 - half // 2 + half // 8]


def _first_and_last(by_layer: Mapping[Any, Any], depth: int) -> dict[int, Any]:
    """Of what is said of single layers, that of the first three, and of the last one as the fourth's."""
    kept = {int(n): value for n, value in by_layer.items()}
    return {min(n, DEPTH - 1): value for n, value in kept.items() if n < DEPTH - 1 or n == depth - 1}


def _small(key: str, value: Any, depths: set[int]) -> Any:
    if key in _FIXED:
        return _FIXED[key]
    if isinstance(value, float):
        return 0.0 if re.search(r"drop|mask_.*prob", key) else value
    if value is None and key in _UNSAID:
        return _UNSAID[key]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return _small_number(key, value)
    if isinstance(value, (list, tuple)) and value:
        return type(value)(_small_list(key, list(value), depths))
    if isinstance(value, Mapping):
        return {k: _small(str(k), v, depths) for k, v in value.items()}
    return value


def _small_number(key: str, value: int) -> int:
    if re.search(r"token_id$|token_index$|_id$|_idx$", key):
        return value if value < VOCABULARY else 96 + sum(map(ord, key)) % 30
    rule = next((rule for pattern, rule in _SIZES if re.search(pattern, key)), None)
    return rule(value) if rule else value


def _small_list(key: str, value: list[Any], depths: set[int]) -> list[Any]:
    if len(value) in depths:  # one for each layer
        return [*value[: DEPTH - 1], value[-1]]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return [_small_list(key, v, depths) if isinstance(v, list) and v else v for v in value]
    if key == "out_indices" or re.search(r"ind(ex|ic)es|layer_ids|_layers$", key):
        small = len(value) > DEPTH or max(value) <= DEPTH and "block" not in key
        return value if small else list(range(1, len(value) + 1))
    if re.search(r"depths|num_blocks|layers_per|numb_of_layers", key):
        return [min(v, 2) for v in value]
    if re.search(r"image_size|img_size", key):
        return [min(v, PICTURE) for v in value]
    if re.search(r"patch_size", key):
        return [min(v, 8) for v in value]
    if re.search(r"heads", key):
        return [max(1, v // value[0]) for v in value]
    if re.search(r"token_id", key):
        return [_small_number(key, v) for v in value]
    if re.search(r"hidden_sizes|embed_dims?|widths|dims|channels|conv_dim|_sizes", key) and value[0] > 16:
        return [max(1, v * 16 // value[0]) for v in value]
    return value


# --- models ------------------------------------------------------------------------------------------------------


class TooLarge(Exception):
    """A model that does not become tiny."""


def build(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of a family in eval mode: of the first of its classes that takes the config. Equal seeds give
    equal weights.

    Raises:
        TooLarge: by the number of parameters, before any is made.
        Exception: what the first class says, where none can be built.
    """
    config, failure = tiny_config(model_type), None
    for kind in architectures(model_type):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in kind._from_config(copy.deepcopy(config)).parameters())
            if size > LARGEST:
                raise TooLarge(f"{size:,} parameters")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return kind._from_config(config).eval()
        except Exception as error:  # whatever a class says to a config that is not for it
            failure = failure or error
    raise failure or ValueError("no class")

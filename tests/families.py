"""Tiny models of every family the tests run on, built from configs, with inputs that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import catalogue

VOCABULARY, LABELS = 50, 3
SPREAD = 0.3  # of initial weights: wide enough that attention maps are far from uniform
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": LABELS,
    "initializer_range": SPREAD,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": SPREAD,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2}
_BART = {"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32, "init_std": SPREAD}
_BART |= {
    f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("attention_heads", 2), ("ffn_dim", 24))
}
_IMAGE = {"image_size": 32, "num_labels": LABELS, "initializer_range": SPREAD}
_VIT = {
    **_IMAGE,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "patch_size": 8,
}
_SWIN = {**_IMAGE, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": LABELS}
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

# family -> model class, its config without dropout, the config's names of dropout
_FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bert": ("BertForSequenceClassification", _TEXT, _DROPOUTS),
    "roberta": ("RobertaForSequenceClassification", _TEXT, _DROPOUTS),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        _DROPOUTS,
    ),
    "mpnet": ("MPNetForSequenceClassification", _TEXT, _DROPOUTS),
    "albert": ("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 8}, _DROPOUTS),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {**_TEXT, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4},
        ("embedding_dropout", "attention_dropout", "mlp_dropout"),
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {**_GPT2, "bos_token_id": 1, "eos_token_id": 2},
        ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    ),
    "llama": ("LlamaForCausalLM", {**_TEXT, "num_key_value_heads": 1}, ("attention_dropout",)),
    "t5": ("T5ForConditionalGeneration", {**_T5, "num_heads": 2, "decoder_start_token_id": 0}, ("dropout_rate",)),
    "bart": (
        "BartForConditionalGeneration",
        {**_BART, "encoder_layers": 3, "decoder_layers": 2},
        ("dropout", "attention_dropout", "activation_dropout"),
    ),
    "vit": ("ViTForImageClassification", _VIT, _DROPOUTS),
    "swin": ("SwinForImageClassification", _SWIN, _DROPOUTS),
    "resnet": ("ResNetForImageClassification", _RESNET, ()),
}
FAMILIES = tuple(_FAMILIES)
NO_INTERFACE = ("deberta-v2", "mpnet")  # attention of their own, outside transformers' attention interface
WITH_INTERFACE = tuple(f for f in FAMILIES if f not in (*NO_INTERFACE, "resnet"))
TWO_STACKS = ("t5", "bart")
IMAGES = ("vit", "swin", "resnet")


@dataclass
class Tiny:
    """A tiny model in eval mode, and inputs for it: two rows, the second padded where there is a mask."""

    family: str
    model: PreTrainedModel
    inputs: dict[str, Tensor]

    @property
    def stacks(self) -> dict[str, str]:
        """Name of a stack of layers -> what its output fields start with (`encoder_` of `encoder_hidden_states`)."""
        return (
            {"encoder_layer": "encoder_", "decoder_layer": "decoder_"} if self.family in TWO_STACKS else {"layer": ""}
        )

    def depth(self, stack: str) -> int:
        return 2 if stack == "decoder_layer" or self.family in ("swin", "resnet") else 3

    @property
    def hidden_states(self) -> dict[str, tuple[str, int]]:
        """Feature -> the field and the position that hold it in the model's own output."""
        names = {}
        for stack, side in self.stacks.items():
            names[f"{stack.replace('layer', 'embedding_layer')}.embedding"] = (f"{side}hidden_states", 0)
            for n in range(1, self.depth(stack) + 1):
                names[f"{stack}{n}.hidden_states"] = (f"{side}hidden_states", n)
        return names

    @property
    def attentions(self) -> dict[str, tuple[str, int]]:
        """The same for attention maps; Swin's are one per block, and its own output has one per stage."""
        if self.family in ("swin", "resnet"):
            return {}
        names = {}
        for stack, side in self.stacks.items():
            for n in range(1, self.depth(stack) + 1):
                names[f"{stack}{n}.attention"] = (f"{side}attentions", n - 1)
                if stack == "decoder_layer":
                    names[f"{stack}{n}.cross_attention"] = ("cross_attentions", n - 1)
        return names


def tiny(family: str, dropout: float = 0.1, seed: int = 0, **changes: Any) -> Tiny:
    """A tiny model of a family; `changes` go to its config. Equal arguments give equal weights and inputs."""
    name, settings, dropouts = _FAMILIES[family]
    architecture = getattr(hf, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = architecture.config_class(**{**settings, **dict.fromkeys(dropouts, dropout), **changes})
        return Tiny(family, architecture(config).eval(), _inputs(family))


def eager_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with eager attention throughout: the reference for attention maps."""
    twin = type(model)._from_config(model.config, attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    return twin


def take(model: nn.Module, inputs: Mapping[str, Any], *names: str, seed: int = 0) -> dict[str, Tensor]:
    """The features of one pass from a given random state, by name; nothing is left on the model."""
    known = catalogue(model, inputs)
    capture = Capture(model, {name: known.find(Feature(*name.rsplit(".", 1))).location for name in names})
    torch.manual_seed(seed)
    try:
        taken = capture(inputs)
    finally:
        capture.close()
    return {name: taken[name] for name in names}


def hooks_left_on(model: nn.Module) -> list[str]:
    """The modules that carry a hook of this package; transformers leaves some of its own where it records outputs."""
    return [
        path
        for path, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if hook.__module__.startswith("knowledge_distillation")
    ]


def _inputs(family: str) -> dict[str, Tensor]:
    if family in IMAGES:
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    inputs = {
        "input_ids": torch.randint(3, VOCABULARY, (2, 7)),
        "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }
    if family in TWO_STACKS:
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 5))
    return inputs

"""Encoder-decoders and batches with labels alone: as the model by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from runs import distiller
from tolerance import near
from torch import Tensor

from knowledge_distillation.features.inputs import forward_inputs, named_inputs

_SIDES = ("encoder", "decoder")
_BART = {f"{side}_{key}": n for side in _SIDES for key, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}
_BART |= {"vocab_size": 50, "d_model": 16, "max_position_embeddings": 32}
_T5 = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}
_START = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
_MOE = {"num_experts": 2, "expert_capacity": 100, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
_SEAMLESS = {"vocab_size": 50, "t2u_vocab_size": 50, "hidden_size": 16, "speech_encoder_layers": 1}
_SEAMLESS |= {key.replace("_layers", "_layers"): n for key, n in _BART.items() if key != "d_model"}
_SEAMLESS |= {"decoder_start_token_id": 3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_SEAMLESS |= {"speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 24}
_PROPHET = {"vocab_size": 50, "hidden_size": 16, "max_position_embeddings": 32, "ngram": 2}
_PROPHET |= {f"num_{side}_{key}": n for side in _SIDES for key, n in (("layers", 1), ("attention_heads", 2))}
_PROPHET |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 0, "num_encoder_layers": 1}
_TINY = {
    "BartForConditionalGeneration": ("BartConfig", {**_BART, **_START}),
    "BlenderbotForConditionalGeneration": ("BlenderbotConfig", {**_BART, **_START}),
    "BlenderbotSmallForConditionalGeneration": ("BlenderbotSmallConfig", {**_BART, **_START}),
    "LEDForConditionalGeneration": (
        "LEDConfig",
        {**_BART, **_START, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32}
        | {"attention_window": 4},
    ),
    "M2M100ForConditionalGeneration": ("M2M100Config", {**_BART, **_START}),
    "MarianMTModel": ("MarianConfig", {**_BART, **_START, "pad_token_id": 49, "decoder_start_token_id": 49}),
    "MBartForConditionalGeneration": ("MBartConfig", {**_BART, **_START}),
    "MvpForConditionalGeneration": ("MvpConfig", {**_BART, **_START}),
    "NllbMoeForConditionalGeneration": ("NllbMoeConfig", {**_BART, **_START, **_MOE}),
    "PegasusForConditionalGeneration": ("PegasusConfig", {**_BART, **_START, "decoder_start_token_id": 1}),
    "PegasusXForConditionalGeneration": ("PegasusXConfig", {**_BART, **_START}),
    "PLBartForConditionalGeneration": ("PLBartConfig", {**_BART, **_START}),
    "ProphetNetForConditionalGeneration": ("ProphetNetConfig", {**_PROPHET, "pad_token_id": 1}),
    "SeamlessM4TForTextToText": ("SeamlessM4TConfig", _SEAMLESS),
    "SeamlessM4Tv2ForTextToText": ("SeamlessM4Tv2Config", _SEAMLESS),
    "T5ForConditionalGeneration": ("T5Config", {**_T5, "decoder_start_token_id": 0}),
    "MT5ForConditionalGeneration": ("MT5Config", {**_T5, "decoder_start_token_id": 0}),
    "UMT5ForConditionalGeneration": ("UMT5Config", {**_T5, "decoder_start_token_id": 0}),
    "LongT5ForConditionalGeneration": ("LongT5Config", {**_T5, "decoder_start_token_id": 0}),
    "SwitchTransformersForConditionalGeneration": (
        "SwitchTransformersConfig",
        {**_T5, "decoder_start_token_id": 0, "num_experts": 2, "expert_capacity": 100},
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**_BART, **_START, "max_source_positions": 10, "max_target_positions": 32, "num_mel_bins": 8},
    ),
    "Speech2TextForConditionalGeneration": (
        "Speech2TextConfig",
        {**_BART, **_START, "input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 40},
    ),
}
_SPEECH = ("Whisper", "Speech2Text")


def made(name: str) -> Any:
    config, fields = _TINY[name]
    torch.manual_seed(0)
    return getattr(hf, name)(getattr(hf, config)(**{**fields, "dropout": 0.0})).eval()


def batch(name: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    labels = torch.randint(3, 50, (2, 6))
    labels[:, -1] = 2
    labels[1, 4:] = torch.tensor([2, -100])
    if name.startswith(_SPEECH):
        return {
            "input_features": torch.randn(2, *((8, 20) if name.startswith("Whisper") else (20, 8))),
            "labels": labels,
        }
    ids = torch.randint(3, 50, (2, 8))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.case("A13")
@pytest.mark.parametrize("name", _TINY)
def test_the_decoder_reads_what_the_model_makes_of_the_labels(name: str) -> None:
    model, inputs = made(name), batch(name)
    with torch.no_grad():
        alone = model(**inputs).logits
        found = model(**forward_inputs(named_inputs(inputs, model), model)).logits
    assert torch.equal(found, alone)


@pytest.mark.case("A13")
@pytest.mark.parametrize("family", ["M2M100", "NllbMoe", "Blenderbot"])
def test_a_batch_of_labels_alone_trains_a_student(family: str) -> None:
    name = f"{family}ForConditionalGeneration"
    config = [{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}]
    config += [{"student": "output.logits", "loss": "cross_entropy", "name": "labels"}]
    data = batch(name)
    values = distiller(config, made(name), made(name), train_dataloader=[data], learning_rate=0.0).train()
    own = torch.nn.functional.cross_entropy(made(name)(**data).logits.flatten(0, 1), data["labels"].flatten())
    assert values["labels"] == near(own.item())

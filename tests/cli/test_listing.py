"""What `distill layers` lists of models that it has only the config of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from runs import distill

from knowledge_distillation.cli import listing
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.features.made_up_inputs import made_up_inputs

SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
VIDEO = {**SIZES, "image_size": 16, "patch_size": 8, "num_frames": 4}
BART = {"vocab_size": 99, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24}
CONFIGS = {
    "bert": hf.BertConfig(**SIZES),
    "qwen3": hf.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "bart": hf.BartConfig(**BART, decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2),
    "videomae": hf.VideoMAEConfig(**{key: value for key, value in VIDEO.items() if key != "vocab_size"}),
}


@pytest.mark.case("C8")
@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_alone_lists_what_the_model_offers_without_weights(family: str, tmp_path: Path, monkeypatch) -> None:
    CONFIGS[family].save_pretrained(tmp_path)
    model, built = hf.AutoModel.from_config(CONFIGS[family]).eval(), []
    real = catalogue(model, made_up_inputs(model))
    monkeypatch.setattr(listing, "catalogue", lambda model, inputs: built.append(model) or catalogue(model, inputs))
    feature, kind, shape, _ = (list(column.cells) for column in listing.list_features(str(tmp_path)).columns)
    offers = real.offers.items()
    assert list(zip(feature, kind, shape, strict=True)) == [
        (str(name), offer.kind, "×".join(map(str, offer.shape))) for name, offer in offers
    ]
    assert any(name.endswith("layer2.attention") for name in feature)
    assert {parameter.device.type for parameter in built[0].parameters()} == {"meta"}


@pytest.mark.case("C8")
def test_text_and_picture_are_made_up_together_where_one_is_not_enough() -> None:
    features = list(listing.list_features("clip").columns[0].cells)
    assert {"output.logits_per_image", "output.text_embeds", "output.image_embeds"} <= set(features)


@pytest.mark.case("C8")
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("vilt", "ViltModel runs neither on made-up text nor on a made-up picture, nor on both"),
        ("blip-2", "Blip2Model runs neither on made-up text nor on a made-up picture, nor on both"),
        ("whisper", "traced over a batch of your own"),
    ],
)
def test_a_model_that_runs_on_no_made_up_inputs_is_one_clear_error(family: str, said: str) -> None:
    result = distill("layers", family)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert said in " ".join(result.stderr.split()), result.stderr
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.case("C8")
def test_a_model_that_cannot_be_built_here_says_why(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("\nTimmBackbone requires the timm library\nand more")

    monkeypatch.setattr(listing, "load_any", missing)
    with pytest.raises(ConfigError, match="^detr cannot be built here: TimmBackbone requires the timm library$"):
        listing.list_features("detr")

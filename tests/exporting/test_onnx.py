"""A model as ONNX: what onnxruntime says of batches of any size is what the model says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import IMAGES, TWO_STACKS, tiny
from runs import bert, distill, tokenizer_of
from torch import nn
from transformers import BertForSequenceClassification, DistilBertConfig, DistilBertForTokenClassification

from knowledge_distillation import ConfigError
from knowledge_distillation.exporting import OnnxModel, export_onnx
from knowledge_distillation.models import BiLSTMConfig, BiLSTMForSequenceClassification

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DEPTH = {"gpt2": "n_layer", "t5": "num_layers", "bart": "encoder_layers"}
USUAL = ("bert", "roberta", "deberta-v2", "mpnet", "gpt2", "llama", "t5", "vit")
OTHERS = ("albert", "modernbert", "bart", "swin", "resnet")


def one_layer(family: str) -> nn.Module:
    if family == "bilstm":
        sizes = {"vocab_size": 50, "embedding_size": 4, "hidden_size": 4, "sentence_pairs": True, "sep_token_id": 3}
        return BiLSTMForSequenceClassification(BiLSTMConfig(**sizes))
    if family == "distilbert":
        sizes = {"vocab_size": 50, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}
        return DistilBertForTokenClassification(DistilBertConfig(**sizes))
    depth = {} if family in ("swin", "resnet") else {DEPTH.get(family, "num_hidden_layers"): 1}
    return tiny(family, **depth).model


def inputs(family: str, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Inputs of a size that no file was traced or compared with; each row is padded further than the one before."""
    generator = torch.Generator().manual_seed(length)
    if family in IMAGES:
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, 50, (rows, length), generator=generator)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for row in range(rows):
        made["attention_mask"][row, length - row :] = 0
    if family in TWO_STACKS:
        made["decoder_input_ids"] = torch.randint(3, 50, (rows, length // 2), generator=generator)
    return made


def close_to_torch(family: str, folder: Path) -> None:
    model = one_layer(family).eval()
    exported = export_onnx(model, folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for rows, length in ((4, 12), (1, 21)):
        batch = inputs(family, rows, length)
        given = {name: value.numpy() for name, value in batch.items()}
        if "token_type_ids" in exported.inputs:
            given["token_type_ids"] = np.zeros((rows, length), dtype=np.int64)
        said = session.run(["logits"], given)[0]
        with torch.no_grad():
            expected = model(**batch).logits
        counted = batch["attention_mask"].bool() if expected.shape[:2] == (rows, length) else slice(None)
        np.testing.assert_allclose(said[counted], expected[counted].numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*USUAL, "distilbert", "bilstm"])
def test_the_file_says_what_the_model_says(family, tmp_path):
    close_to_torch(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_the_file_of_other_families_says_what_the_model_says(family, tmp_path):
    close_to_torch(family, tmp_path)


def test_rows_and_lengths_are_open_and_named(tmp_path):
    tokenizer = tokenizer_of(40)
    exported = export_onnx(bert(1), tmp_path, tokenizer, opset=18)
    graph = onnx.load(tmp_path / "model.onnx")
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.input}
    assert tuple(axes) == exported.inputs and set(axes) == {*tokenizer.model_input_names}
    assert all(axis == ["batch", "length"] for axis in axes.values())
    assert [one.version for one in graph.opset_import if not one.domain] == [18] == [exported.opset]
    logits = graph.graph.output[0]
    assert (logits.name, logits.type.tensor_type.shape.dim[0].dim_param) == ("logits", "batch")


class LongerTwice(BertForSequenceClassification):
    """Says twice as much of long inputs: a branch that tracing does not see."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        output.logits = output.logits * (2 if input_ids.shape[1] > 16 else 1)
        return output


def test_what_computes_something_else_is_not_kept(tmp_path):
    (tmp_path / "model.onnx").write_text("the one before")
    with pytest.raises(ConfigError, match=r"differs from LongerTwice by .* on 1 row of 30 tokens, .* it is not kept"):
        export_onnx(LongerTwice(bert(1).config), tmp_path)
    assert [path.name for path in tmp_path.parent.glob(f"{tmp_path.name}/*")] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the one before"
    assert not [*tmp_path.parent.glob(".*.tmp")]


def test_int8_is_smaller_and_measured(tmp_path):
    seen = []

    def score(model):
        seen.append(model)
        batch = inputs("bert", 3, 9)
        with torch.no_grad():
            return {"mean": float(model(**batch).logits.mean())}

    model = bert(1, width=64, vocab_size=4000, intermediate_size=128)
    exported = export_onnx(model, tmp_path, int8=True, score=score)
    assert [*exported.scores] == ["torch", "model.onnx", "model_int8.onnx"]
    assert seen[0] is model and all(isinstance(one, OnnxModel) for one in seen[1:])
    assert exported.scores["torch"]["mean"] == pytest.approx(exported.scores["model.onnx"]["mean"], abs=1e-4)
    assert exported.scores["torch"]["mean"] == pytest.approx(exported.scores["model_int8.onnx"]["mean"], abs=0.1)
    assert exported.sizes["model_int8.onnx"] < 0.4 * exported.sizes["model.onnx"]
    assert 1e-6 < exported.differences["model_int8.onnx"] < 0.1
    kinds = {one.op_type for one in onnx.load(tmp_path / "model_int8.onnx").graph.node}
    assert "MatMulInteger" in kinds and "MatMul" in kinds  # weights by 8 bits, attention not


def test_the_model_stays_as_it_is(tmp_path):
    model = bert(1, dropout=0.1).bfloat16().train()
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    exported = export_onnx(model, tmp_path)
    assert [module.training for module in model.modules()] == modes
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert exported.differences["model.onnx"] < 1e-4


@pytest.mark.parametrize("opset", [13, 21])
def test_an_opset_that_the_exporter_does_not_know(opset, tmp_path):
    with pytest.raises(ConfigError, match=f"opset is a number from 14 to 20; found {opset}"):
        export_onnx(bert(1), tmp_path, opset=opset)


def test_a_model_that_reads_neither_text_nor_pictures(tmp_path):
    with pytest.raises(ConfigError, match="Linear takes input: models of transformers that read text"):
        export_onnx(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_package_one_error_names_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'ONNX needs onnx and onnxruntime \(.*{package}.*\): pip install "knowl'):
        export_onnx(bert(1), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_writes_what_a_server_needs(tmp_path):
    bert(1).save_pretrained(tmp_path / "student")
    tokenizer_of(40).save_pretrained(tmp_path / "student")
    result = distill("export", tmp_path / "student", "--onnx", "--int8")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "student" / "onnx"
    said = (
        rf"{folder}/model.onnx: [\d.]+ kB, differs from the model in torch by at most \de-0\d on 5 made-up batches\n"
    )
    assert re.search(said, result.stdout), result.stdout
    assert "opset 17; inputs input_ids, token_type_ids, attention_mask; outputs logits" in result.stdout
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.onnx", "model_int8.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}


def test_the_command_scores_every_file_on_rows(tmp_path):
    model = bert(1, initializer_range=0.5, num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    model.eval().save_pretrained(tmp_path / "student")
    tokenizer = tokenizer_of(40)
    tokenizer.save_pretrained(tmp_path / "student")
    texts = [f"word{n} other{n * 7} thing{n * 11}" for n in range(40)]
    with torch.no_grad():
        said = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    labels = ["yes" if number else "no" for number in said]
    labels[:10] = ["no" if label == "yes" else "yes" for label in labels[:10]]
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "dev.csv").write_text("\n".join(["review,stars", *rows]) + "\n")
    result = distill("export", tmp_path / "student", "--int8", "--data", tmp_path / "dev.csv")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": accuracy ") for line in result.stdout.splitlines() if ": accuracy " in line)
    assert [*lines] == ["torch", "model.onnx", "model_int8.onnx"]
    assert lines["torch"] == lines["model.onnx"] and lines["torch"].startswith("0.7500, ")
    assert abs(float(lines["model_int8.onnx"].split(",")[0]) - 0.75) <= 0.1


def test_what_is_no_model_is_said_by_the_command(tmp_path):
    bert(1).save_pretrained(tmp_path / "run" / "student")
    for name, message in (
        (tmp_path / "none", "no such directory"),
        (tmp_path / "run", f"it holds student. Nearest: {tmp_path / 'run' / 'student'}"),
        ("some/model", "is on the hub: name the folder of the exported model"),
    ):
        result = distill("export", name)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output

"""A folder of a model of this package loads where the package was imported; where it was not, the error names it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import VOCABULARY, distiller
from transformers import AutoConfig, AutoModel, AutoTokenizer

from knowledge_distillation.data import train_word_tokenizer
from knowledge_distillation.models import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    ShuffleNetV2Config,
    ShuffleNetV2ForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)

MODELS = {
    "bilstm": lambda: BiLSTMForSequenceClassification(
        BiLSTMConfig(vocab_size=64, embedding_size=4, hidden_size=4, classifier_size=4)
    ),
    "wide_resnet": lambda: WideResNetForImageClassification(WideResNetConfig(depth=10, widen_factor=1, num_labels=3)),
    "shufflenet_v2": lambda: ShuffleNetV2ForImageClassification(ShuffleNetV2Config(width_multiplier=0.5)),
}
HERE, THEIRS = "import knowledge_distillation", "from transformers import AutoConfig, AutoModel"
LOADS = "print(type(AutoModel.from_pretrained('.')).__name__, AutoConfig.from_pretrained('.').model_type)"


def python(*lines: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("order", [(HERE, THEIRS), (THEIRS, HERE)], ids=["before transformers", "after it"])
def test_the_import_is_all_that_is_needed(saved, order):
    kind, folder = saved
    said = python(*order, LOADS, folder=folder)
    assert said.stdout.split() == [type(MODELS[kind]()).__name__, f"knowledge_distillation.{kind}"], said.stderr


def test_the_readme_runs(saved):
    kind, folder = saved
    code = re.search("```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code and "import knowledge_distillation\n" in code[1]
    lines = code[1].replace('"this folder"', '"."')
    said = python(lines, "print(type(model).__name__)", folder=folder)
    assert said.stdout.strip() == type(MODELS[kind]()).__name__, said.stderr


def test_without_the_package_the_error_names_it(saved):
    kind, folder = saved
    said = python(THEIRS, LOADS, folder=folder)
    assert said.returncode and f"has model type `knowledge_distillation.{kind}`" in said.stderr
    assert not said.stdout


def test_nothing_is_imported_for_it(tmp_path):
    slow = "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert python("import sys", HERE, slow, folder=tmp_path).stdout == "[]\n"


def test_nothing_waits_once_both_are_imported(tmp_path):
    waiting = "print([type(one).__module__ for one in sys.meta_path])"
    said = python("import sys", HERE, THEIRS, "AutoModel", waiting, folder=tmp_path)
    assert said.stdout and "knowledge_distillation" not in said.stdout, said.stderr


def test_folders_of_older_versions_load(saved, tmp_path):
    kind, folder = saved
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": kind}), encoding="utf-8")
    old = AutoModel.from_pretrained(tmp_path)
    assert type(old) is type(model)
    assert all(torch.equal(one, other) for one, other in zip(old.parameters(), model.parameters(), strict=True))
    assert AutoConfig.for_model(kind).model_type == f"knowledge_distillation.{kind}"


def test_a_readme_of_ones_own_stays(saved):
    _, folder = saved
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text("mine", encoding="utf-8")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"
    (folder / "README.md").write_text(text, encoding="utf-8")


def test_a_distilled_student_says_how_it_loads_and_its_tokenizer_does_without(tmp_path):
    tokenizer = train_word_tokenizer(["a good film", "a bad film"], vocab_size=20)
    sizes = {"vocab_size": VOCABULARY, "embedding_size": 4, "hidden_size": 4, "num_labels": 2}
    student = BiLSTMForSequenceClassification(BiLSTMConfig(**sizes))
    entry = {"teacher": "bert_layer4.hidden_states", "student": "bilstm_layer1.hidden_states", "loss": "mse"}
    entries = [{**entry, "projection": "linear"}, {"student": "output.logits", "loss": "cross_entropy"}]
    distiller(entries, student=student, processing_class=tokenizer, output_dir=tmp_path / "run").train()
    folder = tmp_path / "run" / "student"
    assert "import knowledge_distillation\n" in (folder / "README.md").read_text(encoding="utf-8")
    read = "print(AutoTokenizer.from_pretrained('.')('a good film')['input_ids'])"
    said = python("from transformers import AutoTokenizer", read, folder=folder)
    assert said.stdout.strip() == str(AutoTokenizer.from_pretrained(folder)("a good film")["input_ids"]), said.stderr

"""The README.md of a student's folder: what the hub reads, what a reader wants to know, nothing of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from families import tiny
from runs import HARD, HIDDEN, SOFT, batches, bert, distill, distiller, tokenizer_of, written
from torch import nn
from transformers import AutoModelForCausalLM

from knowledge_distillation import student_from_teacher
from knowledge_distillation.storage.readme import MARK
from knowledge_distillation.training.card import without_paths

CONFIG = [
    {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
    {**SOFT[0], "args": {"temperature": 4}, "schedule": {"weight": {"type": "linear", "start": 0, "end": 0.5}}},
    {**HARD[0], "weight": 0.25},
]


def card(folder: Path) -> tuple[dict, str]:
    """The metadata and the page of a folder's README.md."""
    _, head, page = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), page


def trained(folder: Path, config=SOFT, **options) -> tuple[dict, str]:
    distiller(config, output_dir=folder, **{"dev_dataloader": batches(2), **options}).train()
    return card(folder / "student")


def test_the_card_says_what_the_student_is(tmp_path):
    teacher = bert()
    teacher.name_or_path = "somebody/bert-tiny"
    options = {
        "processing_class": tokenizer_of(40),
        "learning_rate": 2e-3,
        "num_train_epochs": 2,
        "weight_decay": 0.125,
    }
    run = distiller(CONFIG, teacher, output_dir=tmp_path, dev_dataloader=batches(2), **options)
    metrics = run.train()
    head, page = card(tmp_path / "student")
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "somebody/bert-tiny",
        "tags": ["knowledge-distillation"],
        "metrics": ["accuracy"],
    }
    assert "distilled from somebody/bert-tiny." in page
    assert f"- somebody/bert-tiny: BertForSequenceClassification of {teacher.num_parameters():,} parameters\n" in page
    assert "1. `layer1.hidden_states` learns from the teacher's `layer2.hidden_states`: mse, weight 1\n" in page
    assert (
        "3. `output.logits` learns from the teacher's `output.logits`: kl_divergence(temperature=4), weight " in page
    )
    assert "4. `output.logits` learns from the labels: cross_entropy, weight 0.25\n" in page
    for name, value in (("learning_rate", "0.002"), ("num_train_epochs", "2"), ("weight_decay", "0.125")):
        assert f"| `{name}` | {value} |\n" in page
    assert f"| accuracy | {metrics['best_accuracy']:.4f} | {metrics['eval_teacher_accuracy']:.4f} |\n" in page


def test_the_lines_load_the_student(tmp_path, monkeypatch):
    _, page = trained(tmp_path, processing_class=tokenizer_of(40))
    code = re.search("```python\n(.*?)```", page, re.DOTALL)[1].replace('"this folder"', '"."')
    assert len([line for line in code.splitlines() if line]) == 3
    monkeypatch.chdir(tmp_path / "student")
    names: dict = {}
    exec(code, names)
    assert names["model"].num_parameters() and names["tokenizer"]("word1")["input_ids"]


def test_scores_are_those_of_the_student_that_is_kept(tmp_path):
    _, page = trained(tmp_path, num_train_epochs=3, metric_for_best_model="agreement", learning_rate=0.05)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line["eval_agreement"] for line in lines if "eval_agreement" in line}
    step = int(re.search(r"after step (\d+)\.", page)[1])
    assert by_step[step] == max(by_step.values())
    assert f"| agreement | {by_step[step]:.4f} |  |\n" in page


def test_a_page_that_a_person_wrote_stays(tmp_path):
    trained(tmp_path)
    path = tmp_path / "student" / "README.md"
    first = path.read_text(encoding="utf-8")
    trained(tmp_path, learning_rate=0.04, overwrite_output_dir=True)
    assert MARK in first and path.read_text(encoding="utf-8") != first
    mine = first.replace(MARK + "\n", "") + "\nMine.\n"
    path.write_text(mine, encoding="utf-8")
    run = distiller(output_dir=tmp_path, dev_dataloader=batches(2), learning_rate=0.04, num_train_epochs=2)
    run.train(resume_from_checkpoint=True)
    assert path.read_text(encoding="utf-8") == mine


def test_no_path_of_the_machine_is_told(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "home" / "jane" / "my-teacher")
    teacher = type(model).from_pretrained(tmp_path / "home" / "jane" / "my-teacher")
    run = distiller(SOFT, teacher, output_dir=tmp_path / "run", dev_dataloader=batches(2), teacher_cache=None)
    run.data_note = f"data: sst2 from {tmp_path / 'home' / 'jane'}, 24 rows of train"
    run.train()
    head, page = card(tmp_path / "run" / "student")
    assert "base_model" not in head and str(tmp_path) not in page and "home" not in page
    assert "distilled from my-teacher." in page and "\nsst2 from jane, 24 rows of train\n" in page


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("sst2 from /home/jane/glue, 24 rows", "sst2 from glue, 24 rows"),
        ("/home/jane/train.csv", "train.csv"),
        ("~/data/x/", "x"),
        (r"C:\Users\jane\x.csv, 3 rows", "x.csv, 3 rows"),
        ("data/train.csv from org/name, 1/2 of it", "data/train.csv from org/name, 1/2 of it"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_paths_from_the_root_become_their_last_part(text, left):
    assert without_paths(text) == left


def test_a_fine_tuned_model_and_one_that_transformers_does_not_know(tmp_path):
    head, page = trained(tmp_path / "tuned", HARD, teacher=None, student=bert(2))
    assert "tags" not in head and "trained on labels." in page and "## Teacher" not in page

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert(1)

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids, attention_mask)

    head, page = trained(tmp_path / "own", SOFT, student=Own())
    assert "library_name" not in head and 'load_model(model, "this folder/model.safetensors")' in page


def test_peers_have_a_card_without_scores(tmp_path):
    config = [*SOFT, {**SOFT[0], "teacher_name": "peer"}]
    distiller(config, peer_model=bert(1), output_dir=tmp_path, dev_dataloader=batches(2)).train()
    [peer] = (tmp_path / "peers").iterdir()
    assert "## Method" in card(peer)[1] and "## Scores" not in card(peer)[1]
    assert "## Scores" in card(tmp_path / "student")[1]


def test_the_generation_config_is_kept(tmp_path):
    teacher = tiny("gpt2").model
    teacher.generation_config.max_new_tokens = 7
    entry = {**HIDDEN[0], "teacher": "layer3.hidden_states"}
    distiller([entry], teacher, student_from_teacher(teacher, [1, 3]), output_dir=tmp_path).train()
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config
    assert kept.max_new_tokens == 7
    assert card(tmp_path / "student")[0]["pipeline_tag"] == "text-generation"


def test_the_command_names_its_data_without_the_folders_above(tmp_path):
    result = distill("run", written(tmp_path), "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    head, page = card(tmp_path / "run" / "student")
    assert "sst2 from glue, 24 rows of train, 10 rows of validation" in page
    assert str(tmp_path) not in page and head["metrics"] == ["accuracy"]

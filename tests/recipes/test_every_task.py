"""Every kind of task from a file to a student by command: the task is told, trained, measured and predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TINY_BERT, distill

from knowledge_distillation import tasks

WORDS = ("good", "bad", "fine", "poor", "great", "dull")
GPT = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 128}
T5 = {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2, "d_model": 16, "d_kv": 8, "num_heads": 2}


def text(n: int) -> str:
    return f"the {WORDS[n % 6]} film was {WORDS[(n + n // 6) % 6]}"


def answer(n: int) -> dict[str, Any]:
    return {"text": [WORDS[n % 6]], "answer_start": [text(n).index(WORDS[n % 6])]}


ROWS = {
    "text-classification": lambda n: {"text": text(n), "label": ("neg", "pos", "mid")[n % 3]},
    "regression": lambda n: {"text": text(n), "score": n % 5 + 0.5},
    "multi-label": lambda n: {"text": text(n), "labels": [("a", "b", "c")[k] for k in range(3) if n >> k & 1]},
    "token-classification": lambda n: {"tokens": text(n).split(), "tags": ["O", "B-x", "O", "O", "B-y"]},
    "question-answering": lambda n: {"question": "how was it", "context": text(n), "answers": answer(n)},
    "sentence-embedding": lambda n: {"sentence1": text(n), "sentence2": text(n + 1), "score": n % 5 / 4},
    "reranking": lambda n: {"query": text(n), "positive": text(n + 1), "negative": text(n + 2)},
    "masked-lm": lambda n: {"text": text(n)},
    "causal-lm": lambda n: {"prompt": text(n), "completion": text(n + 1)},
    "seq2seq": lambda n: {"source": text(n), "target": text(n + 1)},
}
MODELS = {"causal-lm": GPT, "seq2seq": T5}
NAMED = ("sentence-embedding", "reranking", "masked-lm", "seq2seq")  # rows alone do not say them
NO_LABELS = ("sentence-embedding",)


def folder_of(task: str, folder: Path) -> Path:
    for name, first, rows in (("train", 0, 24), ("dev", 24, 12)):
        lines = [json.dumps(ROWS[task](n)) for n in range(first, first + rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = dict(MODELS.get(task, TINY_BERT))
    layers = {"encoder": [2], "decoder": [2]} if task == "seq2seq" else [2]
    recipe = {
        "data": str(folder / "train.jsonl"),
        "eval": str(folder / "dev.jsonl"),
        "teacher": model,
        "student": {"layers": layers},
        "method": "hinton",
        "max_length": 24,
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "mixed_precision": "no"},
    }
    if task in NAMED:
        recipe["task"] = task
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_there_are_rows_for_every_task():
    assert sorted(ROWS) == sorted(tasks.names())


@pytest.mark.parametrize("task", ROWS)
def test_from_a_file_to_predictions(task, tmp_path):
    folder = folder_of(task, tmp_path)
    said = distill("run", folder / "recipe.yaml", "-o", folder / "run")
    assert said.exit_code == 0, said.output
    if task not in NAMED:
        assert f"task: {task}, told from" in said.output
    assert f"best {tasks.find_task(task).primary_metric} on the evaluation data" in said.output
    lines = [json.loads(line) for line in (folder / "run/history.jsonl").read_text().splitlines()]
    measured = next(line for line in lines if f"eval_{tasks.find_task(task).primary_metric}" in line)
    assert f"eval_teacher_{tasks.find_task(task).primary_metric}" in measured

    named = () if task not in ("reranking", "sentence-embedding") else ("--task", task)
    out = folder / "out.jsonl"
    if task == "masked-lm":
        hidden = (folder / "dev.jsonl").read_text(encoding="utf-8").replace("film", "[MASK]")
        (folder / "dev.jsonl").write_text(hidden, encoding="utf-8")
    said = distill("predict", folder / "run/student", "--data", folder / "dev.jsonl", "-o", out, *named)
    assert said.exit_code == 0, said.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12 and all(len(row) > len(ROWS[task](0)) for row in rows)


def test_embeddings_learn_from_texts_and_are_measured_on_pairs(tmp_path):
    folder = folder_of("sentence-embedding", tmp_path)
    (folder / "texts.txt").write_text("\n".join(map(text, range(24))) + "\n", encoding="utf-8")
    said = distill("run", folder / "recipe.yaml", "--data", folder / "texts.txt", "-o", folder / "run")
    assert said.exit_code == 0, said.output
    assert "label: column 'score', for evaluation" in said.output and "best spearmanr" in said.output
    assert (folder / "run/student/modules.json").is_file()  # sentence-transformers reads it

"""Tiny runs, in Python and by command, for tests of the runner and of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from training_script import collate, rows
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from knowledge_distillation import KnowledgeDistiller, student_from_teacher
from knowledge_distillation.cli.commands import app
from knowledge_distillation.data.text import train_tokenizer
from knowledge_distillation.storage import checkpoint_files

VOCABULARY = 40
SOFT = [{"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}]
HARD = [{"student": "output.logits", "loss": "cross_entropy"}]
HIDDEN = [{"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}]
MAPS = [{"teacher": "layer{2,4}.attention", "student": "layer{1,2}.attention", "loss": "mse"}]
NARROW = [*HIDDEN, *SOFT]  # with a narrow student, one projection


# --- in Python ---------------------------------------------------------------------------------------------------


def bert(layers: int = 4, width: int = 16, heads: int = 2, dropout: float = 0.0, seed: int = 0, **changes: Any) -> Any:
    """A tiny BERT with a classification head; equal arguments give equal weights."""
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 24, "max_position_embeddings": 32, **changes}
    sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def batches(number: int = 3, size: int = 4, labels: bool = True) -> list[dict[str, Tensor]]:
    all_rows = rows(number * size)
    made = [collate(all_rows[start : start + size]) for start in range(0, len(all_rows), size)]
    return made if labels else [{k: v for k, v in batch.items() if k != "labels"} for batch in made]


def distiller(config: Any = SOFT, teacher: Any = "made", student: Any = None, **options: Any) -> KnowledgeDistiller:
    """A run of three small batches on the processor: four layers teach two of them, unless told otherwise."""
    teacher = bert() if isinstance(teacher, str) else teacher
    student = student_from_teacher(teacher or bert(), [2, 4]) if student is None else student
    if not {"train_dataloader", "train_dataset"} & set(options):
        options["train_dataloader"] = batches()
    plain = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "num_train_epochs": 1, "logging_steps": 1}
    return KnowledgeDistiller(teacher, student, config, **{**plain, "learning_rate": 1e-2, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def narrow(**options: Any) -> dict[str, Any]:
    """Two models of unequal width, so that there is a projection, with dropout, on a data set in random order."""
    data = {"train_dataset": rows(), "data_collator": collate, "per_device_train_batch_size": 8}
    models = {"teacher": bert(width=24, dropout=0.1), "student": bert(2, dropout=0.1, seed=1)}
    return {"config": NARROW, **models, **data, "num_train_epochs": 3, **options}


def scores_of(run: KnowledgeDistiller, **resume: Any) -> dict[str, float]:
    """What the run returns about evaluations."""
    return {name: value for name, value in run.train(**resume).items() if name.startswith(("eval_", "best_"))}


def trained(run: KnowledgeDistiller) -> dict[str, Tensor]:
    """The weights of student and projections after the run."""
    run.train()
    return {**weights(run.student), **weights(run.loss_model)}


def steps_of(folder: Path) -> list[int]:
    """The steps that a folder has checkpoints of."""
    return [int(path.name.removeprefix("step-")) for path in checkpoint_files.checkpoints(folder)]


def history(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's history."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def tokenizer_of(vocab_size: int) -> Any:
    """A tokenizer with so many entries."""
    return train_tokenizer([f"word{i} other{i * 7} thing{i * 11}" for i in range(80)], vocab_size)


# --- by command --------------------------------------------------------------------------------------------------

TINY_BERT = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def distill(*arguments: Any) -> Any:
    """The command `distill` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def glue_folder(folder: Path, train: int = 24, dev: int = 10) -> Path:
    """A folder in GLUE's layout with a few sentences of SST-2: good ones and bad ones."""
    words = ("good", "bad", "fine", "poor", "great", "dull")
    (folder / "SST-2").mkdir(parents=True)
    for name, number in (("train", train), ("dev", dev)):
        lines = [f"the {words[i % 6]} film was {words[(i + 2 * (i // 6)) % 6]}\t{1 - i % 2}" for i in range(number)]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe on the sentences in `folder / "glue"`; a change of None leaves the key out."""
    if not (folder / "glue").exists():
        glue_folder(folder / "glue")
    content = {
        "task": "sst2",
        "data_dir": str(folder / "glue"),
        "teacher": dict(TINY_BERT),
        "student": {**TINY_BERT, "num_hidden_layers": 1},
        "distill_config": [
            {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"},
            {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5},
        ],
        "max_length": 16,
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "mixed_precision": "no", "seed": 1},
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


def written(folder: Path, name: str = "recipe.yaml", **changes: Any) -> Path:
    """The recipe as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(recipe(folder, **changes)), encoding="utf-8")
    return path

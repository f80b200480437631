"""`distill demo`: a 12-layer teacher on the embedded sentences, then 3 layers with and without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..recipes.build import Ingredients
from ..recipes.recipe import Recipe

_BERT = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TEACHER = Recipe(
    teacher={**_BERT, "num_hidden_layers": 12, "zero_residual_branches": True},
    student={**_BERT, "num_hidden_layers": 3},
    vocab_size=1000,
    distill_config=[
        {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "mse"},
        {"teacher": "bert_layer{4,8,12}.hidden_states", "student": "bert_layer{1,2,3}.hidden_states", "loss": "mse"},
        {"teacher": "bert_layer{4,8,12}.attention", "student": "bert_layer{1,2,3}.attention", "loss": "mse"},
        {
            "teacher": "output.logits",
            "student": "output.logits",
            "loss": "kl_divergence",
            "args": {"temperature": 2.0},
            "weight": 0.5,
        },
        {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5},
    ],
    training={"num_train_epochs": 6, "learning_rate": 5e-4, "overwrite_output_dir": True, "seed": 1},
    finetune={"num_train_epochs": 3, "learning_rate": 4e-4, "max_grad_norm": 0.3},
)
STUDENT_ROWS = 2000


def run_demo(
    folder: Path,
    smoke: bool,
    say: Callable[[str], None],
    show_plan: Callable[[Any], None],
    show_table: Callable[..., None],
) -> None:
    """Teacher on all rows, then the student twice on a part of them: from labels alone, and from the teacher."""
    limit = {"max_steps": 4} if smoke else {}
    whole = replace(TEACHER, training={**TEACHER.training, **limit})
    if smoke:
        whole = replace(whole, max_train_samples=256, max_eval_samples=64)
    ready = Ingredients.of(whole)
    say(f"\n1  teacher: 12 layers, {len(ready.data['train'])} labelled sentences")
    ready.distiller(ready.teacher, whole.hard_entries(), folder / "teacher", finetune=True).train()

    few = min(STUDENT_ROWS, len(ready.data["train"]))
    ready.data["train"] = ready.data["train"].select(range(few))
    say(f"\n2  student: 3 layers, {few} of these sentences, labels alone")
    plain = ready.distiller(ready.student(), whole.hard_entries(), folder / "student_without").train()

    say("\n3  the same student on the same sentences, taught by the teacher")
    student = ready.student()
    distiller = ready.distiller(student, ready.entries(student), folder / "student")
    show_plan(distiller.plan())
    metrics = distiller.train()
    show_table(ready, distiller, metrics, student, plain)
    say(f"student: {folder / 'student' / 'student'}")

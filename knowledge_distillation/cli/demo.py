"""`distill demo`: a 12-layer teacher on the embedded sentences, then 3 layers with and without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..recipes.build import LoadedRecipe
from ..recipes.recipe import Recipe
from .console import print_plan, print_scores, say

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


def run_demo(folder: Path, smoke: bool) -> None:
    """Teacher on all rows, then the student twice on a part of them: from labels alone, and from the teacher."""
    limit = {"max_steps": 4} if smoke else {}
    recipe = replace(TEACHER, training={**TEACHER.training, **limit})
    if smoke:
        recipe = replace(recipe, max_train_samples=256, max_eval_samples=64)
    loaded = LoadedRecipe.of(recipe)
    say(f"\n1  teacher: 12 layers, {len(loaded.data['train'])} labelled sentences")
    loaded.distiller(loaded.teacher, None, folder / "teacher", finetune=True).train()

    rows = min(STUDENT_ROWS, len(loaded.data["train"]))
    loaded.data["train"] = loaded.data["train"].select(range(rows))
    say(f"\n2  student: 3 layers, {rows} of these sentences, labels alone")
    plain = loaded.distiller(loaded.student(), None, folder / "student_without").train()

    say("\n3  the same student on the same sentences, taught by the teacher")
    student = loaded.student()
    distiller = loaded.distiller(student, loaded.config(student), folder / "student")
    print_plan(distiller.plan())
    metrics = distiller.train()
    print_scores(loaded, distiller, metrics, student, plain)
    say(f"student: {folder / 'student' / 'student'}")

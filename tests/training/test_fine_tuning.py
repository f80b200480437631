"""Labels alone: the same loop without a teacher."""

from pathlib import Path

import torch
from runs import HARD, batches, bert, distiller, scores_of, weights
from tolerance import assert_near
from transformers import (
    AutoModelForSequenceClassification,
)

from knowledge_distillation import Callback


def test_fine_tuning_is_the_same_loop_with_labels_alone(tmp_path: Path) -> None:
    data = [{**b, "labels": (b["input_ids"][:, 0] > 20).long()} for b in batches(4)]
    student = bert(2, seed=2)
    settings = {"num_train_epochs": 20, "learning_rate": 5e-3, "output_dir": tmp_path}
    metrics = scores_of(distiller(HARD, None, student, train_dataloader=data, dev_dataloader=data, **settings))
    assert set(metrics) == {"eval_accuracy", "best_accuracy"} and metrics["best_accuracy"] == 1.0
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    right = [(saved(**batch).logits.argmax(-1) == batch["labels"]) for batch in data]
    assert torch.cat(right).all()


def test_fine_tuning_equals_a_loop_written_by_hand() -> None:
    data = batches(5)
    student, twin = bert(2, seed=2), bert(2, seed=2)
    distiller(
        HARD,
        None,
        student,
        train_dataloader=data,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.1),
        max_grad_norm=0,
    ).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in data:
        torch.nn.functional.cross_entropy(twin(**batch).logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_near(weights(student), weights(twin))


def test_a_teacher_that_no_entry_asks_is_only_scored() -> None:
    teacher = bert()
    calls = []
    teacher.register_forward_hook(lambda *given: calls.append(1))

    class FromHere(Callback):
        def on_train_begin(self, run):
            calls.clear()  # the first batch of the evaluation data is tried before

    metrics = distiller(HARD, teacher, dev_dataloader=batches(2), callbacks=[FromHere()]).train()
    assert "eval_teacher_accuracy" in metrics and len(calls) == 2


def test_regression_against_real_labels(tmp_path: Path) -> None:
    data = [{**b, "labels": b["input_ids"][:, 0].float() / 40} for b in batches(4)]
    student = bert(2, num_labels=1, seed=3)
    entries = [{"student": "output.logits", "loss": "mse"}]
    run = distiller(entries, None, student, train_dataloader=data, dev_dataloader=data, num_train_epochs=25)
    losses = [run.train_epoch()["loss"] for _ in range(25)]
    scores = run.evaluate()
    run.close()
    with torch.no_grad():
        rest = torch.cat([student.eval()(**batch).logits[:, 0] - batch["labels"] for batch in data])
    assert losses[-1] < 0.1 * losses[0] and float(rest.square().mean()) < 0.01
    assert scores["pearson"] > 0.9

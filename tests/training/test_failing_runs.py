"""What can only be seen on the way ends a run with a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import hooks_left_on
from runs import batches, contents, distiller

from knowledge_distillation import Callback, ConfigError, DataError, DistillationError
from knowledge_distillation.evaluation.evaluators import TaskEvaluator
from knowledge_distillation.storage.checkpoint_files import checkpoints

LOGITS = {"teacher": "output.logits", "student": "output.logits"}


def test_an_iterator_that_is_used_up_ends_the_second_epoch_with_an_error(tmp_path: Path) -> None:
    run = distiller(train_dataloader=iter(batches()), num_train_epochs=2, output_dir=tmp_path)
    with pytest.raises(DataError, match=r"no batch in epoch 2: can it be iterated more than once\?"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
    assert hooks_left_on(run.student) == []


class Poisoned:
    """A loss that is no number from a call on; the probe is one call."""

    __name__ = "poisoned"

    def __init__(self, last_good: int) -> None:
        self.left = 1 + last_good

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return (student - teacher).square().mean(-1) * (1.0 if self.left >= 0 else float("nan"))


@pytest.mark.parametrize("logging_steps", [1, 50], ids=["logged each step", "not logged before the save"])
def test_a_loss_that_is_not_finite_ends_the_run_and_no_checkpoint_holds_it(logging_steps: int, tmp_path: Path) -> None:
    run = distiller(
        [{**LOGITS, "loss": Poisoned(last_good=4), "name": "first"}],
        train_dataloader=batches(8),
        dev_dataloader=batches(1),
        eval_steps=2,
        save_steps=2,
        logging_steps=logging_steps,
        output_dir=tmp_path,
    )
    kept: list[dict[str, bytes]] = []

    class Keep(Callback):
        def on_save(self, distiller, checkpoint):
            kept.append(contents(tmp_path / "checkpoints") | contents(tmp_path / "student"))

    run.callbacks.append(Keep())
    with pytest.raises(DistillationError) as raised:
        run.train()
    step = 5 if logging_steps == 1 else 6
    assert f"the loss is not finite at step {step} (loss=nan, first=nan)" in str(raised.value)
    assert "Lower learning_rate" in str(raised.value)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"] and len(kept) == 2
    assert contents(tmp_path / "checkpoints") | contents(tmp_path / "student") == kept[-1]
    logged = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "eval_accuracy" in line] == [2, 4]


def test_an_unknown_metric_of_ones_own_evaluator_is_named(tmp_path: Path) -> None:
    def evaluator(student, teacher, dataloader, accelerator):
        return {"score": 1.0}

    run = distiller(evaluator=evaluator, metric_for_best_model="scores", output_dir=tmp_path)
    with pytest.raises(ConfigError, match="'scores' is not among the evaluator's metrics: score. Nearest: score."):
        run.train()


def test_a_metric_that_needs_many_rows_may_fail_on_the_first_batch() -> None:
    def compute(logits, labels):
        if len(labels) < 10:
            raise ZeroDivisionError
        return {"mine": 0.5}

    metrics = distiller(
        dev_dataloader=batches(3), evaluator=TaskEvaluator(compute), metric_for_best_model="mine"
    ).train()
    assert metrics["best_mine"] == 0.5

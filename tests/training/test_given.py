"""What is given beside models and data is called as it says, or refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SOFT, batches, bert, distiller, same, weights
from training_script import collate, rows

from knowledge_distillation import Callback, ConfigError, DataError, MultiLayerBasedDistillationLoss


class Scores:
    """An evaluator by its class alone."""

    def __call__(self, student: Any, teacher: Any, dataloader: Any, accelerator: Any) -> dict[str, float]:
        return {"score": 1.0}


class Narrow:
    """An evaluator of the long-known form that takes too little."""

    def evaluate(self, student_model: Any) -> None: ...


class Nothing(Callback): ...


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "metrics without data": (
        lambda: {"compute_metrics": lambda logits, labels: {}},
        "compute_metrics would not be called: give dev_dataloader or eval_dataset as well",
    ),
    "metrics beside an evaluator": (
        lambda: {"compute_metrics": lambda logits, labels: {}, "evaluator": Scores(), "dev_dataloader": batches()},
        "compute_metrics would not be called: the evaluator is your own",
    ),
    "metrics by name": (
        lambda: {"compute_metrics": "accuracy", "dev_dataloader": batches()},
        "compute_metrics is a callable; found 'accuracy'",
    ),
    "a collator by number": (lambda: {"data_collator": 5, "train_dataset": rows()}, "data_collator is a callable"),
    "an evaluator's class": (lambda: {"evaluator": Scores}, "evaluator is a class, Scores: give an object of it"),
    "an evaluator of one argument": (
        lambda: {"evaluator": lambda student: {}},
        r"called as evaluator\(student, teacher, dataloader, accelerator\); this one takes \(student\)",
    ),
    "an evaluate of one argument": (
        lambda: {"evaluator": Narrow()},
        r"evaluator.evaluate is called with teacher_model, .*, loss_value; this one takes \(student_model",
    ),
    "a data adaptor of one argument": (
        lambda: {"train_data_adaptor": lambda batch: (batch, batch)},
        r"called as train_data_adaptor\(device, batch\); this one takes \(batch\)",
    ),
    "an output adaptor beside a loss model": (
        lambda: {
            "config": None,
            "loss_model": MultiLayerBasedDistillationLoss(SOFT),
            "teacher_output_adaptor": lambda output: {},
        },
        "teacher_output_adaptor would not be called: give it to the loss_model",
    ),
    "one callback": (lambda: {"callbacks": Nothing()}, "callbacks is a list of callbacks; found "),
}


@pytest.mark.case("D16")
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_be_called_or_done_is_refused_before_the_first_step(what: str) -> None:
    given, message = REFUSED[what]
    student = bert(2)
    before = weights(student)
    with pytest.raises(ConfigError, match=message):
        distiller(student=student, **given()).train()
    assert same(before, weights(student))


@pytest.mark.case("D16")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"per_device_train_batch_size": 2, "length_bucket": 8}, "per_device_train_batch_size, length_bucket, since"),
        ({"data_collator": collate}, "data_collator, since loaders make their own batches"),
        ({"teacher_cache_top_k": 1}, "teacher_cache_top_k, since there is no teacher_cache"),
        ({"save_steps": 2}, "save_steps, since there is no output_dir to save checkpoints in"),
        (
            {"eval_steps": 2, "metric_for_best_model": "f1"},
            "eval_steps, metric_for_best_model, since there is nothing to evaluate",
        ),
    ],
)
def test_a_setting_that_nothing_looks_at_is_a_warning_of_the_plan(given: dict[str, Any], said: str) -> None:
    assert any(f"warning: not looked at: {said}" in note for note in distiller(**given).plan().notes)
    assert not any("not looked at" in note for note in distiller().plan().notes)


@pytest.mark.case("D16")
def test_settings_of_a_ready_made_optimizer_beside_ones_own() -> None:
    student = bert(2)
    run = distiller(student=student, optimizer=torch.optim.SGD(student.parameters(), lr=0.1), weight_decay=0.5)
    assert "warning: not looked at: learning_rate, weight_decay, since the optimizer is your own" in run.plan().notes


def test_no_callbacks_may_be_written_as_none() -> None:
    assert distiller(callbacks=None).train()["loss"] > 0


@pytest.mark.case("D15")
@pytest.mark.parametrize(
    "returned", [None, 0.5, {"a": {"f1": 1.0}}, {"a": "good"}, {"a": None}, {1: 0.5}, {"a": [1, 2]}]
)
@pytest.mark.parametrize("by", ["evaluator", "compute_metrics"])
def test_metrics_that_are_no_numbers_by_name_are_shown(by: str, returned: Any) -> None:
    with pytest.raises(ConfigError, match=f"{by} returned .*; a dict of numbers by name is needed"):
        distiller(**{by: lambda *given: returned}, dev_dataloader=batches()).train()


def test_numbers_of_any_library_are_metrics() -> None:
    import numpy as np

    returned = {"one": torch.tensor([0.5]), "other": np.float32(0.25), "third": True}
    metrics = distiller(evaluator=lambda *given: returned).train()
    assert [metrics[f"eval_{name}"] for name in returned] == [0.5, 0.25, 1.0]


def test_the_metric_that_an_evaluator_names_itself_is_not_blamed_on_the_settings(tmp_path: Path) -> None:
    evaluator = Scores()
    evaluator.primary_metric = "scores"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="primary_metric 'scores' is not among .*: score. Nearest: score."):
        distiller(evaluator=evaluator, output_dir=tmp_path).train()


@pytest.mark.case("D7")
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, 7, 1], "row 2 has label 7, and the classes are 0 to 1"),
        ([0, -1, 1, 1], "row 1 has label -1, and the classes are 0 to 1"),
        ([0.0, 0.3, 1.0, 1.0], "row 1 has label 0.30.*, and the classes are 0 to 1"),
        ([0, 1, 1], "labels 3 are not one for each of 4 rows"),
    ],
)
def test_labels_that_cannot_be_scored_are_named(labels: list[float], told: str) -> None:
    data = batches(3)
    data[1]["labels"] = torch.tensor(labels)
    with pytest.raises(DataError, match=f"batch 2 of the evaluation data .*: {told}"):
        distiller(dev_dataloader=data).train()


def test_an_evaluation_that_fails_leaves_gradients_on() -> None:
    data = batches(3)
    data[1]["labels"] = data[1]["labels"][:3]
    run = distiller(dev_dataloader=data)
    outputs = run.evaluator._outputs(run.student, None, data, run.accelerator)
    next(outputs)  # and whoever scores the first batch fails, with the generator in the traceback
    assert torch.is_grad_enabled() and run.student.training
    with pytest.raises(DataError):
        next(outputs)
    assert torch.is_grad_enabled() and run.student.training


def test_evaluation_data_that_can_be_gone_through_once_is_named() -> None:
    with pytest.raises(DataError, match="the evaluation data gave no batch: can it be iterated more than once"):
        distiller(dev_dataloader=iter(batches()), num_train_epochs=2).train()

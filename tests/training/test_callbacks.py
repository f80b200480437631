"""Callbacks are called in order, and may end a run."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType
from runs import batches, distiller, history, steps_of
from transformers import EarlyStoppingCallback, PrinterCallback
from watching import Recorder, Scripted, Watch

from knowledge_distillation import ConfigError, EarlyStopping
from knowledge_distillation.training import accelerate


def test_callbacks_are_called_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    run = distiller(
        callbacks=[recorder],
        train_dataloader=batches(4),
        dev_dataloader=batches(1),
        output_dir=tmp_path,
        logging_steps=2,
        eval_steps=2,
        save_steps=3,
    )
    run.train()
    assert recorder.events == [
        ("on_init_end", 0),
        ("on_train_begin", 0),
        ("on_step_end", 1),
        ("on_step_end", 2),
        ("on_log", 2),
        ("on_evaluate", 2),
        ("on_step_end", 3),
        ("on_save", 3),
        ("on_step_end", 4),
        ("on_log", 4),
        ("on_evaluate", 4),
        ("on_save", 4),
        ("on_train_end", 4),
    ]


def test_a_run_that_fails_still_ends_for_its_callbacks() -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        distiller(callbacks=[recorder, Watch(lambda d: 1 / 0)]).train()
    assert [event for event, _ in recorder.events] == ["on_init_end", "on_train_begin", "on_step_end", "on_train_end"]


def test_a_callback_stops_the_run_after_the_step(tmp_path: Path) -> None:
    run = distiller(
        callbacks=[Watch(lambda d: d.stop() if d.progress.step == 4 else None)],
        dev_dataloader=batches(1),
        num_train_epochs=5,
        output_dir=tmp_path,
    )
    metrics = run.train()
    assert run.progress.step == 4 and run.progress.epoch == 1 and run.progress.batches == 1
    assert "eval_accuracy" in metrics and steps_of(tmp_path) == [4]
    assert [line["step"] for line in history(tmp_path) if "eval_accuracy" in line] == [3, 4]


@pytest.mark.parametrize(
    ("scores", "greater", "patience", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.2, 0.9], True, 2, 4),
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.2], True, 2, 6),
        ([0.5, 0.4, 0.6], False, 1, 3),
        ([0.5, 0.5, 0.5], True, 1, 2),
    ],
)
def test_early_stopping_waits_its_patience(scores: list[float], greater: bool, patience: int, epochs: int) -> None:
    evaluator = Scripted(scores, greater)
    run = distiller(evaluator=evaluator, num_train_epochs=len(scores), callbacks=[EarlyStopping(patience)])
    run.train()
    assert run.progress.epoch == epochs


def test_early_stopping_remembers_across_a_resume(tmp_path: Path) -> None:
    def epochs(number: int, scores: list[float]) -> int:
        run = distiller(
            evaluator=Scripted(scores), num_train_epochs=number, callbacks=[EarlyStopping(2)], output_dir=tmp_path
        )
        run.train(resume_from_checkpoint=True)
        return run.progress.epoch

    assert epochs(2, [0.5, 0.4]) == 2  # one evaluation without improvement
    assert epochs(9, [0.3, 0.9]) == 3  # and the second
    assert epochs(9, []) == 3  # a run that was stopped is finished


class Listener:
    """No subclass of `Callback`, and one event short."""

    def on_init_end(self, run: Any) -> None: ...


NO_CALLBACKS: dict[str, tuple[Any, str]] = {
    "early stopping": (EarlyStoppingCallback(5), r"transformers' Trainer.* Use EarlyStopping\(patience=5\)"),
    "another of Trainer": (
        PrinterCallback(),
        "PrinterCallback is one of transformers' Trainer.* a subclass of Callback",
    ),
    "class of Trainer": (EarlyStoppingCallback, r"Use EarlyStopping\(patience=3\), of knowledge_distillation"),
    "class": (EarlyStopping, r"EarlyStopping is a class; give an object of it: EarlyStopping\(\)"),
    "function": (print, "has no on_init_end, on_train_begin, .*: a subclass of Callback has all events"),
    "half of one": (Listener(), "has no on_train_begin, on_step_end"),
}


@pytest.mark.case("D13")
@pytest.mark.parametrize("what", NO_CALLBACKS)
def test_what_is_no_callback_is_refused_with_what_to_use(what: str) -> None:
    callback, message = NO_CALLBACKS[what]
    with pytest.raises(ConfigError, match=message):
        distiller(callbacks=[callback])


@pytest.mark.case("D13")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ConfigError, match=f"report_to '{name}': it is not installed, .* there: tensorboard"):
        distiller(report_to=name, output_dir=tmp_path / "out")
    with pytest.raises(ConfigError, match="'tensorboard' writes files: set an output_dir"):
        distiller(report_to="all")
    assert not (tmp_path / "out").exists()

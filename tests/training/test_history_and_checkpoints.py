"""The history, the checkpoints, and a run that goes on from them."""

import os
from pathlib import Path
from typing import Any

import pytest
from runs import HARD, SOFT, batches, contents, distiller, history, same, scores_of, steps_of, trained, weights
from tolerance import near
from watching import Recorder

from knowledge_distillation import Callback
from knowledge_distillation.storage import checkpoint_files as files


def test_the_history_has_every_term_rate_and_score(tmp_path: Path) -> None:
    config = [{**SOFT[0], "weight": 0.25}, {**HARD[0], "weight": 2.0, "name": "labels"}]
    run = distiller(
        config,
        train_dataloader=batches(4),
        dev_dataloader=batches(1),
        output_dir=tmp_path,
        logging_steps=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    metrics = run.train()
    lines = history(tmp_path)
    assert [(line["step"], line["epoch"], "loss" in line) for line in lines] == [
        (2, 1.0, True),
        (2, 1.0, False),
        (4, 2.0, True),
        (4, 2.0, False),
    ]
    terms = lines[0]
    assert set(terms) == {"step", "epoch", "loss", "kl_divergence:output_logits", "labels", "learning_rate"}
    weighted = 0.25 * terms["kl_divergence:output_logits"] + 2.0 * terms["labels"]
    assert terms["loss"] == near(weighted)
    assert set(lines[1]) == {"step", "epoch", "eval_accuracy", "eval_teacher_accuracy", "eval_agreement"}
    assert {key: value for key, value in metrics.items() if key.startswith("eval_")} == {
        key: value for key, value in lines[3].items() if key.startswith("eval_")
    }
    assert metrics["best_accuracy"] == max(lines[1]["eval_accuracy"], lines[3]["eval_accuracy"])


def test_logged_losses_are_means_since_the_last_line(tmp_path: Path) -> None:
    for name, interval in (("each", 1), ("three", 3)):
        distiller(train_dataloader=batches(7), output_dir=tmp_path / name, logging_steps=interval).train()
    each = [line["loss"] for line in history(tmp_path / "each")]
    three = history(tmp_path / "three")
    assert [line["step"] for line in three] == [3, 6, 7]
    means = [sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]]
    assert [line["loss"] for line in three] == near(means)


def test_checkpoints_come_at_their_steps_and_only_the_last_ones_stay(tmp_path: Path) -> None:
    for settings, wanted in (
        ({"save_steps": 2, "save_total_limit": 2}, [6, 7]),
        ({"save_steps": 2, "save_total_limit": 9}, [2, 4, 6, 7]),
        ({"save_steps": 7}, [7]),
        ({"num_train_epochs": 3, "save_total_limit": 2}, [14, 21]),
        ({"save_steps": 3, "max_steps": 5, "save_total_limit": 9}, [3, 5]),
    ):
        out = tmp_path / str(sorted(settings.items()))
        distiller(train_dataloader=batches(7), output_dir=out, **settings).train()
        assert steps_of(out) == wanted
        assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step-{n:08d}" for n in wanted}


def test_nothing_is_written_without_an_output_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distiller(dev_dataloader=batches(1), eval_steps=1, save_steps=1).train()
    assert contents(tmp_path) == {}


class Fails:
    """Calls of a function that go through until one raises, as where a disk is full or a process is killed."""

    def __init__(self, function: Any, last_good: int) -> None:
        self.function, self.left = function, last_good

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("no space left on device")
        return self.function(*given, **named)


@pytest.mark.parametrize("last_good", range(11))
def test_a_write_that_fails_leaves_the_checkpoint_before_it_whole(
    last_good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write of the second checkpoint fails, the first or the second is there whole, and the run goes on."""
    options = {"train_dataloader": batches(), "num_train_epochs": 3, "save_total_limit": 1}
    whole = trained(distiller(**options))
    run = distiller(**options, output_dir=tmp_path)

    class Break(Callback):
        def on_step_end(self, distiller):
            if distiller.progress.step == 4:
                for owner, name in ((files, "save_file"), (files, "save_model"), (os, "replace")):
                    monkeypatch.setattr(owner, name, shared(getattr(owner, name)))

    def shared(function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            return failing(function, *given, **named)

        return call

    failing = Fails(lambda function, *given, **named: function(*given, **named), last_good)
    run.callbacks.append(Break())
    with pytest.raises(OSError, match="no space left"):
        run.train()
    monkeypatch.undo()
    assert steps_of(tmp_path) in ([3], [6])
    again = distiller(**options, output_dir=tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.progress.step == 9 and same(whole, weights(again.student))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000009"}


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    """Killed between the two renames of a step that is saved again."""
    distiller(output_dir=tmp_path).train()
    kept = contents(tmp_path / "checkpoints" / "step-00000003")
    os.replace(tmp_path / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / ".step-00000003.old")
    assert steps_of(tmp_path) == [3]
    assert contents(tmp_path / "checkpoints" / "step-00000003") == kept


def test_a_finished_run_resumed_trains_nothing_and_knows_its_scores(tmp_path: Path) -> None:
    options = {"dev_dataloader": batches(1), "output_dir": tmp_path, "num_train_epochs": 2}
    for intervals in ({}, {"eval_steps": 4, "save_steps": 4}):
        settings = {**options, **intervals, "overwrite_output_dir": True}
        first = scores_of(distiller(**settings))
        before = contents(tmp_path)
        recorder = Recorder()
        again = distiller(**settings, callbacks=[recorder])
        assert again.train(resume_from_checkpoint=True) == first and "best_accuracy" in first
        assert [event for event, _ in recorder.events] == ["on_init_end", "on_train_begin", "on_train_end"]
        assert contents(tmp_path) == before


def test_a_run_resumed_where_there_is_none_starts_afresh(tmp_path: Path) -> None:
    fresh = trained(distiller())
    run = distiller(output_dir=tmp_path / "new")
    run.train(resume_from_checkpoint=True)
    assert same(fresh, weights(run.student)) and steps_of(tmp_path / "new") == [3]


def test_trackers_get_what_the_history_gets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    distiller(output_dir=tmp_path, dev_dataloader=batches(1), report_to="tensorboard").train()
    events = EventAccumulator(str(tmp_path / "distillation"))
    events.Reload()
    lines = history(tmp_path)
    for name in ("loss", "kl_divergence:output_logits", "learning_rate", "eval_agreement"):
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])


def test_a_second_run_may_have_another_precision() -> None:
    for precision in ("bf16", "no", "bf16"):
        run = distiller(mixed_precision=precision)
        assert run.accelerator.mixed_precision == precision
        run.train()

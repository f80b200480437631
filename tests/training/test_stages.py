"""Stages: each trains its own entries, with an optimizer and a schedule of its own, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import hooks_left_on
from runs import HARD, SOFT, batches, bert, distiller, same, weights
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from training_script import collate, rows
from watching import KillAt, Killed, Watch

from knowledge_distillation import Callback, CheckpointError, ConfigError, parse_config, student_from_teacher
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.config.stages import stages_of
from knowledge_distillation.storage.checkpoint_files import read_tree

HIDDEN = {
    "teacher": "layer{2,3}.hidden_states",
    "student": "layer{1,2}.hidden_states",
    "loss": "mse",
    "stage": "hidden",
    "name": "states",
}
LOGITS = {**SOFT[0], "stage": "logits", "name": "soft"}
BOTH = {
    "teacher": "embedding_layer.embedding",
    "student": "embedding_layer.embedding",
    "loss": "mse",
    "name": "embedding",
}
TWO = [HIDDEN, LOGITS]


def run(config: Any = TWO, **options: Any) -> Any:
    """Four layers teach two narrower ones, so that there are projections; three batches an epoch."""
    models = options.pop("teacher", None) or bert(4, width=24), options.pop("student", None) or bert(2, seed=2)
    return distiller(config, *models, **options)


# --- which entries, which settings -------------------------------------------------------------------------------


def names(config: Any, **settings: Any) -> list[tuple[str, list[str]]]:
    stages = stages_of(parse_config(config).check(), TrainingSettings.parse(settings))
    return [(stage.name, [entry.name for entry in stage.entries]) for stage in stages]


def test_stages_follow_the_order_in_which_entries_name_them():
    assert names([LOGITS, HIDDEN, BOTH]) == [
        ("logits", ["soft", "embedding"]),
        ("hidden", ["states[0]", "states[1]", "embedding"]),
    ]


def test_the_settings_order_stages_first():
    wanted = [{"name": "hidden"}, {"name": "logits"}]
    assert [name for name, _ in names([LOGITS, HIDDEN], stages=wanted)] == ["hidden", "logits"]


def test_without_stages_the_run_is_one():
    assert names([BOTH]) == [("", ["embedding"])]


def test_an_entry_may_belong_to_several_stages_and_a_stage_may_be_a_number():
    assert names([{**SOFT[0], "stage": 1, "name": "a"}, {**HARD[0], "stage": [1, 2], "name": "b"}]) == [
        ("1", ["a", "b"]),
        ("2", ["b"]),
    ]


def test_a_stage_has_its_settings_and_otherwise_those_of_the_run():
    wanted = [{"name": "hidden", "learning_rate": "2e-3", "max_steps": 5}, {"name": "logits", "num_train_epochs": 2}]
    settings = TrainingSettings.parse({"learning_rate": 1e-4, "warmup_ratio": 0.3, "stages": wanted})
    first, second = (stage.settings for stage in stages_of(parse_config(TWO), settings))
    assert (first.learning_rate, first.max_steps, first.num_train_epochs, first.warmup_ratio) == (2e-3, 5, 3, 0.3)
    assert (second.learning_rate, second.max_steps, second.num_train_epochs) == (1e-4, -1, 2)
    assert wanted[0]["learning_rate"] == "2e-3"  # what was given stays as it is


# --- a run -------------------------------------------------------------------------------------------------------


def test_each_stage_trains_and_logs_its_own_entries_for_its_own_time():
    watch = Watch(lambda distiller: distiller.optimizer.param_groups[0]["lr"])
    stages = [
        {"name": "hidden", "max_steps": 2, "learning_rate": 2e-3},
        {"name": "logits", "num_train_epochs": 2, "learning_rate": 5e-4},
    ]
    settings = {"stages": stages, "warmup_ratio": 0.0, "lr_scheduler_type": "linear"}
    run([HIDDEN, LOGITS, BOTH], callbacks=[watch], **settings).train()
    assert [stage for stage, _ in watch.seen] == [0] * 2 + [1] * 6
    after = [2e-3 * (1 - n / 2) for n in (1, 2)] + [5e-4 * (1 - n / 6) for n in range(1, 7)]
    assert [rate for _, rate in watch.seen] == pytest.approx(after, abs=1e-12)
    always = {"loss", "learning_rate", "embedding"}
    assert all(
        values == always | ({"soft"} if stage else {"states[0]", "states[1]"}) for stage, values in watch.logged
    )


def test_max_steps_and_epochs_hold_for_each_stage():
    watch = Watch()
    run(callbacks=[watch], max_steps=2, num_train_epochs=5).train()
    assert [stage for stage, _ in watch.seen] == [0, 0, 1, 1]
    watch = Watch()
    run(callbacks=[watch], num_train_epochs=2).train()
    assert [stage for stage, _ in watch.seen] == [0] * 6 + [1] * 6


def test_only_the_present_stage_is_captured():
    teacher, student = bert(4, width=24), bert(2, seed=2)
    seen: dict[int, Any] = {}

    def look(distiller):
        depth = [source.depth for source in (*distiller.plan.teachers.values(), *distiller.plan.students.values())]
        seen[distiller.progress.stage] = (hooks_left_on(distiller.teacher.model), hooks_left_on(student), depth)

    made = run(teacher=teacher, student=student, callbacks=[Watch(look)], max_steps=1)
    assert len(made.plan().rows) == 3
    made.train()
    assert seen[0] == (
        ["bert.encoder.layer.1", "bert.encoder.layer.2"],
        ["bert.encoder.layer.0", "bert.encoder.layer.1"],
        ["3 of 4 layers", "2 of 2 layers"],
    )
    assert seen[1] == (["classifier"], ["classifier"], ["4 of 4 layers, and the head", "2 of 2 layers, and the head"])
    assert hooks_left_on(student) == []


def test_a_stage_leaves_what_it_does_not_reach_as_it_is():
    student = bert(2, seed=2)
    start = weights(student)
    kept: dict[int, Any] = {}

    class Keep(Callback):
        def on_step_end(self, distiller):
            kept[distiller.progress.step] = weights(student), weights(distiller.loss_model)

    run(student=student, callbacks=[Keep()], max_steps=2, weight_decay=0.5).train()
    head = [name for name in start if name.startswith(("classifier", "bert.pooler"))]
    assert head and all(torch.equal(start[name], kept[2][0][name]) for name in head)
    assert not torch.equal(
        start["bert.encoder.layer.0.output.dense.weight"], kept[2][0]["bert.encoder.layer.0.output.dense.weight"]
    )
    assert not torch.equal(start["classifier.weight"], kept[4][0]["classifier.weight"])
    projections = [kept[step][1] for step in (1, 2, 4)]
    assert len(projections[0]) == 4
    assert not same(projections[0], projections[1]) and same(projections[1], projections[2])
    assert all(p.requires_grad for p in student.parameters())


def test_each_stage_begins_with_a_fresh_optimizer():
    steps = Watch(lambda distiller: max(float(s["step"]) for s in distiller.optimizer.state.values()))
    run([HIDDEN, LOGITS, BOTH], callbacks=[steps], max_steps=2).train()
    assert [number for _, number in steps.seen] == [1, 2, 1, 2]


def test_one_stage_after_another_is_two_runs():
    """By hand: a run of the first entries, then one of the others on its student, batches in the order of a list."""
    student, twin, teacher = bert(2, seed=2), bert(2, seed=2), bert(4)
    options = {"max_steps": 3, "warmup_ratio": 0.0}
    run(student=student, teacher=teacher, **options).train()
    first = run([{k: v for k, v in HIDDEN.items() if k != "stage"}], student=twin, teacher=teacher, **options)
    first.train()
    run([SOFT[0]], student=twin, teacher=teacher, **options).train()
    assert same(weights(student), weights(twin))


def test_stop_ends_the_run_and_not_the_stage():
    class Stop(Callback):
        def on_step_end(self, distiller):
            distiller.stop()

    watch = Watch()
    run(callbacks=[watch, Stop()]).train()
    assert [stage for stage, _ in watch.seen] == [0]


def test_the_progress_bar_knows_the_whole_run():
    totals = []

    class Look(Callback):
        def on_train_begin(self, distiller):
            totals.append(distiller.run_steps)

    stages = [{"name": "hidden", "max_steps": 2}, {"name": "logits", "num_train_epochs": 3}]
    run(callbacks=[Look()], stages=stages, gradient_accumulation_steps=2).train()
    run(callbacks=[Look()], stages=[{**stages[0]}, {"name": "logits"}], train_dataloader=iter(batches(9))).train()
    assert totals == [2 + 6, None]


def test_a_stream_goes_on_where_the_stage_before_left_it():
    """A stage broken off by max_steps is not followed by batches it had, and no batch is lost."""
    seen = []

    class Data:
        def __iter__(self):
            return (seen.append(i) or batch for i, batch in enumerate(stream))

    stream = batches(6)
    watch = Watch()
    run(
        callbacks=[watch],
        train_dataloader=iter(Data()),
        stages=[{"name": "hidden", "max_steps": 2}, {"name": "logits", "max_steps": 2}],
    ).train()
    assert [stage for stage, _ in watch.seen] == [0, 0, 1, 1]
    assert seen == [0, 1, 2, 3]


def test_epochs_by_hand_pass_through_the_stages():
    made = run(stages=[{"name": "hidden", "num_train_epochs": 2}, {"name": "logits", "num_train_epochs": 1}])
    told = [set(made.train_epoch()) - {"loss"} for _ in range(3)]
    made.close()
    assert told == [{"states[0]", "states[1]"}] * 2 + [{"soft"}]


# --- going on ----------------------------------------------------------------------------------------------------


def resumable(folder: Path, **options: Any) -> Any:
    """Four steps, broken off within the second epoch, then two epochs; dropout, and a loader with its own order."""
    loader = DataLoader(rows(12), 4, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(5))
    stages = [{"name": "hidden", "max_steps": 4, "num_train_epochs": 2}, {"name": "logits", "num_train_epochs": 2}]
    options = {"save_steps": 2, "stages": stages, "train_dataloader": loader, "balance": "relative_scale", **options}
    config = [HIDDEN, {**LOGITS, "schedule": {"weight": "linear"}}, BOTH]
    return run(config, student=bert(2, seed=2, dropout=0.1), output_dir=folder, **options)


def outcome(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").iterdir())[-1]
    parts = ("student", "projections", "optimizer")
    return {f"{part}.{k}": v for part in parts for k, v in load_file(str(last / f"{part}.safetensors")).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "whole"
    resumable(folder).train()
    return folder


# before, at and after the end of the first stage, and within the second one's first and second epoch
@pytest.mark.parametrize("step", [3, 4, 5, 7, 9])
def test_a_run_killed_in_any_stage_resumes_to_the_very_same_weights(whole: Path, tmp_path: Path, step: int):
    with pytest.raises(Killed):
        resumable(tmp_path, callbacks=[KillAt(step)]).train()
    resumable(tmp_path).train(resume_from_checkpoint=True)
    assert same(outcome(whole), outcome(tmp_path))
    assert (whole / "history.jsonl").read_text() == (tmp_path / "history.jsonl").read_text()


def test_a_run_that_is_done_resumes_to_nothing(whole: Path, tmp_path: Path):
    resumable(tmp_path).train()
    resumable(tmp_path).train(resume_from_checkpoint=True)
    assert same(outcome(whole), outcome(tmp_path))


def test_the_checkpoint_says_which_stage_it_is_of(tmp_path: Path):
    resumable(tmp_path, save_total_limit=9).train()
    saved = {path.name[-2:]: read_tree(path, "progress")["progress"] for path in (tmp_path / "checkpoints").iterdir()}
    assert {step: (held["stage"], held["stage_steps"], held["batches"]) for step, held in sorted(saved.items())} == {
        "02": (0, 0, 2),
        "04": (0, 0, 0),
        "06": (1, 4, 2),
        "08": (1, 4, 1),
        "10": (1, 4, 0),
    }


def test_a_loop_of_ones_own_goes_on_in_the_second_stage(tmp_path: Path):
    def made() -> Any:
        stages = [{"name": "hidden", "num_train_epochs": 1}, {"name": "logits", "num_train_epochs": 2}]
        return run(student=bert(2, seed=2, dropout=0.1), stages=stages)

    whole, first, second = made(), made(), made()
    for _ in range(3):
        whole.train_epoch()
    for _ in range(2):
        first.train_epoch()
    first.save(tmp_path)
    first.close()
    assert second.load_state(student=tmp_path, projections=tmp_path, optimizer=tmp_path, progress=tmp_path) == 2
    assert set(second.train_epoch()) == {"loss", "soft"}
    assert same(weights(whole.student), weights(second.student))


def test_another_list_of_stages_is_another_run(tmp_path: Path):
    resumable(tmp_path).train()
    changed = [{"name": "hidden", "max_steps": 4}, {"name": "logits", "learning_rate": 1e-4}]
    with pytest.raises(CheckpointError, match=r"settings\.stages\[1\]\.learning_rate: it has null, asked is 0\.0001"):
        resumable(tmp_path, stages=changed).train(resume_from_checkpoint=True)
    longer = [{"name": "hidden", "max_steps": 4, "num_train_epochs": 2}, {"name": "logits", "num_train_epochs": 3}]
    made = resumable(tmp_path, stages=longer)
    made.train(resume_from_checkpoint=True)
    assert made.progress.step == 13


def test_a_checkpoint_of_a_stage_that_is_not_there(tmp_path: Path):
    resumable(tmp_path).train()
    other = run([BOTH])
    with pytest.raises(CheckpointError, match="step-00000010 is of stage 2, and this run has 1"):
        other.load_state(progress=tmp_path)
    other.close()


# --- what does not fit -------------------------------------------------------------------------------------------


def wrong(config: Any = TWO, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(config, **options).train()
    return str(caught.value)


def test_stages_that_are_not_there(tmp_path: Path):
    said = wrong(stages=[{"name": "hiden"}, {"name": "logits"}])
    assert said == "stage 'hidden' of distill_config is none of the run's. Nearest: hiden. Stages: hiden, logits"
    said = wrong(stages=[{"name": "hidden"}, {"name": "logits"}, {"name": "logit"}])
    assert said == "stage 'logit' has no entry: none says stage: logit. Nearest: logits."


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("hidden", "stages is a list of mappings; found 'hidden'"),
        ({"name": "hidden"}, "stages is a list of mappings; found {'name': 'hidden'}"),
        (5, "stages is a list of mappings; found 5"),
        (["hidden"], "stages[0] is a mapping with a name; found 'hidden'"),
        ([{"max_steps": 1}], "stages[0] is a mapping with a name; found {'max_steps': 1}"),
        (
            [{"name": "a", "learning_rat": 1}],
            "stages[0]: 'learning_rat' is no setting of a stage. Nearest: learning_rate.",
        ),
        ([{"name": "a", "seed": 1}], "stages[0]: 'seed' is no setting of a stage."),
        ([{"name": "a", "max_steps": "many"}], "stages[0]: max_steps is a whole number; found 'many'"),
        (
            [{"name": "a", "num_train_epochs": 0}],
            "stages[0]: num_train_epochs is a whole number of 1 or more; found 0",
        ),
        ([{"name": "a"}, {"name": "a"}], "stage 'a' is given twice"),
    ],
)
def test_wrong_settings_of_stages(stages: Any, said: str):
    assert said in wrong(stages=stages)


def test_stages_take_no_optimizer_of_ones_own():
    student = bert(2, seed=2)
    said = "each stage has an optimizer and a schedule of its own: leave yours out, or the stages"
    assert wrong(student=student, optimizer=torch.optim.SGD(student.parameters(), lr=0.1)) == said


def test_a_later_stage_is_checked_before_the_first_step(tmp_path: Path):
    second = {
        "stages": [{"name": "hidden"}, {"name": "logits", "lr_scheduler_type": "liner"}],
        "output_dir": tmp_path / "no",
    }
    assert "lr_scheduler_type 'liner' is unknown. Nearest: linear." in wrong(**second)
    assert "[1] teacher_name 'x' is no teacher here" in wrong([HIDDEN, {**LOGITS, "teacher_name": "x"}])
    stream = {"train_dataloader": iter(batches(2)), "stages": [{"name": "hidden", "max_steps": 1}, {"name": "logits"}]}
    said = "a schedule follows the progress of the run, and the data has no length: set max_steps"
    assert wrong([HIDDEN, {**LOGITS, "schedule": {"weight": "linear"}}], **stream) == said
    assert not (tmp_path / "no").exists()


def test_a_student_cut_from_its_teacher_goes_through_stages():
    teacher = bert(4)
    values = distiller(TWO, teacher, student_from_teacher(teacher, [2, 4]), max_steps=2).train()
    assert set(values) == {"loss", "soft"}

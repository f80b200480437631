"""A run is not resumed from what is not its own, or is damaged; folders of others are left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import HARD, HIDDEN, SOFT, batches, bert, contents, distiller

from knowledge_distillation import CheckpointError
from knowledge_distillation.storage.checkpoint_files import checkpoints


def finished(folder: Path, **options: Any) -> dict[str, bytes]:
    distiller(output_dir=folder, **options).train()
    return contents(folder)


def test_an_output_directory_of_another_run_is_left_alone(tmp_path: Path) -> None:
    before = finished(tmp_path / "run")
    with pytest.raises(CheckpointError) as raised:
        distiller(output_dir=tmp_path / "run").train()
    assert f"output_dir {tmp_path / 'run'} holds another run (run.json, history.jsonl" in str(raised.value)
    for way_out in ("resume_from_checkpoint=True", "--resume", "choose another directory", "overwrite_output_dir"):
        assert way_out in str(raised.value)
    assert contents(tmp_path / "run") == before


def test_a_folder_with_other_files_is_no_run_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    after = finished(tmp_path)
    assert after["notes.txt"] == b"mine" and "run.json" in after
    distiller(output_dir=tmp_path, overwrite_output_dir=True).train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_output_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file; a directory is needed"):
        distiller(output_dir=tmp_path / "run").train()
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 0.5}, "settings.learning_rate: it has 0.01, asked is 0.5"),
        ({"seed": 7}, "settings.seed: it has 42, asked is 7"),
        ({"config": [{**SOFT[0], "weight": 2.0}]}, "distill_config[0].weight: it has 1.0, asked is 2.0"),
        (
            {"config": [{**SOFT[0], "args": {"temperature": 3.0}}]},
            "distill_config[0].args.temperature: it has null, asked is 3.0",
        ),
        ({"config": SOFT + HARD}, "distill_config: it has [{"),
        ({"train_dataloader": batches(2)}, "run.batches: it has 3, asked is 2"),
        ({"student": bert(3)}, "models.student.parameters: it has "),
    ],
    ids=["learning rate", "seed", "weight", "argument", "entries", "data", "student"],
)
def test_a_changed_run_is_not_resumed_and_the_change_is_named(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    before = finished(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        distiller(**{"config": SOFT, "output_dir": tmp_path, **changed}).train(resume_from_checkpoint=True)
    assert f"cannot resume {tmp_path}: this is not the run it holds\n" in str(raised.value)
    assert named in str(raised.value)
    assert contents(tmp_path) == before


def test_what_may_change_between_a_run_and_its_continuation(tmp_path: Path) -> None:
    finished(tmp_path)
    free = {"num_train_epochs": 2, "logging_steps": 5, "save_total_limit": 3}
    longer = distiller(output_dir=tmp_path, **free)
    longer.train(resume_from_checkpoint=True)
    assert longer.progress.step == 6


@pytest.mark.parametrize("part", ["student", "projections", "optimizer", "progress", "random-0"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_checkpoint_is_not_resumed(part: str, damage: str, tmp_path: Path) -> None:
    wide = {"config": HIDDEN, "teacher": bert(width=24), "student": bert(2)}
    finished(tmp_path, **wide)
    broken = checkpoints(tmp_path)[-1] / f"{part}.safetensors"
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:-7])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        distiller(**wide, output_dir=tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert part in str(raised.value) and str(broken.parent) in str(raised.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["progress.json", "random-0.json", "optimizer.json", "run.json"])
def test_json_that_is_cut_short_is_named(name: str, tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / name if name == "run.json" else checkpoints(tmp_path)[-1] / name
    path.write_text(path.read_text()[:-5])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        distiller(output_dir=tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[1]\n", "is no history of a run: line 1 has no step"),
        (b'{"step": 1}\n{"loss": 2}\n', "is no history of a run: line 2 has no step"),
        (b"\xff\xff\n", "cannot be read"),
    ],
)
def test_a_history_of_something_else_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "history.jsonl").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"history.jsonl {told}"):
        distiller(output_dir=tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert (tmp_path / "history.jsonl").read_bytes() == content


def test_files_and_folders_in_each_others_place_are_named(tmp_path: Path) -> None:
    finished(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("")
    (tmp_path / "other" / "run.json").mkdir(parents=True)
    for folder, told in ((tmp_path, "checkpoints is no directory"), (tmp_path / "other", "run.json is no file")):
        with pytest.raises(CheckpointError, match=f"cannot resume .*{told}"):
            distiller(output_dir=folder, num_train_epochs=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("content", ["null", "[]", '{"run": null}', '{"run": {"mixed_precision": "fp99"}}'])
def test_a_run_json_of_something_else_is_another_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="this is not the run it holds"):
        distiller(output_dir=tmp_path, mixed_precision="auto").train(resume_from_checkpoint=True)


def test_a_foreign_checkpoint_does_not_fit(tmp_path: Path) -> None:
    finished(tmp_path / "other", teacher=bert(), student=bert(3))
    out = tmp_path / "mine"
    with pytest.raises(CheckpointError, match="does not fit"):
        distiller(output_dir=out).train(resume_from_checkpoint=tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        distiller(output_dir=out).train(resume_from_checkpoint=tmp_path / "nowhere")
    assert not out.exists()


def test_files_that_are_no_run_are_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    with pytest.raises(CheckpointError, match="it holds student but no run.json"):
        distiller(output_dir=tmp_path).train(resume_from_checkpoint=True)
    assert contents(tmp_path) == {}


def test_a_run_of_another_version_may_have_other_settings(tmp_path: Path) -> None:
    finished(tmp_path, num_train_epochs=1)
    written = json.loads((tmp_path / "run.json").read_text())
    del written["settings"]["balance_steps"]  # newer than that run
    written["settings"]["torch_compile"] = False  # not there any more
    (tmp_path / "run.json").write_text(json.dumps(written))
    again = distiller(output_dir=tmp_path, num_train_epochs=2)
    again.train(resume_from_checkpoint=True)
    assert again.progress.epoch == 2
    with pytest.raises(CheckpointError, match="settings.warmup_ratio: it has 0.1, asked is 0.2"):
        distiller(output_dir=tmp_path, num_train_epochs=3, warmup_ratio=0.2).train(resume_from_checkpoint=True)

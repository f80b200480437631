"""A run has its directory to itself, removes only what a run wrote, and says at once where it cannot write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import contents, distiller, history, same, weights
from training_script import forked

from knowledge_distillation import Callback, CheckpointError, ConfigError
from knowledge_distillation.errors import WriteError
from knowledge_distillation.storage import run_directory
from knowledge_distillation.storage.run_directory import take


def refused(folder: Path, *told: str, resume: bool = False, **options) -> None:
    run = distiller(output_dir=folder, **options)
    with pytest.raises(CheckpointError) as raised:
        run.train(resume_from_checkpoint=resume)
    for text in told:
        assert text in str(raised.value)


@pytest.mark.case("F6")
def test_a_place_where_no_directory_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place, told in (
        ("file", "file is a file; a directory is needed"),
        ("file/run", f"lies below a file, {tmp_path / 'file'}; a directory is needed"),
        ("file/a/b/run", f"lies below a file, {tmp_path / 'file'}; a directory is needed"),
        ("dangling", f"{tmp_path / 'dangling'} is a link to {tmp_path / 'nowhere'}, no directory"),
        ("dangling/run", "is a link to "),
        ("circle/run", "is a link to "),
        ("x" * 300, "cannot be written: File name too long"),
    ):
        for resume in (False, True):
            refused(tmp_path / place, f"output_dir {tmp_path / place}", told, resume=resume)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    refused(tmp_path / "a" / "run", f"cannot be written: {tmp_path} is read-only")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling", "circle"}


@pytest.mark.case("F6")
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_disk_that_takes_no_directory() -> None:
    refused(Path("/proc/run"), "output_dir /proc/run cannot be written: ")


@pytest.mark.case("F7")
@pytest.mark.parametrize(
    "name", ["student/model.safetensors", "checkpoints/step-00000003/x", "history.jsonl", "peers/a"]
)
def test_what_no_run_wrote_is_not_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    refused(tmp_path, "but no run.json, so no run wrote it and nothing is removed", overwrite_output_dir=True)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_run_is_overwritten_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    distiller(output_dir=tmp_path, num_train_epochs=2, save_total_limit=2).train()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a").write_text("mine")
    distiller(output_dir=tmp_path, overwrite_output_dir=True).train()
    assert contents(tmp_path)["notes/a"] == b"mine" and len(history(tmp_path)) == 3


@pytest.mark.case("F8")
@pytest.mark.parametrize("name", ["student", "checkpoints", "history.jsonl", "run.json", "peers"])
def test_a_link_is_not_followed(name: str, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    distiller(output_dir=out).train()
    if (out / name).exists():
        (out / name).rename(other)
    else:
        other.mkdir()
    (out / name).symlink_to(other)
    before = contents(tmp_path)
    refused(out, f"{out / name} is a link, and what it leads to is not removed", overwrite_output_dir=True)
    assert contents(tmp_path) == before and (out / name).is_symlink()
    os.remove(out / name)
    (out / name).symlink_to(tmp_path / "nowhere")
    refused(out, "output_dir", overwrite_output_dir=True)


@pytest.mark.case("F9")
def test_a_directory_belongs_to_the_run_that_is_at_it(tmp_path: Path) -> None:
    told = f"output_dir {tmp_path} is in use: another run is at it"

    class Second(Callback):
        def on_step_end(self, run) -> None:
            if run.progress.step == 2:
                refused(tmp_path, told, resume=True)
                refused(tmp_path, told, overwrite_output_dir=True)
                refused(tmp_path, told)

    run = distiller(output_dir=tmp_path, callbacks=[Second()])
    run.train()
    assert [line["step"] for line in history(tmp_path)] == [1, 2, 3]
    again = distiller(output_dir=tmp_path)  # the first has let go of it
    again.train(resume_from_checkpoint=True)
    assert same(weights(run.student), weights(again.student))


@pytest.mark.case("F9")
def test_a_run_that_failed_lets_go_of_its_directory(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_step_end(self, run) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distiller(output_dir=tmp_path, callbacks=[Fails()]).train()
    distiller(output_dir=tmp_path).train(resume_from_checkpoint=True)
    assert len(history(tmp_path)) == 3 and not run_directory._HELD


@pytest.mark.case("F9")
def test_a_killed_process_lets_go_and_a_forked_one_does_not_hold(tmp_path: Path) -> None:
    first = forked(str(tmp_path / "run"), "--slow")
    while not (tmp_path / "run" / "history.jsonl").exists():
        assert first.poll() is None
    second = forked(str(tmp_path / "run"), "--resume")
    assert second.wait() == 1 and "is in use: another run is at it" in second.log.read_text()
    first.kill()
    assert first.wait() == -signal.SIGKILL
    release = take(tmp_path / "run")
    assert release is not None
    said, says = os.pipe()
    child = os.fork()
    if not child:
        os.write(says, b"no" if run_directory._HELD else b"ok")
        time.sleep(60)
        os._exit(0)
    assert os.read(said, 2) == b"ok"
    release()
    again = take(tmp_path / "run")  # though the child goes on
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert again is not None
    again()


@pytest.mark.case("F6")
@pytest.mark.parametrize("place", ["", " ", 5, b"out", ["out"], "a\0b"])
def test_what_is_no_path_is_refused(place) -> None:
    with pytest.raises(ConfigError, match="output_dir is the path of a directory; found "):
        distiller(output_dir=place)
    with pytest.raises(ConfigError, match="resume_from_checkpoint is the path of a directory; found "):
        distiller(output_dir="never").train(resume_from_checkpoint=place)
    assert not os.path.exists("never")


def test_a_tilde_is_the_home_directory_and_any_letters_are_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    distiller(output_dir="~/ä ö 日本 'x'").train()
    assert history(tmp_path / "ä ö 日本 'x'")


@pytest.mark.case("F11")
def test_a_disk_that_is_full_is_one_error_and_what_was_there_is_whole(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from runs import distiller\n"
        "from knowledge_distillation import Callback, DistillationError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "class Full(Callback):\n"
        "    def on_step_end(self, run):\n"
        "        if run.progress.step == 4:\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    distiller(output_dir=sys.argv[1], num_train_epochs=2, callbacks=[Full()]).train()\n"
        "except DistillationError as error:\n"
        "    assert isinstance(error, OSError)\n"
        "    print(error)\n"
    )
    command, where = [sys.executable, "-c", script, tmp_path], {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **where})
    assert f"{tmp_path / 'checkpoints'} cannot be written: " in told.stdout, told.stderr[-500:]
    assert "too large" in told.stdout.lower() and "What lay there before is whole" in told.stdout
    run = distiller(output_dir=tmp_path, num_train_epochs=2)
    run.train(resume_from_checkpoint=True)
    assert run.progress.step == 6


@pytest.mark.case("F11")
def test_what_lies_in_the_way_of_a_save_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / ".student.tmp").write_text("cut short")
    distiller(output_dir=tmp_path).train()
    assert (tmp_path / "student" / "config.json").is_file() and not (tmp_path / ".student.tmp").exists()


@pytest.mark.case("F11")
def test_a_folder_that_is_gone_while_the_run_writes_is_named(tmp_path: Path) -> None:
    class Gone(Callback):
        def on_step_end(self, run):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)

    with pytest.raises(WriteError, match="out/history.jsonl cannot be written: No such file or directory"):
        distiller(output_dir=tmp_path / "out", callbacks=[Gone()]).train()

"""A run killed at any moment goes on to the very same student."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_script import forked
from transformers import AutoModelForSequenceClassification


def finish(folder: Path, *options: str) -> None:
    assert forked(str(folder), *options).wait() == 0


def kill_at_step(folder: Path, step: int, *options: str) -> None:
    """Kill the run, without warning, as soon as its history shows that it has reached a step."""
    process = forked(str(folder), "--slow", *options)
    history = folder / "history.jsonl"
    for _ in range(2400):
        if process.poll() is not None:
            pytest.fail("the run ended before it was killed")
        lines = history.read_text().splitlines() if history.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").iterdir())[-1]
    best = load_file(str(folder / "student" / "model.safetensors"))
    peers = {f"{f.stem}.{k}": v for f in last.glob("peer-*.safetensors") for k, v in load_file(str(f)).items()}
    return {**load_file(str(last / "student.safetensors")), **peers, **{f"best.{k}": v for k, v in best.items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "data", [(), ("--loader",), ("--max-tokens", "24")], ids=["data-set", "shuffling-loader", "token-budget"]
)
def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path: Path, data: tuple[str, ...]) -> None:
    finish(tmp_path / "whole", *data)
    whole = final_weights(tmp_path / "whole")
    for step in (2, 6, 18):  # before the first checkpoint, within an epoch, in the second epoch
        folder = tmp_path / f"killed-{step}"
        kill_at_step(folder, step, *data)
        finish(folder, "--resume", *data)
        assert same(whole, final_weights(folder)), f"killed at step {step}"
        histories = [(f / "history.jsonl").read_text() for f in (tmp_path / "whole", folder)]
        assert histories[0] == histories[1]


def test_killed_twice_with_accumulation(tmp_path: Path) -> None:
    options = ("--accumulate", "2")
    finish(tmp_path / "whole", *options)
    kill_at_step(tmp_path / "killed", 4, *options)
    kill_at_step(tmp_path / "killed", 8, "--resume", *options)
    finish(tmp_path / "killed", "--resume", *options)
    assert same(final_weights(tmp_path / "whole"), final_weights(tmp_path / "killed"))


def test_killed_in_the_second_stage_with_a_peer(tmp_path: Path) -> None:
    options = ("--stages", "--balance", "gradient_norm")
    finish(tmp_path / "whole", *options)
    for step in (6, 10):  # at the boundary, and within the second stage
        folder = tmp_path / f"killed-{step}"
        kill_at_step(folder, step, *options)
        finish(folder, "--resume", *options)
        assert same(final_weights(tmp_path / "whole"), final_weights(folder)), f"killed at step {step}"
        histories = [(f / "history.jsonl").read_text() for f in (tmp_path / "whole", folder)]
        assert histories[0] == histories[1]


def test_the_student_directory_is_clean_and_nothing_is_pickled(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    student = tmp_path / "run" / "student"
    assert {path.name for path in student.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert not any("projection" in key for key in load_file(str(student / "model.safetensors")))
    _, loading = AutoModelForSequenceClassification.from_pretrained(student, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "student",
        "checkpoints",
        "history.jsonl",
        "run.json",
    }

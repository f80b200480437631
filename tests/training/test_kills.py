"""Runs killed at random moments, and resumed, end in the same weights and the same history."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from processes import Forked
from test_resume import final_weights, same
from training_script import forked

KINDS = {
    "plain": ("--log-every", "3"),
    "accumulation": ("--accumulate", "2", "--log-every", "3"),
    "stages": ("--stages", "--balance", "gradient_norm", "--log-every", "3"),
    "cache": ("--dropout", "0", "--list", "--cache", "{cache}", "--log-every", "3"),
    "early-stopping": ("--patience", "2", "--log-every", "3"),
}


def check(tmp_path: Path, kind: str, moments: int) -> None:
    """Moments are drawn over the whole length of the run; every fourth run is killed once more while it resumes."""
    draw = random.Random(f"kills {kind}")

    def begin(name: str, *more: str) -> Forked:
        options = [option.format(cache=tmp_path / f"{name}-cache") for option in KINDS[kind]]
        return forked(str(tmp_path / name), *options, *more)

    assert begin("whole").wait() == 0
    began = time.monotonic()  # of a second run: the first waited until what starts processes was there
    assert begin("timed").wait() == 0
    length = time.monotonic() - began
    weights, history = final_weights(tmp_path / "whole"), (tmp_path / "whole" / "history.jsonl").read_text()
    landed = 0
    for moment in range(moments):
        name = f"killed-{moment}"
        for again in range(1 + (moment % 4 == 3)):
            process = begin(name, *(["--resume"] if again else []))
            time.sleep(draw.uniform(0, length))
            process.kill()
            landed += process.wait() == -signal.SIGKILL
        assert begin(name, "--resume").wait() == 0
        assert same(weights, final_weights(tmp_path / name)), f"{kind}, moment {moment}"
        assert (tmp_path / name / "history.jsonl").read_text() == history, f"{kind}, moment {moment}"
    print(f"{kind}: {moments} runs, {landed} kills before the end, {length:.1f} s a run")
    assert landed


def test_killed_at_two_moments(tmp_path: Path) -> None:
    check(tmp_path, "plain", 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_moments(tmp_path: Path, kind: str) -> None:
    check(tmp_path, kind, 20)

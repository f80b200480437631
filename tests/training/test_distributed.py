"""Two processes are one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from processes import free_port
from runs import distiller, furthest
from tolerance import rounding
from training_script import alone, both_of, forked, in_two, saved_weights

from knowledge_distillation.errors import ConfigError, DistillationError
from knowledge_distillation.training.accelerate import others_may_end
from knowledge_distillation.training.callbacks import read_history
from knowledge_distillation.training.diagnosis import naming_batches

SCRIPT = str(Path(__file__).parents[1] / "training_script.py")


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
_SET_BY_LAUNCHERS = ("ACCELERATE_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")


def launch(launcher: list[str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script as people start it: by a launcher, with no setting beside it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SET_BY_LAUNCHERS)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH") or os.getcwd()}
    call = [sys.executable, *launcher, free_port(), SCRIPT, str(folder), *options]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=240)


def launched(launcher: list[str], folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights of two processes."""
    done = launch(launcher, folder, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert begun(folder)["processes"] == 2
    return saved_weights(folder)


def begun(folder: Path) -> dict[str, Any]:
    """What a run knows of the processes and the precision it was begun in."""
    return json.loads((folder / "run.json").read_text())["run"]


def lines_of(folder: Path) -> list[dict[str, float]]:
    return read_history(folder / "history.jsonl")


@pytest.mark.parametrize(
    "data",
    [("--list", "--sgd", "--learning-rate", "0.1"), ("--sgd", "--learning-rate", "0.1")],
    ids=["list", "data-set"],
)
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path, data: tuple[str, ...]) -> None:
    """37 rows in global batches of 8: in the last step one process has 4 rows and 1, the other none."""
    common = ("--dropout", "0", *data)
    one = alone(tmp_path / "one", "--batch", "8", *common)
    two = in_two(tmp_path / "two", "--batch", "4", *common)
    start = alone(tmp_path / "still", "--batch", "8", *common[:-1], "0")
    assert furthest(one, start) > 1e-2  # the run moved the weights
    assert furthest(one, two) < rounding()


def test_two_processes_with_deferred_logits_of_a_tied_head(tmp_path: Path) -> None:
    """The head's gradient, made outside of the forward pass of the wrapped module, reaches both processes."""
    common = ("--dropout", "0", "--list", "--sgd", "--learning-rate", "0.1", "--language-model")
    one = alone(tmp_path / "one", "--batch", "8", *common, "held")
    two = in_two(tmp_path / "two", "--batch", "2", "--accumulate", "2", *common, "deferred")
    assert "student.lm_head.weight" in one and "student.model.embed_tokens.weight" not in one
    assert furthest(one, two) < rounding()


def test_two_processes_with_accumulation(tmp_path: Path) -> None:
    common = ("--dropout", "0", "--list", "--sgd", "--learning-rate", "0.1")
    one = alone(tmp_path / "one", "--batch", "8", *common)
    two = in_two(tmp_path / "two", "--batch", "2", "--accumulate", "2", *common)
    assert furthest(one, two) < rounding()


def test_two_processes_with_a_token_budget(tmp_path: Path) -> None:
    """Batches of 24 tokens hold 2 to 8 rows: the average is over all rows of a step, whoever has them."""
    common = ("--dropout", "0", "--sgd", "--learning-rate", "0.1", "--max-tokens", "24")
    one = alone(tmp_path / "one", "--accumulate", "2", "--in-turn", *common)
    two = in_two(tmp_path / "two", *common)
    assert furthest(one, two) < rounding()


def test_two_processes_with_a_peer(tmp_path: Path) -> None:
    common = ("--dropout", "0", "--list", "--sgd", "--learning-rate", "0.1", "--peer")
    one = alone(tmp_path / "one", "--batch", "8", *common)
    two = in_two(tmp_path / "two", "--batch", "4", *common)
    assert any(name.startswith("peer-peer.") for name in one) and (tmp_path / "two" / "peers" / "peer").is_dir()
    assert furthest(one, two) < rounding()


def test_two_processes_in_stages(tmp_path: Path) -> None:
    """AdamW makes much of rounding in gradients of nearly zero: losses are compared, which do not show it."""
    common = ("--dropout", "0", "--list", "--stages")
    alone(tmp_path / "one", "--batch", "8", *common)
    in_two(tmp_path / "two", "--batch", "4", *common)
    one, two = (read_history(tmp_path / name / "history.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys() and left == pytest.approx(right, rel=2e-3, abs=1e-5)


def test_two_processes_measure_gradients(tmp_path: Path) -> None:
    """Each measures those of its own batches, so the factors are not those of one process; but both have the same."""
    common = ("--dropout", "0", "--list", "--peer", "--balance", "gradient_norm")
    balanced = in_two(tmp_path / "two", "--batch", "4", *common)
    factors = {name: tensor for name, tensor in balanced.items() if name.endswith("balance.factors")}
    assert len(factors) == 1
    for tensor in factors.values():
        assert tensor.isfinite().all() and (tensor > 0).all() and len(set(tensor.tolist())) > 2


@pytest.mark.case("E2")
def test_two_processes_find_each_other_with_no_setting(tmp_path: Path) -> None:
    """No device is named: without a GPU Accelerate alone would see one process. The first chooses the precision."""
    in_two(tmp_path / "two", "--defaults", "--batch", "4")
    assert begun(tmp_path / "two")["processes"] == 2
    evaluated = [line["step"] for line in lines_of(tmp_path / "two") if "eval_accuracy" in line]
    assert evaluated == [5, 10, 15]  # one history, of 5 steps an epoch: 37 rows in batches of 2 x 4


@pytest.mark.case("E2")
@pytest.mark.parametrize(
    "launcher", [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate")]
)
@pytest.mark.slow
def test_a_launcher_gives_what_one_process_gives(launcher: list[str], tmp_path: Path) -> None:
    common = ("--dropout", "0", "--sgd", "--learning-rate", "0.1")
    one = alone(tmp_path / "one", "--batch", "8", *common)
    assert furthest(one, launched(launcher, tmp_path / "two", "--batch", "4", *common)) < rounding()


@pytest.mark.slow
def test_torchrun_with_stages_cache_and_early_stopping(tmp_path: Path) -> None:
    """Evaluations come every 5 steps; none improves on the first by a rate of 0, so the third is the last."""
    common = ("--dropout", "0", "--cache", str(tmp_path / "cache"), "--defaults")
    launched(TORCHRUN, tmp_path / "stages", "--batch", "4", "--stages", *common)
    assert {line["step"] for line in lines_of(tmp_path / "stages")} >= {5, 11}
    cache = ("--cache", str(tmp_path / "other"), "--learning-rate", "0", "--patience", "2")
    launched(TORCHRUN, tmp_path / "stopped", "--batch", "2", "--dropout", "0", *cache)
    assert lines_of(tmp_path / "stopped")[-1]["step"] == 15  # of 30
    assert (tmp_path / "other" / "complete.json").exists()


def test_a_run_goes_on_with_as_many_processes_as_it_was_begun_with(tmp_path: Path) -> None:
    in_two(tmp_path / "two", "--batch", "4", "--stop-at", "2")
    refused = forked(str(tmp_path / "two"), "--batch", "4", "--resume")
    assert refused.wait() != 0
    assert (
        "cannot resume" in refused.log.read_text() and "run.processes: it has 2, asked is 1" in refused.log.read_text()
    )


def test_every_process_says_why_a_run_cannot_go_on(tmp_path: Path) -> None:
    assert forked(str(tmp_path / "one"), "--batch", "4", "--stop-at", "2").wait() == 0
    for process in both_of(tmp_path / "one", "--batch", "4", "--resume"):
        assert process.wait() != 0
        said = process.log.read_text()
        assert "run.processes: it has 1, asked is 2" in said and "is not a checkpoint" not in said


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_other_ends_and_says_why(killed: int, tmp_path: Path) -> None:
    both = both_of(tmp_path / "two", "--batch", "1", "--slow")
    while not (tmp_path / "two" / "checkpoints").exists():
        assert all(process.poll() is None for process in both)
        time.sleep(0.1)
    both[killed].kill()
    begin, other = time.monotonic(), both[1 - killed]
    assert other.wait(60) not in (0, None) and time.monotonic() - begin < 60
    assert f"process {1 - killed} of 2 ends: another process of this run has ended" in other.log.read_text()


def test_a_process_that_is_gone_is_blamed_on_no_batch_and_no_loss() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc] Read error: Connection reset by peer")
    run, two = SimpleNamespace(), SimpleNamespace(num_processes=2, process_index=0)
    with pytest.raises(DistillationError, match="process 0 of 2 ends: another process of this run has ended"):
        with others_may_end(two), naming_batches(run, [{}]):
            try:
                raise lost
            except RuntimeError as error:  # as in a loss that asks the others
                raise ConfigError("loss crd failed") from error
    with pytest.raises(RuntimeError, match="Read error"), others_may_end(SimpleNamespace(num_processes=1)):
        raise lost


def test_what_one_process_refuses_ends_both(tmp_path: Path) -> None:
    """The main process alone looks at the folder; the other does not wait for it for ever, and says the same."""
    (tmp_path / "two" / "student").mkdir(parents=True)
    both = both_of(tmp_path / "two", "--batch", "4")
    assert all(process.wait(60) != 0 for process in both)
    assert all("holds another run" in process.log.read_text() for process in both)


@pytest.mark.case("E2")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            "WORLD_SIZE is 2, and Accelerate was set up for 1 process",
        ),
        ({"WORLD_SIZE": "2"}, "no RANK says which of them this process is"),
        (
            {"MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "False"},
            "was asked for several processes and started one.*without --cpu",
        ),
    ],
    ids=["set up before", "no rank", "accelerate launch"],
)
def test_processes_that_would_run_alone_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distiller()


def test_a_callback_that_stops_one_process_stops_both_together(tmp_path: Path) -> None:
    """Callbacks run on the main process; an evaluation follows step 2 only at step 5."""
    in_two(tmp_path / "two", "--batch", "4", "--stop-at", "2")
    last = sorted((tmp_path / "two" / "checkpoints").iterdir())[-1]
    assert last.name == "step-00000005"

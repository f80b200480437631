"""Two processes are one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import free_port
from runs import furthest
from tolerance import rounding
from training_script import alone, in_two, saved_weights

from knowledge_distillation.training.callbacks import read_history

SCRIPT = str(Path(__file__).parents[1] / "training_script.py")


def launched(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """Two processes, started by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": os.getcwd()}
    call = [sys.executable, *launcher, SCRIPT, str(folder), *options]
    done = subprocess.run(call, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return saved_weights(folder)


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


def test_torchrun_gives_what_one_process_gives(tmp_path: Path) -> None:
    common = ("--dropout", "0", "--sgd", "--learning-rate", "0.1")
    one = alone(tmp_path / "one", "--batch", "8", *common)
    assert furthest(one, launched(tmp_path / "two", "--batch", "4", *common)) < rounding()


def test_a_callback_that_stops_one_process_stops_both_together(tmp_path: Path) -> None:
    """Callbacks run on the main process; an evaluation follows step 2 only at step 5."""
    in_two(tmp_path / "two", "--batch", "4", "--stop-at", "2")
    last = sorted((tmp_path / "two" / "checkpoints").iterdir())[-1]
    assert last.name == "step-00000005"

"""The benchmarks compare every loss with a form that gives the same, and count memory correctly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import attention  # noqa: E402
import vocabulary  # noqa: E402
from losses import Side, cases, check, peak_memory, sides  # noqa: E402

from knowledge_distillation.objective.fused import vocabulary as causal_lm  # noqa: E402

SMALL = cases(small=True)


@pytest.mark.parametrize("case", SMALL, ids=[f"{case.name}-{case.kind}" for case in SMALL])
def test_a_naive_formula_gives_the_values_and_gradients_of_its_loss(case):
    check(case, *sides(case, dtype=torch.float64), tolerance=1e-6)


def test_the_peak_of_memory_is_what_a_calculation_by_hand_gives():
    x = torch.randn(1000, 250, requires_grad=True)  # one million bytes
    # exp keeps its result for the backward pass (1), in which the gradient of x comes to it (2)
    assert peak_memory(Side(lambda: x.exp().sum(), [x])) == pytest.approx(2e6, rel=1e-3)
    # the product is let go before the gradient of x is made (1); x and y were there before
    y = torch.randn(1000, 250)
    assert peak_memory(Side(lambda: (x * y).sum(), [x])) == pytest.approx(1e6, rel=1e-3)
    # two results are kept (1, 2); the gradient of the inner one comes (3), the outer result goes, and that of x comes
    assert peak_memory(Side(lambda: x.exp().exp().sum(), [x])) == pytest.approx(3e6, rel=1e-3)


def test_what_is_held_before_a_call_does_not_count():
    x = torch.randn(1000, 250, requires_grad=True)
    side = Side(lambda: x.sum(), [x])
    side.run()
    assert peak_memory(side) == peak_memory(side) < 1e6 * 1.001


@pytest.mark.parametrize("more", [[], ["--hard"], ["--top-k", "20"]], ids=["soft", "hard", "top-k"])
def test_large_vocabularies_take_less_memory_chunk_by_chunk(monkeypatch, capsys, more):
    small = ["--tokens", "512", "--vocabulary", "2000", "--width", "8", "--teacher-width", "8", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["vocabulary.py", *small, *more, "--json"])
    monkeypatch.setitem(causal_lm.ELEMENTS, "cpu", 32 * 2000)
    vocabulary.main()
    lines = json.loads(capsys.readouterr().out)
    assert [line["dtype"] for line in lines] == ["float32", "bfloat16"]
    for line in lines:
        assert line["seconds"] > 0 and line["seconds_plain"] > 0
        assert 8 * (line["mib"] - line["gradients_mib"]) < line["mib_plain"] - line["gradients_mib"]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("loss", attention.LOSSES)
def test_a_loss_on_long_attention_maps_takes_an_eighth_of_the_memory_from_their_parts(loss, layers):
    shape = (1, 4, 2048, 16)
    plain, fused = attention.sides(loss, shape, layers, torch.float32, "cpu")
    assert peak_memory(fused) <= peak_memory(plain) / 8


def test_the_benchmark_of_attention_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention.py", "--small", "--repeat", "1"])
    attention.main()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(attention.LOSSES) * len(attention.SMALL)
    assert all(float(row.split("|")[-2]) > 0 for row in rows[2:])

"""Scores, size and latency of models, side by side."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from runs import batches, bert

from knowledge_distillation.evaluation.report import Row, final_table, measure


def test_a_model_is_counted_and_timed_in_eval_mode_and_left_as_it_was() -> None:
    model = bert(2, dropout=0.5).train()
    model.bert.eval()
    calls: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda module, *given: calls.append((module.training, torch.is_grad_enabled())))
    row = measure("mine", model, 0.5, batches(1)[0], repeats=3)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert (row.name, row.score, row.parameters, row.size) == ("mine", 0.5, number, 4 * number)
    assert 0 < row.latency < 5
    assert calls == [(False, False)] * 5  # two to warm up
    assert model.training and not model.bert.training
    assert measure("half", bert(2).bfloat16(), None, batches(1)[0], repeats=1).size == 2 * number


def test_the_latency_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 10, 19, 20, 21, 30, 33, 40, 42])  # passes of 9, 9 (to warm up), 1, 3 and 2 seconds
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    assert measure("mine", bert(1), None, batches(1)[0], repeats=3).latency == 2.0


def test_the_table_has_ratios_to_the_first_model() -> None:
    rows = [Row("teacher", 0.9, 4_000_000, 0.04, 16_000_000), Row("student", None, 1_000_000, 0.016, 4_000_000)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(final_table(rows, "f1", 32))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == "best f1 on the evaluation data; latency of one batch of 32".split()
    assert ["teacher", "0.9000", "4.00", "M", "40.0", "ms", "16.0", "MB"] in lines
    assert ["student", "-", "1.00", "M", "16.0", "ms", "2.5×", "4.0", "MB", "4.0×"] in lines

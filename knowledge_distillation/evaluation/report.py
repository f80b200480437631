"""What came of a run: an epoch's scores in a line; scores, size and latency of each model, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..features.inputs import forward_inputs, named_inputs
from ..features.preserve import resting


@dataclass(frozen=True)
class Row:
    """One model's line: `size` in bytes of its weights, `latency` in seconds for one batch."""

    name: str
    score: float | None
    parameters: int
    latency: float
    size: int


def epoch_line(epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    """`epoch  2/15  loss 0.4312  accuracy 0.9125`, for a loop of one's own; epochs count from 1."""
    scores = "".join(f"  {name} {value:.4f}" for name, value in values.items())
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}{scores}"


def measure(name: str, model: nn.Module, score: float | None, batch: Any, repeats: int = 9) -> Row:
    """Count and time a model: the median of `repeats` passes over one batch, in eval mode, as it is stored."""
    inputs = forward_inputs(named_inputs(batch, model), model)
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in inputs.items()}
    times = []
    with resting(model), torch.no_grad():
        for _ in range(repeats + 2):
            started = time.perf_counter()
            model(**inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Row(name, score, sum(p.numel() for p in model.parameters()), statistics.median(times[2:]), size)


def final_table(rows: Iterable[Row], metric: str, batch_size: int) -> Any:
    """A rich table: score, parameters, latency and size of each model, with ratios to the first."""
    from rich import box
    from rich.table import Table

    rows = list(rows)
    title = f"best {metric} on the evaluation data; latency of one batch of {batch_size}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", metric, "parameters", "latency", "faster", "size", "smaller"):
        table.add_column(column, justify="left" if column == "model" else "right")
    first = rows[0]
    for row in rows:
        ratios = ("", "") if row is first else (f"{first.latency / row.latency:.1f}×", f"{first.size / row.size:.1f}×")
        table.add_row(
            row.name,
            "-" if row.score is None else f"{row.score:.4f}",
            f"{row.parameters / 1e6:.2f} M",
            f"{row.latency * 1e3:.1f} ms",
            ratios[0],
            f"{row.size / 1e6:.1f} MB",
            ratios[1],
        )
    return table

"""Where a run is, and what its losses were since they were last read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """Where a run is.

    `step`: optimizer steps done; `epoch`: epochs done; `batches`: batches of the present epoch done on this process;
    `fraction`: epochs done, with the part of the present one; `best`: the best primary metric so far; `evaluated`: the
    step of the last evaluation; `stopped`: a callback ended the run.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    fraction: float = 0.0
    best: float | None = None
    evaluated: int = 0
    stopped: bool = False


class Running:
    """Sums of the loss and its terms over steps, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, accelerator: Any) -> dict[str, float]:
        """The mean of each over the steps, summed over the processes' shares; starts again from nothing."""
        if not self.steps:
            return {}
        stacked = torch.stack([value.float() for value in self.sums.values()])
        means = (accelerator.reduce(stacked, "sum") / self.steps).tolist()
        names, self.sums, self.steps = list(self.sums), {}, 0
        return dict(zip(names, means, strict=True))

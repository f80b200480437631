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
    step of the last evaluation; `stopped`: a callback ended the run; `stage`: the number of the present stage;
    `stage_steps`, `stage_epochs`: the steps and epochs done when it began.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    fraction: float = 0.0
    best: float | None = None
    evaluated: int = 0
    stopped: bool = False
    stage: int = 0
    stage_steps: int = 0
    stage_epochs: int = 0

    def close_broken_epoch(self) -> None:
        """A stage ends: its last epoch, broken off, counts as done, so that the next begins with one of its own."""
        if self.batches:
            self.epoch, self.batches = self.epoch + 1, 0

    def enter(self, stage: int) -> None:
        self.stage, self.stage_steps, self.stage_epochs = stage, self.step, self.epoch
        self.best = None


class RunningMean:
    """Sums of the loss and its terms over steps, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        present = [name for name in values if name in self.sums]
        if present:
            torch._foreach_add_([self.sums[name] for name in present], [values[name] for name in present])
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = value.clone()
            self.steps[name] = self.steps.get(name, 0) + 1

    def read(self, accelerator: Any) -> dict[str, float]:
        """The mean of each over its steps, summed over the processes' shares; starts again from nothing."""
        if not self.sums:
            return {}
        stacked = torch.stack([value.float() for value in self.sums.values()])
        sums = accelerator.reduce(stacked, "sum").tolist()
        means = {name: value / self.steps[name] for name, value in zip(self.sums, sums, strict=True)}
        self.sums, self.steps = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """What was added since it was last read, of this process."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps = dict(state["steps"])

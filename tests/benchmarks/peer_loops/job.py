"""What every worker of peers.py shares: the job's models, rows and batches, optimizer settings and evaluation.

    python with_NAME.py JOB        (started by interleaved.Worker; JOB is a folder that peers.py wrote)

It runs in the environment of a peer, so it needs torch and transformers and nothing of this project.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from interleaved import Cost, Meter, Passes
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass
class Job:
    """A folder with `teacher`, `student`, `rows.pt` and `job.json`.

    Args:
        pairs: (teacher layer, student layer), whose hidden states and attention maps are compared; logits always are.
        plan: of each pass its batches, each a list of rows; after the last pass comes the first again.
        pad_to: length of every batch; None for that of its longest row.
        precision: `float32`; `autocast`: both models under bf16 autocast, as by one switch; or `bf16`: bf16 weights of
            the teacher as well.
        total_steps: of the learning rate's schedule, linear after a warm-up of a tenth; 0 keeps it constant.
        dropout: None for the models' own.
        evaluate: tell the accuracy on the development rows after each pass.
        one_epoch: all passes are one epoch, for a tool that does more in its first.
        own: what only one of the tools takes.
    """

    folder: Path
    pairs: list[tuple[int, int]]
    plan: list[list[list[int]]]
    pad_to: int | None
    precision: str
    learning_rate: float
    total_steps: int
    dropout: float | None
    evaluate: bool
    threads: int
    seed: int
    one_epoch: bool
    own: dict[str, Any]

    @classmethod
    def load(cls) -> Job:
        folder = Path(sys.argv[1])
        job = cls(folder=folder, **json.loads((folder / "job.json").read_text()))
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.seed)
        job.rows = torch.load(folder / "rows.pt")
        return job

    # --- models --------------------------------------------------------------------------------------------------

    def model(self, who: str, attention: str = "eager", **flags: bool) -> Any:
        """`teacher` or `student`, on its device; attention maps are handed out by the eager implementation alone."""
        from transformers import AutoModelForSequenceClassification

        changed: dict[str, Any] = dict(flags)
        if self.dropout is not None:
            changed |= {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        folder = self.folder / who
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention, **changed)
        return model.to(self.device)

    def models(self, **flags: bool) -> tuple[Any, Any]:
        """Teacher and student for a loop that is not ours, in the job's precision."""
        teacher, student = (self.model(who, **flags) for who in ("teacher", "student"))
        teacher.eval()
        if self.precision == "autocast":
            self.cast_forward(teacher)
        return teacher.bfloat16() if self.precision == "bf16" else teacher, student.train()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision != "float32" else nullcontext()

    def cast_forward(self, model: Any) -> None:
        """For a tool that calls the model itself: its forward pass in the job's precision."""
        forward = model.forward

        @functools.wraps(forward)
        def cast(*args: Any, **kwargs: Any) -> Any:
            with self.autocast():
                return forward(*args, **kwargs)

        model.forward = cast

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # --- training ------------------------------------------------------------------------------------------------

    def scheduled(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer, whose steps also move the learning rate along."""
        if self.total_steps:
            from transformers import get_linear_schedule_with_warmup

            warmup = self.total_steps // 10
            scheduler = get_linear_schedule_with_warmup(optimizer, warmup, self.total_steps)
            optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    def passes(self, meter: Meter, student: Any) -> Passes:
        return Passes(meter, self.batches, functools.partial(self.score, student))

    def batches(self, number: int) -> Batches:
        return Batches(self, self.plan[number % len(self.plan)])

    def batch(self, split: str, rows: list[int]) -> Batch:
        ids = [self.rows[split]["input_ids"][row] for row in rows]
        length = self.pad_to or max(map(len, ids))
        tensor = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros_like(tensor)
        for row, one in enumerate(ids):
            tensor[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        return {"input_ids": tensor, "attention_mask": mask}

    def score(self, student: Any) -> Cost:
        if not self.evaluate:
            return {}
        labels = torch.tensor(self.rows["dev"]["labels"])
        student.eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(labels), 64):
                batch = self.batch("dev", list(range(start, min(start + 64, len(labels)))))
                output = student(**{name: tensor.to(self.device) for name, tensor in batch.items()})
                found.append(output.logits.argmax(-1).cpu())
        student.train()
        return {"accuracy": (torch.cat(found) == labels).float().mean().item()}


class Batches:
    """Those of one pass, made as they are asked for."""

    def __init__(self, job: Job, rows: list[list[int]]) -> None:
        self.job, self.rows = job, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        return (self.job.batch("train", rows) for rows in self.rows)


def to(device: torch.device, batch: Batch) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def run(train: Callable[[Job, Meter], None]) -> None:
    """Start a worker."""
    meter = Meter()
    train(Job.load(), meter)

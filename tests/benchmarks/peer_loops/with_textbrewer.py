"""The job by TextBrewer 0.2.1, as its examples have it: AdamW, gradients clipped to 1, masks of the inputs given."""

from __future__ import annotations

from typing import Any

import torch
from interleaved import Meter
from job import Job, run
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig


def adaptor(batch: dict[str, torch.Tensor], output: Any) -> dict[str, Any]:
    return {
        "logits": output.logits,
        "hidden": output.hidden_states,
        "attention": output.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def train(job: Job, meter: Meter) -> None:
    teacher, student = job.models(output_hidden_states=True, output_attentions=True)
    job.cast_forward(student)
    matches = []
    for t, s in job.pairs:
        hidden = {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        attention = {"layer_T": t - 1, "layer_S": s - 1, "feature": "attention", "loss": "attention_mse", "weight": 1}
        matches += [hidden, attention]

    class Distiller(GeneralDistiller):
        def write_loss(self, total_loss: torch.Tensor, *rest: Any, **more: Any) -> None:
            meter.loss = total_loss.detach()
            super().write_loss(total_loss, *rest, **more)

    endless = {"ckpt_epoch_frequency": 10**9}  # a checkpoint of each epoch is not part of a step
    distiller = Distiller(
        TrainingConfig(device=job.device, output_dir=str(job.folder / "textbrewer"), **endless),
        DistillationConfig(temperature=1, kd_loss_type="mse", intermediate_matches=matches),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    optimizer = job.scheduled(torch.optim.AdamW(student.parameters(), lr=job.learning_rate))
    with distiller:
        distiller.train(optimizer, job.passes(meter, student), num_epochs=10**6, max_grad_norm=1.0)


run(train)

"""The job by NVIDIA ModelOpt: the student converted to one with its teacher inside, modules by path, AdamW."""

from __future__ import annotations

import modelopt.torch.distill as mtd
import torch
from interleaved import Meter
from job import Job, run, to
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss


class MapError(_Loss):
    """Mean squared error of the attention maps, the second output of an attention module."""

    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(student[1], teacher[1])


def train(job: Job, meter: Meter) -> None:
    teacher, student = job.models()
    criterion: dict[tuple[str, str], _Loss] = {("classifier", "classifier"): nn.MSELoss()}
    for t, s in job.pairs:
        names = f"bert.encoder.layer.{s - 1}", f"bert.encoder.layer.{t - 1}"
        criterion[names] = nn.MSELoss()
        criterion[f"{names[0]}.attention.self", f"{names[1]}.attention.self"] = MapError()
    terms = len(criterion)  # its weights may not add up to more than 1
    balancer = mtd.StaticLossBalancer([1 / terms] * terms)
    config = {"teacher_model": teacher, "criterion": criterion, "loss_balancer": balancer}
    model = mtd.convert(student, mode=[("kd_loss", config)])
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = job.scheduled(torch.optim.AdamW(trained, lr=job.learning_rate))
    passes = job.passes(meter, model)
    while True:
        for raw in passes:
            with job.autocast():
                model(**to(job.device, raw))
                loss = model.compute_kd_loss() * terms
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            meter.loss = loss.detach()


run(train)

"""The job by KnowledgeDistillation 1.0.4, as its README has it: Adam, losses with masks, eager attention.

Its `attention_mse_with_mask` and `mse_with_mask` are used; a README that unpacks a model's output into four needs the
adaptor below with today's transformers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from interleaved import Meter
from job import Batch, Job, run, to

import knowledge_distillation
from knowledge_distillation import KnowledgeDistiller, MultiLayerBasedDistillationLoss

if not str(knowledge_distillation.__file__).startswith(sys.prefix):
    raise SystemExit(f"{knowledge_distillation.__file__} is not the package of this environment, {sys.prefix}")


class LossReader:
    """An evaluator, in its terms."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def evaluate(self, *given: Any) -> None:
        self.meter.loss = given[-1].detach()


def output_adaptor(output: Any) -> dict[str, dict[str, torch.Tensor]]:
    layers = {
        f"bert_layer{number}": {"hidden_states": output.hidden_states[number], "attention": attention}
        for number, attention in enumerate(output.attentions, start=1)
    }
    return {**layers, "pred_layer": {"logits": output.logits}}


def entry(teacher: str, student: str, output: str, loss: str) -> dict[str, Any]:
    return {
        "teacher_layer_name": teacher,
        "teacher_layer_output_name": output,
        "student_layer_name": student,
        "student_layer_output_name": output,
        "loss": {"loss_function": loss, "args": {}},
        "weight": 1.0,
    }


def train(job: Job, meter: Meter) -> None:
    teacher, student = job.models(output_hidden_states=True, output_attentions=True)
    job.cast_forward(student)
    config = [entry("pred_layer", "pred_layer", "logits", "mse")]
    for t, s in job.pairs:
        config.append(entry(f"bert_layer{t}", f"bert_layer{s}", "hidden_states", "mse_with_mask"))
        config.append(entry(f"bert_layer{t}", f"bert_layer{s}", "attention", "attention_mse_with_mask"))
    named = list(student.named_parameters())
    no_decay = ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for name, p in named if not name.endswith(no_decay)], "weight_decay": 0.01},
        {"params": [p for name, p in named if name.endswith(no_decay)], "weight_decay": 0.0},
    ]

    def data_adaptor(device: torch.device, raw: Batch) -> tuple[Batch, Batch]:
        batch = to(device, raw)
        return batch, batch

    distiller = KnowledgeDistiller(
        teacher_model=teacher,
        student_model=student,
        train_dataloader=job.passes(meter, student),
        dev_dataloader=None,
        train_data_adaptor=data_adaptor,
        dev_data_adaptor=None,
        device=job.device,
        loss_model=MultiLayerBasedDistillationLoss(config, output_adaptor, output_adaptor),
        optimizer=job.scheduled(torch.optim.Adam(groups, lr=job.learning_rate)),
        evaluator=LossReader(meter),
        num_epoch=10**6,
    )
    distiller.distillate()


run(train)

"""The job by torchdistill 1.1.5: AdamW, modules by path, the teacher frozen (by default it would be trained)."""

from __future__ import annotations

import sys
import types
from typing import Any

from interleaved import Meter
from job import Job, run, to
from torch import Tensor, nn

# Its import needs torchvision, whose compiled part may be for another build of torch; no operator of it is used here.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

from torchdistill.core.distillation import DistillationBox  # noqa: E402
from torchdistill.losses.registry import register_mid_level_loss  # noqa: E402


@register_mid_level_loss
class MapError(nn.Module):
    """Mean squared error of the attention maps, the second output of an attention module."""

    def __init__(self, student: str, teacher: str) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, student: dict[str, Any], teacher: dict[str, Any], targets: Any) -> Tensor:
        one, other = student[self.student]["output"][1], teacher[self.teacher]["output"][1]
        return nn.functional.mse_loss(one, other)


def layer(number: int) -> str:
    return f"bert.encoder.layer.{number - 1}"


def error(teacher: str, student: str) -> dict[str, Any]:
    sides = {
        "input": {"is_from_teacher": False, "module_path": student, "io": "output"},
        "target": {"is_from_teacher": True, "module_path": teacher, "io": "output"},
    }
    criterion = {"key": "MSELoss", "kwargs": {"reduction": "mean"}}
    return {"criterion": criterion, "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": sides}, "weight": 1.0}


def maps_error(teacher: str, student: str) -> dict[str, Any]:
    return {"criterion": {"key": "MapError", "kwargs": {"student": student, "teacher": teacher}}, "weight": 1.0}


def train(job: Job, meter: Meter) -> None:
    teacher, student = job.models()
    terms = {"logits": error("classifier", "classifier")}
    hooked: dict[str, list[str]] = {"teacher": ["classifier"], "student": ["classifier"]}
    for t, s in job.pairs:
        terms[f"hidden{s}"] = error(layer(t), layer(s))
        maps = [f"{layer(number)}.attention.self" for number in (t, s)]
        terms[f"attention{s}"] = maps_error(*maps)
        hooked["teacher"] += [layer(t), maps[0]]
        hooked["student"] += [layer(s), maps[1]]
    process = "forward_batch_only_as_kwargs"
    config = {
        "num_epochs": 1,
        "teacher": {
            "requires_grad": False,
            "forward_proc": process,
            "forward_hook": {"input": [], "output": hooked["teacher"]},
        },
        "student": {"forward_proc": process, "forward_hook": {"input": [], "output": hooked["student"]}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": terms},
            "func2extract_model_loss": "extract_model_loss_dict",
        },
        "optimizer": {"key": "AdamW", "kwargs": {"lr": job.learning_rate}},
    }
    box = DistillationBox(teacher, student, {}, config, job.device, None, False, 1.0)
    box.teacher_model.eval()
    job.scheduled(box.optimizer)
    passes = job.passes(meter, student)
    while True:
        box.pre_epoch_process(epoch=meter.number)
        for raw in passes:
            with job.autocast():
                loss = box.forward_process(to(job.device, raw), targets=None, supp_dict=None)
            box.post_forward_process(loss=loss)
            meter.loss = loss.detach()


run(train)

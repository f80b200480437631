"""Convolutions in half precision are laid out channels last, which nobody sees but the clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerance import assert_near
from torch import nn

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification
from knowledge_distillation.presets import hinton


def model(seed: int) -> WideResNetForImageClassification:
    torch.manual_seed(seed)
    return WideResNetForImageClassification(WideResNetConfig(depth=10, widen_factor=1, num_labels=3))


def batches(number: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [{"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4) % 3} for _ in range(number)]


def made(student: nn.Module, precision: str, **more) -> KnowledgeDistiller:
    settings = {
        "learning_rate": 0.05,
        "num_train_epochs": 2,
        "mixed_precision": precision,
        "disable_tqdm": True,
        **more,
    }
    return KnowledgeDistiller(model(1), student, hinton(), train_dataloader=batches(3), device="cpu", **settings)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [part.weight for part in module.modules() if isinstance(part, nn.Conv2d)]


def are_channels_last(weights: list[torch.Tensor]) -> set[bool]:
    return {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights if weight.shape[-1] > 1}


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_weights_lie_channels_last_in_half_precision_and_as_before_after_it(precision: str, tmp_path: Path) -> None:
    run = made(model(2), precision)
    run.train_epoch()
    inside = weights_of(run.student) + weights_of(run.teachers[""].model)
    assert are_channels_last(inside) == {precision == "bf16"}
    run.save(tmp_path / "kept")
    run.close()
    assert all(weight.is_contiguous() for weight in inside)
    save_file(run.student.state_dict(), str(tmp_path / "student.safetensors"))  # refuses any other layout
    kept, own = load_file(tmp_path / "kept/student/model.safetensors"), load_file(tmp_path / "student.safetensors")
    assert kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_fused"])
@pytest.mark.parametrize("laid_out_by_its_owner", [False, True])
def test_a_run_goes_on_with_its_optimizer_whatever_the_layout(
    optim: str, laid_out_by_its_owner: bool, tmp_path: Path
) -> None:
    """Fused optimizers take state and weights as they lie in memory: a state read from a file must lie like these."""
    precision = "no" if laid_out_by_its_owner else "bf16"

    def student() -> nn.Module:
        made = model(2)
        return made.to(memory_format=torch.channels_last) if laid_out_by_its_owner else made

    whole = made(student(), precision, optim=optim)
    whole.train()
    first = made(student(), precision, optim=optim)
    first.train_epoch()
    first.save(tmp_path)
    second = made(student(), precision, optim=optim)
    second.load_state(student=tmp_path, projections=tmp_path, optimizer=tmp_path, progress=tmp_path)
    second.train_epoch()
    for one, other in zip(whole.student.parameters(), second.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_of_ones_own_goes_on_after_the_run() -> None:
    """The weights lie contiguous again, and the optimizer's state follows at its next step."""
    students = [model(2), model(2)]
    finals = []
    for student, fused in zip(students, (True, False), strict=True):
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, fused=fused)
        run = made(student, "bf16", optimizer=optimizer)
        run.train_epoch()
        run.close()
        student.train()
        optimizer.zero_grad()
        student(**batches(1)[0]).loss.backward()
        optimizer.step()
        finals.append([p.detach().clone() for p in student.parameters()])
    assert_near(*finals)

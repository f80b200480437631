"""Accumulation is exact: a step on a batch of 32 is a step on four of 8, to rounding. Equal models give zero."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import batches, bert
from families import tiny
from runs import furthest
from tolerance import near, rounding
from torch import Tensor

from knowledge_distillation import KnowledgeDistiller

CONFIG = [
    {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse", "name": "hidden"},
    {"teacher": "layer4.attention_scores", "student": "layer2.attention_scores", "loss": "mse", "name": "attention"},
    {
        "teacher": "output.logits",
        "student": "output.logits",
        "loss": "kl_divergence",
        "args": {"temperature": 2},
        "name": "soft",
    },
    {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5, "name": "hard"},
]
TOLERANCE = {torch.float32: rounding(), torch.float64: 1e-12}


def trained(
    loader: list[dict[str, Tensor]], accumulate: int, dtype: torch.dtype = torch.float64, **settings
) -> tuple[dict[str, Tensor], dict[str, float], int]:
    """Weights of student and projections after one epoch, the mean of every term, and the number of steps."""
    teacher, student = bert(4, 24, 1, dtype), bert(2, 16, 2, dtype)
    distiller = KnowledgeDistiller(
        teacher,
        student,
        CONFIG,
        train_dataloader=loader,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.2),
        gradient_accumulation_steps=accumulate,
        device="cpu",
        mixed_precision="no",
        disable_tqdm=True,
        **{"max_grad_norm": 0.5, **settings},
    )
    values = distiller.train_epoch()
    distiller.close()
    weights = {**student.state_dict(), **distiller.loss_model.state_dict()}
    return {name: weight.clone() for name, weight in weights.items()}, values, distiller.progress.step


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_batches_of_32_are_four_times_8_accumulated(dtype):
    whole, values, steps = trained(batches(96, 32), 1, dtype)
    parts, part_values, part_steps = trained(batches(96, 8), 4, dtype)
    assert steps == part_steps == 3
    assert any(name.startswith("projections.") for name in whole)
    assert furthest(whole, parts) < TOLERANCE[dtype]
    assert part_values == near(values)


def test_the_clipping_of_these_runs_is_at_work():
    clipped, _, _ = trained(batches(32, 8), 4)
    free, _, _ = trained(batches(32, 8), 4, max_grad_norm=0)
    assert furthest(clipped, free) > 1e-3


@pytest.mark.parametrize("left", [5, 8, 21])
def test_an_incomplete_last_window_is_counted_exactly(left):
    whole, values, steps = trained(batches(32 + left, 32), 1)
    parts, part_values, part_steps = trained(batches(32 + left, 8), 4)
    assert steps == part_steps == 2
    assert furthest(whole, parts) < 1e-12
    assert part_values == near(values)


def test_a_step_without_labels_has_a_hard_loss_of_zero():
    weights, values, _ = trained(batches(16, 8)[1:], 1)
    assert values["hard"] == 0 and values["soft"] > 0
    assert all(weight.isfinite().all() for weight in weights.values())


def test_features_of_images_are_counted_without_a_mask():
    """Their length is always the same, so that one batch of 8 is two of 4."""
    config = [
        {"teacher": f"layer3.{output}", "student": f"layer2.{output}", "loss": loss, "name": f"{output}-{loss}"}
        for output, loss in (
            *(("hidden_states", "mse"), ("value", "mse"), ("value", "value_relation")),
            *(("attention", "attention_kl"), ("attention", "mse"), ("attention_scores", "mse")),
        )
    ]
    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        teacher, student = (tiny("vit", 0.0, seed).model.double() for seed in (0, 1))
        distiller = KnowledgeDistiller(
            teacher,
            student,
            config,
            train_dataloader=[{"pixel_values": some} for some in pixels.split(size)],
            optimizer=torch.optim.SGD(student.parameters(), lr=0.2),
            gradient_accumulation_steps=accumulate,
            device="cpu",
            mixed_precision="no",
            disable_tqdm=True,
        )
        values = distiller.train_epoch()
        distiller.close()
        found.append((values, student.state_dict()))
    (values, whole), (part_values, parts) = found
    assert furthest(whole, tiny("vit", 0.0, 1).model.double().state_dict()) > 1e-3
    assert furthest(whole, parts) < rounding()  # attention is in float32
    assert part_values == near(values)


def test_equal_models_give_zero_and_stay_where_they_are():
    teacher = bert(2, 16, 1, torch.float64)
    student = copy.deepcopy(teacher)
    config = [
        {"teacher": "layer{1,2}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
        {"teacher": "layer{1,2}.attention", "student": "layer{1,2}.attention", "loss": "mse"},
        {"teacher": "layer2.attention_scores", "student": "layer2.attention_scores", "loss": "mse"},
        {"teacher": "layer2.hidden_states", "student": "layer2.hidden_states", "loss": "cos"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "mse"},
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
    ]
    distiller = KnowledgeDistiller(
        teacher,
        student,
        config,
        train_dataloader=batches(16, 8),
        optimizer=torch.optim.SGD(student.parameters(), lr=0.2),
        device="cpu",
        mixed_precision="no",
        disable_tqdm=True,
    )
    values = distiller.train_epoch()
    distiller.close()
    assert len(values) == 9 and max(abs(value) for value in values.values()) < 1e-12
    assert furthest(student.state_dict(), teacher.state_dict()) < 1e-12

"""Masks and counts are worked out once for a batch, and not at all where nothing is masked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from runs import HARD, SOFT, bert, distiller, weights
from tolerance import assert_near, near
from torch.utils._python_dispatch import TorchDispatchMode

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

HIDDEN = {"teacher": "layer{1,2,3}.hidden_states", "student": "layer{1,2,3}.hidden_states", "loss": "mse"}
FEATURES = [Feature(f"layer{n}", "hidden_states") for n in (1, 2, 3)]


class Operations(TorchDispatchMode):
    """How often each operation ran, and on what: names of boolean ones apart."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        boolean = any(isinstance(arg, torch.Tensor) and arg.dtype == torch.bool for arg in args)
        made = isinstance(result, torch.Tensor) and result.dtype == torch.bool
        self.counted[f"{function.overloadpacket}{' of a mask' if boolean else ' to a mask' if made else ''}"] += 1
        return result


def operations(inputs: dict[str, torch.Tensor], counts: bool, **entry: Any) -> Counter[str]:
    """Those of the loss of three equally masked entries."""
    model = MultiLayerBasedDistillationLoss([{**HIDDEN, **entry}])
    features = {feature: torch.randn(4, 6, 5) for feature in FEATURES}
    for one in model.config.entries:
        model.bind(one, features, features, "tokens", make_context(inputs))
    context, watch = make_context(inputs), Operations()
    with watch:
        model.terms(model.project(features), features, context, model.counts(context) if counts else None)
    return watch.counted


def inputs_of(mask: bool) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.ones(4, 6, dtype=torch.long)}
    return (
        {**inputs, "attention_mask": torch.tensor([[1] * n + [0] * (6 - n) for n in (3, 6, 2, 5)])} if mask else inputs
    )


@pytest.mark.parametrize("counts", [False, True])
def test_entries_with_one_mask_share_it_and_its_count(counts: bool) -> None:
    seen = operations(inputs_of(mask=True), counts)
    assert seen["aten._to_copy to a mask"] == 1
    assert seen["aten.sum of a mask"] == 1
    assert seen["aten.masked_fill_ of a mask"] == 3 and not seen["aten.where of a mask"]


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("loss", ["mse", "gram"])
def test_a_batch_without_a_mask_is_not_masked(loss: str, counts: bool) -> None:
    seen = operations(inputs_of(mask=False), counts, loss=loss)
    assert seen and not [name for name in seen if name.endswith("mask")]


@pytest.mark.parametrize("size", [1, 2])
def test_no_mask_gives_what_a_mask_of_ones_gives(size: int) -> None:
    """Also where batches of different lengths are averaged together."""
    maps = {"teacher": "layer4.attention", "student": "layer2.attention", "loss": "attention_kl"}
    config = [{**HIDDEN, "student": "layer{1,1,2}.hidden_states"}, maps, *SOFT, *HARD]
    trained = []
    for kept in ((), ("attention_mask",)):
        data = []
        for length in (5, 7, 3, 4):
            inputs = {"input_ids": torch.randint(2, 40, (4, length), generator=torch.Generator().manual_seed(length))}
            ones = {key: torch.ones_like(inputs["input_ids"]) for key in kept}
            data.append({**inputs, **ones, "labels": torch.tensor([0, 1, 1, 0])})
        student = bert(2)
        options = {"gradient_accumulation_steps": size, "max_grad_norm": 0, "optim": "sgd"}
        run = distiller(config, student=student, train_dataloader=data, **options)
        trained.append((run.train(), weights(student)))
    (one, left), (other, right) = trained
    assert one == near(other)
    assert_near(left, right)

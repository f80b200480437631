"""The squared error in one step gives what the loss and the masked mean give, values and gradients alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerance import assert_near

from knowledge_distillation import MultiLayerBasedDistillationLoss
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses.attention import attention_mse
from knowledge_distillation.losses.hidden import hidden_mse
from knowledge_distillation.objective.fused.squares import summed_attention_mse, summed_hidden_mse
from knowledge_distillation.objective.masking import Layout, Masks, row_weights, total, zero_padding

KEEP = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]).bool()
CASES = {
    "tokens": (summed_hidden_mse, hidden_mse, (3, 5, 7), Layout("tokens")),
    "heads": (summed_hidden_mse, hidden_mse, (3, 2, 5, 7), Layout("rows", 2)),
    "attention": (summed_attention_mse, attention_mse, (3, 2, 5, 5), Layout("pairs", 2)),
}


def sides(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, spoilt: bool = True) -> list[torch.Tensor]:
    made = [torch.randn(shape, dtype=dtype) for _ in range(2)]
    rows = KEEP[:, None] if len(shape) == 4 else KEEP
    for side in made if spoilt else ():
        side.masked_fill_(~rows.expand(shape[:-1])[..., None], torch.inf)
    return made


def by_hand(loss: Any, kind: str, layout: Layout, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    masks = Masks(KEEP, KEEP if kind == "attention" else None)
    return total(loss(zero_padding(student, kind, masks), zero_padding(teacher, kind, masks)), layout, masks)


@pytest.mark.parametrize("kind", CASES)
def test_value_and_gradients_of_both_sides(kind: str) -> None:
    fused, loss, shape, layout = CASES[kind]
    masks = Masks(KEEP, KEEP if kind == "attention" else None)
    rows = row_weights(layout, masks, 3, 5, 5, torch.empty(0, dtype=torch.float64))
    found, expected = [], []
    given = sides(shape)
    for made, value in (
        (found, lambda s, t: fused(s, t, rows, masks.keys)),
        (expected, lambda s, t: by_hand(loss, kind, layout, s, t)),
    ):
        student, teacher = (side.clone().requires_grad_() for side in given)
        result = value(student, teacher)
        (3 * result).backward()
        made += [result, student.grad, teacher.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CASES)
def test_without_weights_all_count(kind: str) -> None:
    fused, loss, shape, _ = CASES[kind]
    student, teacher = sides(shape, spoilt=False)
    torch.testing.assert_close(fused(student, teacher, None, None), loss(student, teacher).sum())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_differences_of_low_precision_are_taken_in_float32(low: torch.dtype) -> None:
    student, teacher = (side.to(low).requires_grad_() for side in sides((3, 5, 7), torch.float32))
    rows = KEEP.float()
    value = summed_hidden_mse(student, teacher, rows, None)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == teacher.grad.dtype == low
    expected = by_hand(hidden_mse, "tokens", Layout("tokens"), student.detach().float(), teacher.detach().float())
    assert_near(value.detach(), expected)


def test_gradients_are_those_of_small_steps() -> None:
    student, teacher = (side.requires_grad_() for side in sides((3, 5, 7), spoilt=False))
    rows = KEEP.double() * torch.rand(3, 5, dtype=torch.float64)
    torch.autograd.gradcheck(lambda s, t: summed_hidden_mse(s, t, rows, None), (student, teacher))


def test_tokens_with_a_dimension_after_their_length_are_not_taken_for_heads() -> None:
    """As many streams as tokens would fit the heads' place without an error."""
    config = [{"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}]
    model = MultiLayerBasedDistillationLoss(config)
    entry = model.config.entries[0]
    student, teacher = torch.randn(3, 5, 5, 7), torch.randn(3, 5, 5, 7)
    context = make_context({"input_ids": torch.ones(3, 5, dtype=torch.long), "attention_mask": KEEP.long()})
    sides = {entry.student[0]: student}, {entry.teacher[0]: teacher}
    at_the_probe = model.bind(entry, *sides, "tokens", context)
    value = model.terms(model.project(sides[0]), sides[1], context).loss
    expected = (student - teacher).square().mean((2, 3))[KEEP].mean()
    assert_near(value, expected)
    assert_near(at_the_probe.loss, expected)

"""Every loss, through the loss model, against its slow twin; every gradient against finite differences."""

from __future__ import annotations

import inspect

import pytest
import reference
import torch
from cases import CASES, Batch, Case, each
from hypothesis import given, settings
from hypothesis import strategies as st

# What an argument of a loss may be; arguments not listed here stay at their defaults.
ARGUMENTS = {"temperature": st.floats(0.5, 20.0), "label_smoothing": st.floats(0.0, 0.9)}
ARGUMENTS |= {  # transformers
    **dict.fromkeys(("mean_all", "layer_norm", "debiased", "channel", "learn_weights"), st.booleans()),
    "epsilon": st.floats(1e-12, 1e-3),
    "relation_heads": st.sampled_from([None, 1]),
    "regularisation": st.floats(0.05, 1.0),
    "iterations": st.integers(1, 9),
}
lengths = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def twin_of(case: Case, batch: Batch, **arguments: float) -> float:
    twin = getattr(reference, getattr(case.function, "name_of", case.function.__name__))
    masks = {}
    if case.has_length:
        masks["mask"] = batch.mask.numpy()
    if case.kind == "attention":
        masks["keys"] = batch.mask.numpy()
    target = batch.labels if batch.teacher is None else batch.teacher
    return twin(batch.student.detach().numpy(), target.numpy(), **masks, **arguments)


def drawn(case: Case, data: st.DataObject) -> dict[str, float]:
    names = [name for name in inspect.signature(case.function).parameters if name in ARGUMENTS]
    return {name: data.draw(ARGUMENTS[name], name) for name in names}


@each(CASES)
@settings(deadline=None, derandomize=True, database=None, max_examples=10)
@given(data=st.data())
def test_a_loss_is_its_twin(case, data):
    arguments = drawn(case, data)
    sizes = {"width": data.draw(st.integers(2, 6), "width"), "heads": data.draw(st.integers(1, 3), "heads")}
    batch = case.batch(data.draw(lengths, "lengths"), data.draw(st.integers(0, 99), "seed"), **sizes)
    if case.hard and not case.regression:
        batch.labels = batch.labels.clamp(max=sizes["width"] - 1)
        batch.labels.flatten()[::3] = reference.IGNORED_LABEL
    model = case.bind(batch, args=arguments)
    assert batch.terms(model).loss.item() == pytest.approx(twin_of(case, batch, **arguments), rel=1e-9, abs=1e-12)


@each(CASES)
def test_a_gradient_is_the_slope(case):
    batch = case.batch([3, 1, 2], seed=1)
    model = case.bind(batch)

    def value(student: torch.Tensor) -> torch.Tensor:
        return Batch(student, batch.teacher, batch.mask, batch.labels).terms(model).loss

    assert torch.autograd.gradcheck(value, batch.student.clone().requires_grad_())

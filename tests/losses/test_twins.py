"""Every loss, through the loss model, against its slow twin; every gradient against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from cases import CASES, NEEDED, TEACHER_ALONE, Batch, Case, each
from hypothesis import given, settings
from hypothesis import strategies as st

# What an argument of a loss may be; arguments not listed here stay at their defaults.
ARGUMENTS = {
    "temperature": st.floats(0.5, 20.0),
    "label_smoothing": st.floats(0.0, 0.9),
    # logits
    "scale_by_temperature": st.booleans(),
    "sample_temperature": st.sampled_from([None, "flsw", "cwsm"]),
    "temperature_spread": st.floats(0.0, 3.0),
    "temperature_power": st.floats(0.0, 3.0),
    "probability_shift": st.booleans(),
    "centred": st.booleans(),
    "alpha": st.floats(0.0, 3.0),
    "beta": st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    "gamma": st.floats(0.0, 3.0),
    "skew": st.sampled_from([0.0, 0.1, 0.6]),
    "unbiased": st.booleans(),
    "boxes": st.integers(1, 5),
    "box_weight": st.floats(0.0, 3.0),
    "class_weight": st.floats(0.0, 3.0),
    "objectness_activation": st.sampled_from(["sigmoid", "none"]),
    "class_activation": st.sampled_from(["softmax", "sigmoid", "none"]),
    "reversal": st.floats(0.0, 2.0),
}
ARGUMENTS |= {  # transformers
    **dict.fromkeys(("mean_all", "layer_norm", "debiased", "channel", "learn_weights"), st.booleans()),
    "epsilon": st.floats(1e-12, 1e-3),
    "relation_heads": st.sampled_from([None, 1]),
    "regularisation": st.floats(0.05, 1.0),
    "iterations": st.integers(1, 9),
}
SAMPLES = {"pooling": st.sampled_from(["mean", "first"])}
ARGUMENTS_OF = {  # of one loss alone, or where a name means something else
    "similarity_preserving": SAMPLES,
    "rkd_distance": {**SAMPLES, "average": st.sampled_from(["all", "pairs"])},
    "rkd_angle": {**SAMPLES, "average": st.sampled_from(["all", "triples"])},
    "correlation_congruence": {
        **SAMPLES,
        "kernel": st.sampled_from(["taylor", "rbf", "bilinear"]),
        "gamma": st.floats(0.1, 2.0),
        "order": st.integers(1, 4),
    },
    "pkt": {
        **SAMPLES,
        "average": st.sampled_from(["all", "off_diagonal_sum"]),
        "epsilon": st.sampled_from([1e-7, 1e-3]),
    },
    "soft_contrastive": {
        **SAMPLES,
        "temperature": st.floats(0.05, 2.0),
        "teacher_temperature": st.sampled_from([None, 0.1, 1.0]),
    },
    "fitnet_hint": {"half_sum": st.booleans()},
    "attention_transfer": {"norm": st.booleans()},
    "paraphraser": {"rate": st.floats(0.2, 1.5)},
    "factor_transfer": {
        "norm": st.booleans(),
        "paraphraser_weight": st.floats(0.1, 3.0),
        "rate": st.floats(0.2, 1.5),
    },
    "activation_boundary": {"margin": st.floats(0.0, 2.0)},
    "margin_relu": {"margin": st.floats(-2.0, 0.0)},
    "fsp": {"squared_frobenius": st.booleans()},
    "variational_information": {"regressor": st.booleans(), "variance": st.floats(0.5, 9.0)},
    "review_kd": {"width": st.integers(1, 4)},
}
REVERSED = ("adversarial",)  # gradients that are not the slope: they are turned round on their way to the student
lengths = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def twin_of(case: Case, batch: Batch, state: dict[str, torch.Tensor] | None = None, **arguments: float) -> float:
    twin = getattr(reference, getattr(case.function, "name_of", case.function.__name__))
    arguments = {**NEEDED.get(case.name, {}), **arguments}
    arguments = {**arguments, **{name: tensor.numpy() for name, tensor in (state or {}).items()}}
    masks = {}
    if case.has_length:
        masks["mask"] = batch.mask.numpy()
    if case.kind == "attention":
        masks["keys"] = batch.mask.numpy()
    if "query" in case.parameters:
        masks["query"] = batch.context["query"].numpy()
    if not case.hard and batch.labels is not None:
        masks["labels"] = batch.labels.numpy()
    student, teacher = (tuple(f.detach().numpy() for f in side.values()) for side in batch.features)
    if batch.numbers == (1, 1):
        student, teacher = student[0], batch.labels.numpy() if case.hard else teacher[0]
    return twin(student, teacher, **masks, **arguments)


def drawn(case: Case, data: st.DataObject) -> dict[str, float]:
    ranges = {**ARGUMENTS, **ARGUMENTS_OF.get(case.name, {})}
    return {name: data.draw(ranges[name], name) for name in case.parameters if name in ranges}


@each(CASES)
@settings(deadline=None, derandomize=True, database=None, max_examples=10)
@given(data=st.data())
def test_a_loss_is_its_twin(case, data):
    arguments = drawn(case, data)
    sizes = {"width": data.draw(st.integers(2, 6), "width"), "heads": data.draw(st.integers(1, 3), "heads")}
    batch = case.batch(data.draw(lengths, "lengths"), data.draw(st.integers(0, 99), "seed"), **sizes)
    if batch.labels is not None and not case.regression:
        batch.labels.flatten()[::3] = reference.IGNORED_LABEL
    model = case.bind(batch, args=arguments, **({} if case.hard or case.kind != "tokens" else {"mask": "attention"}))
    state = model.losses["it"].state_dict() if isinstance(case.function, type) else {}
    expected = twin_of(case, batch, state, **arguments)
    assert batch.terms(model).loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@each([case for case in CASES if case.name not in (*REVERSED, *TEACHER_ALONE)])
def test_a_gradient_is_the_slope(case):
    batch = case.batch([3, 1, 2], seed=1)
    model = case.bind(batch)

    def value(student: torch.Tensor) -> torch.Tensor:
        return replace(batch, student=student).terms(model).loss

    assert torch.autograd.gradcheck(value, batch.student.clone().requires_grad_())

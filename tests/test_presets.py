"""Methods by name: each is a plain list that binds, and says what its paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import tiny
from runs import batches, bert, distiller

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss, parse_config
from knowledge_distillation.presets import METHODS, hinton, layers


def names(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    parsed = parse_config(entries).check().entries
    return [(str(e.teacher[0]) if e.teacher else "labels", str(e.student[0])) for e in parsed]


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 4.0), (1.0, 3.0), (0.0, 2.0)])
def test_hinton_is_soft_targets_and_labels(alpha: float, temperature: float) -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    soft = F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction="batchmean"
    )
    wanted = alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)
    loss = MultiLayerBasedDistillationLoss(hinton(alpha, temperature))
    found = loss({"logits": teacher}, {"logits": student}, None, {"labels": labels})
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_hinton_on_one_real_output_is_squared_errors() -> None:
    student, teacher, labels = torch.randn(5, 1), torch.randn(5, 1), torch.rand(5)
    loss = MultiLayerBasedDistillationLoss(hinton(0.75, regression=True))
    found = loss({"logits": teacher}, {"logits": student}, None, {"labels": labels})
    wanted = 0.75 * F.mse_loss(student, teacher) + 0.25 * F.mse_loss(student[:, 0], labels)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    entries = layers(bert(num_labels=1), bert(2, num_labels=1))
    assert [entry["loss"] for entry in entries[-2:]] == ["logits_mse", "mse"]


def test_hinton_leaves_out_what_has_no_weight() -> None:
    assert [entry["loss"] for entry in hinton(1.0)] == ["kl_divergence"]  # no labels are needed
    assert [entry["loss"] for entry in hinton(0.0)] == ["cross_entropy"] and not parse_config(hinton(0)).needs_teacher


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, r"alpha is the weight of the soft part, in \[0, 1\]; found 1.5"),
        ({"alpha": -0.1}, "found -0.1"),
        ({"temperature": 0.0}, "temperature is above 0; found 0.0"),
    ],
)
def test_arguments_out_of_range(given: dict[str, float], message: str) -> None:
    for method in (hinton, lambda **args: layers(bert(), bert(2), **args)):
        with pytest.raises(ConfigError, match=message):
            method(**given)


@pytest.mark.parametrize(
    ("teacher", "student", "chosen"),
    [(12, 3, [4, 8, 12]), (12, 6, [2, 4, 6, 8, 10, 12]), (6, 6, [1, 2, 3, 4, 5, 6]), (7, 2, [4, 7]), (5, 1, [5])],
)
def test_layers_learn_from_the_same_relative_depth(teacher: int, student: int, chosen: list[int]) -> None:
    found = names(layers(bert(teacher, width=8), bert(student, width=8)))
    numbers = range(1, student + 1)
    assert found == [
        ("embedding_layer.embedding", "embedding_layer.embedding"),
        *[(f"layer{t}.hidden_states", f"layer{s}.hidden_states") for t, s in zip(chosen, numbers, strict=True)],
        *[(f"layer{t}.attention", f"layer{s}.attention") for t, s in zip(chosen, numbers, strict=True)],
        ("output.logits", "output.logits"),
        ("labels", "output.logits"),
    ]


def test_maps_are_compared_where_there_are_as_many_heads() -> None:
    assert any(".attention" in student for _, student in names(layers(bert(), bert(2))))
    assert not any(".attention" in student for _, student in names(layers(bert(heads=4), bert(2, heads=2))))


def test_configs_do_as_well_as_models() -> None:
    teacher, student = bert(), bert(2)
    assert layers(teacher.config, student.config, 0.3, 4) == layers(teacher, student, 0.3, 4)


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least as deep as the student; found depths \[2, 4\]"):
        layers(bert(2), bert(4))
    with pytest.raises(ConfigError, match=r"found depths \[None, None\]"):
        layers(tiny("resnet").model, tiny("resnet").model)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    teacher, student = bert(width=24), bert(2)
    entries = METHODS[method](teacher, student) if method == "layers" else METHODS[method]()
    run = distiller(entries, teacher, student, train_dataloader=batches(2))
    means = run.train_epoch()
    run.close()
    assert len(means) == 1 + len(parse_config(entries).entries) and all(value > 0 for value in means.values())

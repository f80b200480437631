"""How a term is averaged: over tokens, over sequences, over samples, or not at all. Each by hand, and accumulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import batches, bert
from runs import distiller
from tolerance import near
from torch import Tensor

from knowledge_distillation import parse_config
from knowledge_distillation.config.entry import REDUCTIONS

FEATURES = {"tokens": "hidden_states", "pairs": "attention", "rows": "query"}


def entry(reduction: str, output: str) -> dict[str, Any]:
    sides = {"teacher": f"layer4.{output}", "student": f"layer2.{output}"}
    return {**sides, "loss": "mse", "reduction": reduction, "name": "it", "projection": "none"}


def models() -> tuple[Any, Any]:
    return bert(4, 16, 1, torch.float64), bert(2, 16, 2, torch.float64)


def measured(reduction: str, output: str, data: Any, **options: Any) -> tuple[float, dict[str, Tensor]]:
    teacher, student = models()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    made = distiller(
        [entry(reduction, output)],
        teacher,
        student,
        train_dataloader=data,
        optimizer=optimizer,
        max_grad_norm=0,
        **options,
    )
    value = made.train_epoch()["it"]
    made.close()
    return value, {name: tensor.clone() for name, tensor in student.state_dict().items()}


def samples(batch: dict[str, Tensor], output: str) -> list[Tensor]:
    """Of each sample all values that count: squared differences, without its padding."""
    teacher, student = models()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    flags = {"output_hidden_states": True, "output_attentions": True}
    sides = []
    for model, layer in ((student, 2), (teacher, 4)):
        model.eval().set_attn_implementation("eager")
        with torch.no_grad():
            taken = model(**inputs, **flags)
            if output == "query":
                self_attention = model.bert.encoder.layer[layer - 1].attention.self
                query = self_attention.query(taken.hidden_states[layer - 1])
                sides.append(query.unflatten(-1, (2, -1)).transpose(1, 2))
            else:
                sides.append(taken.hidden_states[layer] if output == "hidden_states" else taken.attentions[layer - 1])
    squares = (sides[0] - sides[1]).square()
    values = []
    for row, length in zip(squares, batch["attention_mask"].sum(1).tolist(), strict=True):
        if output == "hidden_states":
            values.append(row[:length].mean(-1).flatten())
        elif output == "query":
            values.append(row[:, :length].mean(-1).flatten())
        else:
            values.append(row[:, :length, :length].flatten())
    return values


@pytest.mark.parametrize("output", FEATURES.values(), ids=FEATURES)
def test_a_reduction_is_what_its_name_says(output):
    (batch,) = batches(6, 6)
    each = samples(batch, output)
    wanted = {
        "mean": torch.cat(each).mean(),
        "sequence_mean": torch.stack([values.mean() for values in each]).mean(),
        "batch_mean": torch.cat(each).sum() / 6,
        "sum": torch.cat(each).sum(),
    }
    assert wanted.keys() == set(REDUCTIONS)
    found = {reduction: measured(reduction, output, [batch])[0] for reduction in wanted}
    assert found == near({name: value.item() for name, value in wanted.items()})


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("output", ["hidden_states", "attention"])
def test_four_accumulated_batches_are_one(reduction, output):
    whole, moved = measured(reduction, output, batches(32, 32))
    parts, moved_too = measured(reduction, output, batches(32, 8), gradient_accumulation_steps=4)
    assert parts == near(whole)
    assert max(float((moved[name] - moved_too[name]).abs().max()) for name in moved) < 1e-12


def test_samples_without_a_label_do_not_count_in_a_mean_over_samples():
    (batch,) = batches(6, 6)
    values = {}
    for reduction in REDUCTIONS:
        hard = {"student": "output.logits", "loss": "cross_entropy", "reduction": reduction, "name": "it"}
        made = distiller([hard], None, models()[1], train_dataloader=[batch])
        values[reduction] = made.train_epoch()["it"]
        made.close()
    labelled = int((batch["labels"] != -100).sum())
    assert 0 < labelled < 6
    assert values["sequence_mean"] == values["batch_mean"] == values["mean"]
    assert values["sum"] == near(labelled * values["mean"])


def test_the_reduction_of_a_loss_that_averages_by_itself_changes_nothing():
    def own(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1)[mask].mean()

    (batch,) = batches(6, 6)
    values = []
    for reduction in REDUCTIONS:
        made = distiller([{**entry(reduction, "hidden_states"), "loss": own}], *models(), train_dataloader=[batch])
        values.append(made.train_epoch()["it"])
        made.close()
    assert len(set(values)) == 1


def test_an_unknown_reduction():
    ((_, text),) = parse_config([entry("batchmean", "hidden_states")]).problems
    assert text == (
        "reduction is one of mean, sequence_mean, batch_mean, sum; found 'batchmean'. Nearest: batch_mean."
    )

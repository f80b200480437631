"""Terms on one scale: factors follow the running size of each term, or of its gradient. And reductions, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import HARD, SOFT, batches, bert, distiller, weights
from watching import Log

from knowledge_distillation import ConfigError
from knowledge_distillation.config.parse import parse_config
from knowledge_distillation.objective.balance import Balance, gradient_norms

STATES = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": "states"}
CONFIG = [{**STATES, "weight": 2}, {**SOFT[0], "name": "soft"}, {**HARD[0], "name": "hard", "weight": 0.5}]
WEIGHTS = {"states": 2.0, "soft": 1.0, "hard": 0.5}


def logged(config: Any = CONFIG, **options: Any) -> list[dict[str, float]]:
    log = Log()
    options = {"student": bert(2, seed=3), "callbacks": [log], "num_train_epochs": 2, **options}
    distiller(config, bert(2, seed=1), **options).train()
    return log.lines


def by_hand(lines: list[dict[str, float]], names: list[str], reference: str) -> list[dict[str, float]]:
    """The factors of each step: before it, running means of 0.9 of what was and 0.1 of the step's."""
    sizes: dict[str, float] = {}
    factors = []
    for line in lines:
        factors.append({name: within(sizes[reference] / sizes[name]) if sizes else 1.0 for name in names})
        sizes = {name: 0.9 * sizes[name] + 0.1 * line[name] if sizes else line[name] for name in names}
    return factors


def within(factor: float) -> float:
    """A term near 0 neither takes over nor puts out the others."""
    return min(max(factor, 1e-3), 1e3)


# --- by the size of terms ----------------------------------------------------------------------------------------


def test_relative_scale_brings_every_term_to_the_running_size_of_the_first_on_logits():
    lines = logged(balance="relative_scale")
    assert len(lines) == 6
    for line, factors in zip(lines, by_hand(lines, list(WEIGHTS), "soft"), strict=True):
        assert {name: line[f"balance_{name}"] for name in WEIGHTS} == pytest.approx(factors, rel=1e-4)
        assert line["loss"] == pytest.approx(sum(WEIGHTS[n] * factors[n] * line[n] for n in WEIGHTS), rel=1e-4)
        assert line["balance_soft"] == pytest.approx(1)
    assert lines[0]["balance_states"] == 1 != lines[1]["balance_states"]


def test_without_logits_the_first_entry_is_the_reference():
    config = [STATES, {**STATES, "student": "layer2.hidden_states", "name": "upper"}]
    lines = logged(config, balance="relative_scale")
    assert all(line["balance_states"] == pytest.approx(1) for line in lines)
    assert lines[-1]["balance_upper"] == pytest.approx(
        by_hand(lines, ["states", "upper"], "states")[-1]["upper"], rel=1e-4
    )


def test_a_stage_without_logits_is_balanced_too_and_shows_its_own_factors():
    config = [
        {**STATES, "stage": "a"},
        {**STATES, "student": "layer2.hidden_states", "name": "upper", "stage": "a"},
        {**SOFT[0], "name": "soft", "stage": "b"},
    ]
    lines = logged(config, balance="relative_scale", num_train_epochs=1)
    assert lines[2]["balance_upper"] != 1 == pytest.approx(lines[2]["balance_states"])
    assert "balance_soft" not in lines[2] and set(lines[3]) == {"loss", "soft", "balance_soft", "learning_rate"}


def test_with_accumulation_the_size_is_that_of_the_whole_step():
    whole = logged(balance="relative_scale", train_dataloader=batches(2, size=8), max_grad_norm=0)
    lines = logged(
        balance="relative_scale", train_dataloader=batches(4), gradient_accumulation_steps=2, max_grad_norm=0
    )
    assert len(lines) == len(whole) == 4
    for one, other in zip(lines, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-2)


def test_without_balance_nothing_is_added():
    assert not any(name.startswith("balance") for line in logged() for name in line)


def test_an_entry_that_is_not_measured_keeps_its_factor_and_one_of_size_zero_has_none():
    balance = Balance(
        parse_config([{**SOFT[0], "name": "a"}, {**STATES, "name": "b"}, {**STATES, "name": "c"}]).entries
    )
    tensor = torch.tensor
    balance.update({"a": tensor(4.0), "b": tensor(2.0), "c": tensor(0.0)})
    assert balance.factors.tolist() == [1, 2, 1]
    balance.update({"a": tensor(4.0)})
    assert balance.factors.tolist() == [1, 2, 1]
    balance.update({"b": tensor(4.0)})  # the reference is off: the next one is it
    assert balance.sizes.tolist() == pytest.approx([4, 2.2, 0])
    assert balance.factors.tolist() == pytest.approx([2.2 / 4, 1, 1])


# --- by the size of gradients ------------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_each_term_alone():
    x, y = (torch.tensor(values, requires_grad=True) for values in ([3.0, 4.0], [1.0, 2.0]))
    terms = {"both": x.square().sum() / 2 + 2 * y.sum(), "one": x[0] * 2, "none": torch.tensor(1.0)}
    norms = gradient_norms(terms, [x, y])
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx({"both": 33**0.5, "one": 2.0})
    sum(terms.values()).backward()  # the graph is still there
    assert x.grad is not None


def test_gradient_norm_makes_the_gradients_of_all_terms_equally_long():
    teacher, student, batch = bert(2, seed=1).eval(), bert(2, seed=3), batches(1)[0]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    given = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        target = teacher(**inputs, output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    terms = {
        "states": (given.hidden_states[1] - target.hidden_states[2]).square().mean(-1)[mask].mean(),
        "hard": torch.nn.functional.cross_entropy(given.logits, batch["labels"]),
    }
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(student.parameters()), retain_graph=True, allow_unused=True)
        norms[name] = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
    config = [{**STATES, "weight": 2}, {**HARD[0], "name": "hard"}]
    options = {"student": student, "train_dataloader": [batch], "num_train_epochs": 5, "balance_steps": 2}
    lines = logged(config, balance="gradient_norm", **options)
    assert [line["balance_states"] for line in lines[:2]] == pytest.approx(
        [1, norms["hard"] / norms["states"]], rel=1e-4
    )
    assert lines[1]["loss"] == pytest.approx(2 * lines[1]["balance_states"] * lines[1]["states"] + lines[1]["hard"])
    measured = [line["balance_states"] for line in lines]
    assert measured[1] == measured[2] != measured[3] == measured[4]  # every second step, from the first on
    assert all(line["balance_hard"] == 1 for line in lines)


def test_each_stage_measures_gradients_at_its_first_step():
    both = [{**HARD[0], "name": "hard"}, STATES]
    config = [{**entry, "stage": s, "name": f"{entry['name']}_{s}"} for s in ("a", "b") for entry in both]
    lines = logged(config, balance="gradient_norm", num_train_epochs=1)
    assert [line.get("balance_states_a", line.get("balance_states_b")) == 1 for line in lines] == [
        True,
        False,
        False,
    ] * 2


def test_measuring_gradients_changes_no_step_but_the_factors():
    """With one entry all factors are 1: the run is the one without balance."""
    students = []
    for balance in ("none", "gradient_norm"):
        student = bert(2, seed=3)
        logged([SOFT[0]], student=student, balance=balance, balance_steps=1)
        students.append(weights(student))
    assert all(torch.equal(one, other) for one, other in zip(students[0].values(), students[1].values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"balance": "gradnorm"}, "balance is one of none, relative_scale, gradient_norm; found 'gradnorm'."),
        ({"balance": "gradnorm"}, "Nearest: gradient_norm."),
        ({"balance": True}, "balance is one of none, relative_scale, gradient_norm; found True."),
        ({"balance_steps": 0}, "balance_steps is a whole number of 1 or more; found 0"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ConfigError) as caught:
        distiller(**settings)
    assert said in str(caught.value)

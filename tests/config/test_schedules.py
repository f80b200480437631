"""Schedules: a weight or an argument of a loss follows the progress of the run, or of its stage."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller
from tolerance import near
from torch import Tensor
from watching import Log

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss, parse_config
from knowledge_distillation.config.schedules import Schedule, described, parse_schedule


def course(schedule: Any, own: Any = 4.0, places: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> list[float]:
    parsed = parse_schedule(schedule, own)
    return [parsed(place) for place in places]


# --- pure functions of progress ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear", [0, 1, 2, 3, 4]),
        ({"type": "linear", "start": 2}, [2, 2.5, 3, 3.5, 4]),
        ({"type": "linear", "start": 8, "end": 0}, [8, 6, 4, 2, 0]),
        ({"type": "linear", "begin": 0.25, "finish": 0.75}, [0, 0, 2, 4, 4]),
        ("cosine", [0, 4 * (1 - math.sqrt(0.5)) / 2, 2, 4 * (1 + math.sqrt(0.5)) / 2, 4]),
        ({"type": "cosine", "start": 1, "end": 0, "finish": 0.5}, [1, 0.5, 0, 0, 0]),
        ("warmup", [0, 4, 4, 4, 4]),
        ({"type": "warmup", "fraction": 0.5}, [0, 2, 4, 4, 4]),
        ({"type": "step", "values": [1, 0], "at": [0.5]}, [1, 1, 0, 0, 0]),
        ({"type": "step", "values": [1, 2, 3], "at": [0.25, 0.75]}, [1, 2, 2, 3, 3]),
        ({"type": "step", "values": [7], "at": []}, [7, 7, 7, 7, 7]),
    ],
)
def test_a_course(schedule, values):
    assert course(schedule) == pytest.approx(values)


def test_warmup_takes_a_tenth_unless_told_otherwise():
    assert course("warmup", 2.0, (0.0, 0.05, 0.1, 0.5)) == pytest.approx([0, 1, 2, 2])


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ("linear", "linear(start=0.0, end=4.0, begin=0.0, finish=1.0)"),
        ("warmup", "warmup(end=4.0, fraction=0.1)"),
        ({"type": "step", "values": [1, 0], "at": [0.5]}, "step(values=(1.0, 0.0), at=(0.5,))"),
    ],
)
def test_one_line_for_a_plan(schedule, text):
    assert described(parse_schedule(schedule, 4.0)) == text


def test_an_entry_holds_the_course_of_its_weight_and_of_arguments():
    schedule = {"weight": "warmup", "temperature": {"type": "linear", "start": 8}}
    item = {**SOFT[0], "weight": 0.5, "args": {"temperature": 2}, "schedule": schedule}
    (entry,) = parse_config([item]).check().entries
    assert entry.schedule == {
        "weight": Schedule("warmup", end=0.5),
        "temperature": Schedule("linear", start=8.0, end=2.0),
    }


# --- in a run ----------------------------------------------------------------------------------------------------


def logged(config: Any, **options: Any) -> list[dict[str, float]]:
    log = Log()
    distiller(config, callbacks=[log], **options).train()
    return log.lines


def test_a_weight_follows_its_course_step_by_step():
    config = [{**SOFT[0], "name": "soft", "weight": 3, "schedule": {"weight": "linear"}}, {**HARD[0], "name": "hard"}]
    models = {"teacher": bert(initializer_range=0.5), "student": bert(2, seed=1, initializer_range=0.5)}
    lines = logged(config, num_train_epochs=2, **models)  # far apart: a loss of nearly 0 would be all rounding
    weights = [(line["loss"] - line["hard"]) / line["soft"] for line in lines if "soft" in line]
    assert len(lines) == 6 and "soft" not in lines[0] and lines[0]["loss"] == lines[0]["hard"]
    assert weights == near([3 * step / 6 for step in range(1, 6)])


def test_an_argument_follows_its_course_step_by_step():
    seen = []

    def own(student: Tensor, teacher: Tensor, sharpness: float = 1.0) -> Tensor:
        seen.append(sharpness)
        return (student - teacher).square().mean(-1) * sharpness

    schedule = {"sharpness": {"type": "linear", "start": 1, "end": 5}}
    config = [{**SOFT[0], "loss": own, "schedule": schedule}]
    logged(config, num_train_epochs=4, train_dataloader=batches(2), gradient_accumulation_steps=2)
    assert seen[1:] == [1, 1, 2, 2, 3, 3, 4, 4]  # the first is the probe's, with the entry's own value


def test_the_temperature_of_a_named_loss_follows_its_course():
    schedule = {"temperature": {"type": "step", "values": [1, 4], "at": [0.5]}}
    config = [{**SOFT[0], "name": "soft", "schedule": schedule}]
    batch = batches(1)
    still = {"learning_rate": 0.0, "train_dataloader": batch, "num_train_epochs": 2}
    scheduled = [line["soft"] for line in logged(config, **still)]
    plain = [logged([{**SOFT[0], "name": "soft", "args": {"temperature": t}}], **still)[0]["soft"] for t in (1, 4)]
    assert scheduled == near(plain) and plain[0] != pytest.approx(plain[1], rel=1e-3)


def test_an_entry_that_is_off_computes_nothing_and_is_not_logged(tmp_path):
    calls, projected = [], []

    def own(student: Tensor, teacher: Tensor) -> Tensor:
        calls.append(1)
        return (student - teacher).square().mean(-1)

    off = {"type": "step", "values": [1, 0, 1], "at": [0.25, 0.75]}
    config = [{**HIDDEN[0], "loss": own, "name": "own", "projection": "linear", "schedule": {"weight": off}}, *HARD]
    run = distiller(config, train_dataloader=batches(4), output_dir=tmp_path)
    run.plan()
    (projection,) = run.loss_model.projections.values()
    projection.register_forward_hook(lambda *_: projected.append(1))
    calls.clear()
    run.train()
    assert len(calls) == 2 and len(projected) == 2
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert ["own" in line for line in lines] == [True, False, False, True]


def test_means_over_steps_are_over_those_an_entry_was_on():
    off = {"type": "step", "values": [1, 0], "at": [0.5]}
    config = [{**SOFT[0], "name": "soft", "schedule": {"weight": off}}, {**HARD[0], "name": "hard"}]
    single = logged(config, train_dataloader=batches(4))
    (line,) = logged(config, train_dataloader=batches(4), logging_steps=4)
    assert line["soft"] == pytest.approx((single[0]["soft"] + single[1]["soft"]) / 2)
    assert line["hard"] == pytest.approx(sum(one["hard"] for one in single) / 4)


@pytest.mark.parametrize("balance", ["none", "relative_scale", "gradient_norm"])
def test_where_every_entry_is_off_the_loss_is_zero(balance):
    course = {"type": "step", "values": [0, 1], "at": [0.5]}
    lines = logged([{**SOFT[0], "name": "soft", "schedule": {"weight": course}}], balance=balance)
    assert [line["loss"] == 0 for line in lines] == ["soft" not in line for line in lines] == [True, True, False]


def test_a_weight_of_zero_without_a_schedule_is_measured_all_the_same():
    (line, *_) = logged([{**SOFT[0], "name": "soft", "weight": 0}, {**HARD[0], "name": "hard"}])
    assert line["soft"] > 0 and line["loss"] == line["hard"]


def test_progress_is_that_of_the_stage():
    seen = []

    def own(student: Tensor, teacher: Tensor, size: float) -> Tensor:
        seen.append(size)
        return (student - teacher).square().mean(-1)

    scheduled = {**SOFT[0], "loss": own, "args": {"size": 6}, "schedule": {"size": "linear"}}
    config = [{**scheduled, "stage": "a", "name": "one"}, {**scheduled, "stage": "b", "name": "two"}]
    run = distiller(config, stages=[{"name": "a", "max_steps": 2}, {"name": "b"}])
    run.plan()
    seen.clear()
    run.train()
    assert [value for value in seen if value != 6] == [0, 3, 0, 2, 4]


def test_in_a_loop_of_ones_own_progress_is_an_argument():
    config = [{**SOFT[0], "weight": 2, "schedule": {"weight": "linear"}}]
    loss_model, batch = MultiLayerBasedDistillationLoss(config), batches(1)[0]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    teacher, student = bert(2)(**inputs), bert(1, seed=1)(**inputs)
    values = []
    for progress in (0.0, 0.5, 1.0):
        values.append(loss_model(teacher, student, inputs, batch, progress=progress).item())
    assert values == pytest.approx([0, values[2] / 2, values[2]]) and values[2] > 0
    with pytest.raises(ConfigError, match=r"progress is an argument of the call: loss_model\(..., progress=0.5\)"):
        loss_model.progress = 0.5
    assert not hasattr(loss_model, "progress")


def test_the_plan_shows_courses():
    schedule = {"weight": "warmup", "temperature": {"type": "linear", "start": 4, "end": 1}}
    run = distiller([{**SOFT[0], "schedule": schedule}])
    plan = str(run.plan())
    run.close()
    assert "warmup(end=1.0, fraction=0.1)" in plan
    assert "kl_divergence(temperature=linear(start=4.0, end=1.0, begin=0.0, finish=1.0))" in plan


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("linear", "schedule is a mapping of weight, or of an argument of the loss; found 'linear'"),
        ({"weight": "lineer"}, "schedule of weight: type is one of linear, cosine, warmup, step; found 'lineer'."),
        ({"weight": "lineer"}, "Nearest: linear."),
        ({"weight": 0.5}, "schedule of weight: type is one of linear, cosine, warmup, step; found 0.5."),
        ({"weight": {"start": 1}}, "schedule of weight: type is one of linear, cosine, warmup, step; found None."),
        ({"weight": {"type": "linear", "finsh": 1}}, "linear has no key 'finsh'. Nearest: finish. Keys: start, end,"),
        ({"weight": {"type": "warmup", "end": 1}}, "schedule of weight: warmup has no key 'end'."),
        ({"weight": {"type": "linear", "end": "high"}}, "schedule of weight: end is a number; found 'high'"),
        ({"weight": {"type": "linear", "end": True}}, "schedule of weight: end is a number; found True"),
        ({"weight": {"type": "linear", "end": math.inf}}, "schedule of weight: end is a number; found inf"),
        ({"weight": {"type": "step", "values": 1, "at": []}}, "values is a list of numbers; found 1"),
        ({"weight": {"type": "step", "values": [1]}}, "step needs values and at: [1.0, 0.0] and [0.5] hold 1.0 up to"),
        ({"weight": {"type": "step", "values": [1], "at": [0.5]}}, "step has one value more than places, which rise"),
        ({"weight": {"type": "step", "values": [1, 2, 3], "at": [0.5, 0.2]}}, "more than places, which rise"),
        ({"weight": {"type": "linear", "begin": -1}}, "begin is progress in [0, 1]; found -1"),
        ({"weight": {"type": "step", "values": [1, 2], "at": [3]}}, "at is a list of places in [0, 1]; found [3]"),
        ({"weight": {"type": "linear", "begin": 0.5, "finish": 0.5}}, "it takes some time from begin to finish"),
        ({"weight": {"type": "warmup", "fraction": 0}}, "it takes some time from begin to finish"),
        ({"weight": {"type": "linear", "start": -1}}, "schedule of weight: a weight is 0 or more; found {'type':"),
        ({"weight": {"type": "step", "values": [1, -1], "at": [0.5]}}, "a weight is 0 or more"),
        (
            {"temperature": "linear"},
            "schedule of temperature: linear ends at the entry's own value, and args have none",
        ),
    ],
)
def test_wrong_schedules(schedule, said):
    ((index, text),) = parse_config([{**SOFT[0], "schedule": schedule}]).problems
    assert index == 0 and said in text


def wrong(config: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        distiller(config, **options).train()
    return str(caught.value)


def own_loss(student: Tensor, teacher: Tensor, size: float = 1.0) -> Tensor:
    return (student - teacher).square().mean(-1) * size


def test_what_a_loss_does_not_take_cannot_be_scheduled():
    one = {"type": "linear", "start": 1, "end": 2}
    said = "[0] schedule of temprature: loss kl_divergence takes no such argument at each step. Nearest: temperature."
    assert said in wrong([{**SOFT[0], "schedule": {"temprature": one}}])
    said = "[0] schedule of sizes: loss own_loss takes no such argument at each step. Nearest: size."
    assert said in wrong([{**SOFT[0], "loss": own_loss, "schedule": {"sizes": one}}])


def test_a_temperature_stays_above_zero():
    said = "[0] loss kl_divergence: temperature is above 0; its schedule goes down to 0"
    assert said in wrong([{**SOFT[0], "args": {"temperature": 2}, "schedule": {"temperature": "linear"}}])


def test_a_schedule_needs_to_know_how_long_the_run_is():
    config = [{**SOFT[0], "schedule": {"weight": "linear"}}]
    said = "a schedule follows the progress of the run, and the data has no length: set max_steps"
    assert wrong(config, train_dataloader=iter(batches(2))) == said
    log = Log()
    distiller(config, train_dataloader=iter(batches(3)), max_steps=2, callbacks=[log]).train()
    assert len(log.lines) == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "js_divergence", "schedule": {"beta": {"type": "linear", "start": 0, "end": 2}}}, "found 2.0"),
        ({"loss": "pkt", "schedule": {"pooling": {"type": "linear", "end": 1}}}, "takes 'mean' there"),
        ({"loss": "pkd", "schedule": {"mask": {"type": "linear", "end": 1}}}, "takes no such argument"),
        ({"loss": "pkd", "schedule": {"mean_all": {"type": "linear", "end": 1}}}, "takes False there"),
        ({"loss": "kl_divergence", "schedule": {"weight": {"type": ["linear"]}}}, "type is one of"),
        ({"loss": "logits_mse", "args": {"centred": "yes"}}, "centred is true or false; found 'yes'"),
        ({"loss": "variational_information", "args": {"variance": "x"}}, "cannot be made: TypeError"),
    ],
)
def test_what_a_schedule_or_an_argument_cannot_be_is_said_before_the_run(entry, message):
    sides = {"teacher": "output.logits", "student": "output.logits"}
    with pytest.raises(ConfigError, match=message):
        distiller([{**sides, **entry}]).plan()

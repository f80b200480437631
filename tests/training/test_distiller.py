"""The runner: one loop from a batch to a saved student, and what it promises around it."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import hooks_left_on
from runs import HARD, HIDDEN, SOFT, batches, bert, contents, distiller, same, weights
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from training_script import collate, rows
from transformers import (
    AutoModelForSequenceClassification,
    BatchEncoding,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from knowledge_distillation import (
    Callback,
    ConfigError,
    EarlyStopping,
    KnowledgeDistiller,
    MultiLayerBasedDistillationEvaluator,
    MultiLayerBasedDistillationLoss,
    TaskEvaluator,
    student_from_teacher,
)
from knowledge_distillation.storage import checkpoint

MAPS = [{"teacher": "layer{2,4}.attention", "student": "layer{1,2}.attention", "loss": "mse"}]
NARROW = [*HIDDEN, *SOFT]  # with a narrow student, one projection


def narrow(**options: Any) -> dict[str, Any]:
    """Two models of unequal width, so that there is a projection, with dropout, on a data set in random order."""
    data = {"train_dataset": rows(), "data_collator": collate, "per_device_train_batch_size": 8}
    models = {"teacher": bert(width=24, dropout=0.1), "student": bert(2, dropout=0.1, seed=1)}
    return {"config": NARROW, **models, **data, "num_train_epochs": 3, **options}


def scores_of(run: KnowledgeDistiller, **resume: Any) -> dict[str, float]:
    """What the run returns about evaluations."""
    return {name: value for name, value in run.train(**resume).items() if name.startswith(("eval_", "best_"))}


def trained(run: KnowledgeDistiller) -> dict[str, torch.Tensor]:
    """The weights of student and projections after the run."""
    run.train()
    return {**weights(run.student), **weights(run.loss_model)}


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(folder)]


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


class Watch(Callback):
    """Call a function after every step."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_step_end(self, distiller):
        self.look(distiller)


# --- the same run in many forms ------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_moves_the_student() -> None:
    run = distiller(SOFT, bert(initializer_range=0.5), bert(2, seed=1), num_train_epochs=12, learning_rate=5e-3)
    before, losses = weights(run.student), []
    run.callbacks.append(Watch(lambda d: losses.append(float(d._logged.sums["loss"]))))
    run.train()
    assert len(losses) == 36 and sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert not same(before, weights(run.student))


def test_train_and_distillate_are_one_call() -> None:
    first, second = distiller(**narrow()), distiller(**narrow())
    assert first.train() == second.distillate()
    assert same(weights(first.student), weights(second.student))
    assert same(weights(first.loss_model), weights(second.loss_model))


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    first, again, other = (trained(distiller(**narrow(seed=seed))) for seed in (3, 3, 4))
    assert same(first, again) and not same(first, other)


def test_the_random_state_before_a_run_changes_nothing() -> None:
    first = trained(distiller(**narrow()))
    run = distiller(**narrow())
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(first, trained(run))


def test_a_plan_made_before_changes_no_result() -> None:
    """The probe runs in training mode: it draws dropout, updates batch statistics, and has to put both back."""

    def run() -> KnowledgeDistiller:
        options = narrow()
        torch.manual_seed(5)
        options["student"].classifier = torch.nn.Sequential(torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
        return distiller(**options)

    plain, probed, twice = run(), run(), run()
    probed.plan()
    twice.plan()
    twice.close()
    results = [trained(one) for one in (plain, probed, twice)]
    assert "classifier.0.running_mean" in results[0]
    assert same(results[0], results[1]) and same(results[0], results[2])


def test_a_plan_leaves_the_student_and_the_random_state_as_they_were() -> None:
    run = distiller(**narrow())
    run.student.eval()
    before = weights(run.student)
    torch.manual_seed(8)
    random.seed(8)
    np.random.seed(8)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run.plan()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert same(before, weights(run.student)) and not run.student.training
    assert all(parameter.grad is None for parameter in run.student.parameters())


def test_num_epoch_is_num_train_epochs() -> None:
    run = distiller(num_train_epochs=2)
    options = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    teacher = bert()
    older = KnowledgeDistiller(
        teacher, student_from_teacher(teacher, [2, 4]), SOFT, train_dataloader=batches(), num_epoch=2, **options
    )
    assert same(trained(run), trained(older)) and older.progress.step == 6 and older.progress.epoch == 2


def test_a_loss_model_stands_for_its_config() -> None:
    loss_model = MultiLayerBasedDistillationLoss(SOFT)
    teacher = bert()
    options = {"device": "cpu", "mixed_precision": "no", "disable_tqdm": True, "num_train_epochs": 1}
    run = KnowledgeDistiller(
        teacher,
        student_from_teacher(teacher, [2, 4]),
        loss_model=loss_model,
        train_dataloader=batches(),
        learning_rate=1e-2,
        **options,
    )
    assert same(trained(run), trained(distiller()))


# --- batches -------------------------------------------------------------------------------------------------------


def plain_batches() -> list[dict[str, torch.Tensor]]:
    return [{k: batch[k] for k in ("input_ids", "attention_mask")} for batch in batches()]


class WithoutLength:
    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)


def as_tuples() -> Any:
    return [(batch["input_ids"], batch["attention_mask"]) for batch in plain_batches()]


def as_lists_of_a_loader() -> Any:
    same_length = torch.stack([batch["input_ids"][:, :3] for batch in batches()])
    return DataLoader(TensorDataset(same_length.flatten(0, 1)), batch_size=4)


FORMS = {
    "tuples": as_tuples,
    "lists": lambda: [list(batch) for batch in as_tuples()],
    "BatchEncoding": lambda: [BatchEncoding(batch) for batch in plain_batches()],
    "without a length": lambda: WithoutLength(plain_batches()),
    "columns nobody takes": lambda: [{**b, "idx": torch.arange(4), "text": ["a"] * 4} for b in plain_batches()],
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_train_alike(form: str) -> None:
    schedule = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}  # all that can be had without a length
    plain = trained(distiller(HIDDEN, train_dataloader=plain_batches(), num_train_epochs=2, **schedule))
    run = distiller(HIDDEN, train_dataloader=FORMS[form](), num_train_epochs=2, **schedule)
    assert same(plain, trained(run)) and run.progress.step == 6


def test_a_loader_of_single_tensors() -> None:
    tensors = as_lists_of_a_loader()
    dicts = [{"input_ids": ids} for (ids,) in tensors]
    assert same(trained(distiller(train_dataloader=tensors)), trained(distiller(train_dataloader=dicts)))
    assert same(
        trained(distiller(train_dataloader=[ids for (ids,) in tensors])), trained(distiller(train_dataloader=dicts))
    )


def test_a_generator_serves_one_epoch_whole() -> None:
    as_list, as_generator = distiller(max_steps=3), distiller(max_steps=3, train_dataloader=(b for b in batches()))
    assert same(trained(as_list), trained(as_generator)) and as_generator.progress.step == 3


def test_a_generator_without_end_stops_at_max_steps() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield from batches()

    run = distiller(train_dataloader=endless(), max_steps=7)
    run.train()
    assert run.progress.step == 7 and run.total_steps == 7


def test_a_generator_loses_no_batch_to_a_plan() -> None:
    plain, planned = (distiller(max_steps=3, train_dataloader=(b for b in batches())) for _ in range(2))
    planned.plan()
    planned.close()
    assert same(trained(plain), trained(planned)) and planned.progress.step == 3


@pytest.mark.parametrize("data", ["loader", "data set"])
def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone(data: str) -> None:
    """Not from what else draws random numbers: dropout, evaluators, callbacks."""

    def order(seed: int, draws: int) -> list[list[int]]:
        seen: list[list[int]] = []
        loader = {"train_dataloader": DataLoader(rows(12), batch_size=4, shuffle=True, collate_fn=collate)}
        dataset = {"train_dataset": rows(12), "data_collator": collate, "per_device_train_batch_size": 4}

        def adapt(device, batch):
            seen.append(batch["input_ids"][:, 1].tolist())
            return batch, batch

        look = Watch(lambda d: (torch.rand(draws), np.random.rand(draws)))
        run = distiller(
            HARD,
            None,
            bert(2, dropout=0.1),
            **(loader if data == "loader" else dataset),
            train_data_adaptor=adapt,
            callbacks=[look],
            num_train_epochs=2,
            seed=seed,
        )
        run.plan()
        seen.clear()
        run.train()
        return seen

    first = order(1, draws=1)
    assert len(first) == 6 and first[:3] != first[3:]
    assert first == order(1, draws=5) and first != order(2, draws=1)


def test_a_data_adaptor_gives_each_model_its_own_inputs() -> None:
    """The teacher reads other ids than the student, by tuple and by dict; labels reach no model."""
    seen: dict[str, list[Any]] = {"teacher": [], "student": []}
    teacher, student = bert(vocab_size=90), bert(2)
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen[name].append(kwargs), with_kwargs=True
        )

    def adapt(device, batch):
        return (batch["input_ids"] + 50, batch["attention_mask"]), batch

    distiller(SOFT + HARD, teacher, student, train_data_adaptor=adapt).train()
    last = batches()[-1]
    assert torch.equal(seen["student"][-1]["input_ids"], last["input_ids"])
    assert torch.equal(seen["teacher"][-1]["input_ids"], last["input_ids"] + 50)
    assert torch.equal(seen["teacher"][-1]["attention_mask"], last["attention_mask"])
    assert not any("labels" in kwargs for calls in seen.values() for kwargs in calls)


# --- optimizer, frozen parts, hooks --------------------------------------------------------------------------------


def test_projections_join_ones_own_optimizer_as_one_more_group_at_a_constant_rate() -> None:
    options = narrow()
    optimizer = torch.optim.SGD(options["student"].parameters(), lr=0.1, momentum=0.5)
    run = distiller(**options, optimizer=optimizer)
    rates: list[list[float]] = []
    run.callbacks.append(Watch(lambda d: rates.append([group["lr"] for group in optimizer.param_groups])))
    run.plan()
    begun = weights(run.loss_model)
    run.train()
    assert len(optimizer.param_groups) == 2
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in run.loss_model.parameters()]
    assert optimizer.param_groups[1]["momentum"] == 0.5
    assert len(rates) == 15 and all(rate == [0.1, 0.1] for rate in rates)
    assert not same(begun, weights(run.loss_model))


def test_ones_own_schedule_advances_once_an_optimizer_step() -> None:
    student = bert(2)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    run = distiller(
        student=student,
        optimizer=optimizer,
        lr_scheduler=schedule,
        train_dataloader=batches(4),
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    run.train()
    assert run.progress.step == 4 and optimizer.param_groups[0]["lr"] == 0.5**4


def test_ones_own_schedule_covers_the_projections() -> None:
    """It was made for the groups that were there, so they join the first instead of coming as one more."""
    options = narrow()
    optimizer = torch.optim.SGD(options["student"].parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    run = distiller(**options, optimizer=optimizer, lr_scheduler=schedule)
    run.plan()
    begun = weights(run.loss_model)
    run.train()
    assert len(optimizer.param_groups) == 1 and not same(begun, weights(run.loss_model))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 4, "train_dataloader": batches(5), "warmup_ratio": 0.25, "learning_rate": 0.4}
    distiller(**settings, output_dir=tmp_path).train()
    rates = [line["learning_rate"] for line in history(tmp_path)]
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert rates[5:] == pytest.approx([0.4 * (15 - n) / 15 for n in range(1, 16)])


def test_weight_decay_spares_biases_and_norms() -> None:
    run = distiller(weight_decay=0.3)
    run._prepare()
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    named = dict(run.student.named_parameters())
    assert {decay[id(p)] for name, p in named.items() if name.endswith("bias") or "LayerNorm" in name} == {0.0}
    assert decay[id(named["bert.encoder.layer.0.output.dense.weight"])] == 0.3
    run.close()


def test_what_no_entry_reaches_is_frozen_for_the_run_only() -> None:
    student = student_from_teacher(bert(), [2, 4])
    student.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # by the user, and for good
    run = distiller(HIDDEN, student=student)
    states: list[dict[str, bool]] = []
    run.callbacks.append(Watch(lambda d: states.append({n: p.requires_grad for n, p in student.named_parameters()})))
    before = weights(student)
    run.train()
    unreached = {name for name, trains in states[0].items() if not trains}
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= unreached
    assert any(name.startswith("bert.encoder.layer.1.") for name in unreached)
    assert not any(name.startswith("bert.encoder.layer.0.") for name in unreached)
    after = weights(student)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and not moved & unreached
    still = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert still == {"bert.embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("ends", ["train", "close", "an error"])
def test_models_carry_nothing_of_ours_afterwards(ends: str) -> None:
    teacher, student = bert(), bert(2)
    student.set_attn_implementation("eager")
    own = teacher.config._attn_implementation
    run = distiller(MAPS + HIDDEN, teacher, student)
    if ends == "close":
        run.train_epoch()
        assert hooks_left_on(student) and student.config._attn_implementation != "eager"
        run.close()
    elif ends == "train":
        run.train()
    else:
        run.callbacks.append(Watch(lambda d: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run.train()
    assert hooks_left_on(student) == hooks_left_on(teacher) == hooks_left_on(run.teacher) == []
    assert student.config._attn_implementation == "eager" and teacher.config._attn_implementation == own
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_teacher_is_the_same_to_the_last_bit_and_the_callers_model_untouched(dtype: str) -> None:
    teacher = bert(dropout=0.5).train()
    before = weights(teacher)
    run = distiller(HIDDEN + SOFT, teacher, bert(2, dropout=0.1), teacher_dtype=dtype, num_train_epochs=2)
    inside = weights(run.teacher.model)
    run.callbacks.append(Watch(lambda d: d.teacher.train()))
    run.train()
    assert same(before, weights(teacher)) and same(inside, weights(run.teacher.model))
    assert teacher.training and all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in teacher.parameters())
    assert not any(module.training for module in run.teacher.modules())
    assert {p.dtype for p in run.teacher.parameters()} == {torch.float32 if dtype == "auto" else torch.bfloat16}


def test_weights_that_student_and_teacher_share_are_trained_for_the_student_alone() -> None:
    teacher, student = bert(), bert(2)
    student.bert.embeddings = teacher.bert.embeddings
    run = distiller(HIDDEN + SOFT, teacher, student)
    before, ours = weights(run.teacher.model), weights(student)
    run.train()
    assert same(before, weights(run.teacher.model))
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(ours[name], student.state_dict()[name])


def test_the_student_trains_in_training_mode_and_is_left_so() -> None:
    student = bert(2).eval()
    modes: list[bool] = []
    run = distiller(student=student, callbacks=[Watch(lambda d: modes.append(student.training))])
    run.train()
    assert modes == [True] * 3


# --- a loop of one's own -------------------------------------------------------------------------------------------


def test_ones_own_loop_is_that_of_train() -> None:
    run = distiller(**narrow())
    means = [run.train_epoch() for _ in range(3)]
    result = {**weights(run.student), **weights(run.loss_model)}
    run.close()
    whole = distiller(**narrow())
    assert whole.train() == means[2]  # the losses of the last epoch
    assert same(result, {**weights(whole.student), **weights(whole.loss_model)})
    assert list(means[0]) == ["loss", "mse:layer1_hidden_states", "kl_divergence:output_logits"]
    assert means[0]["loss"] == pytest.approx(sum(list(means[0].values())[1:]), rel=1e-5)
    assert means[2]["loss"] < means[0]["loss"]


def test_evaluating_in_ones_own_loop_changes_no_result() -> None:
    run = distiller(**narrow(dev_dataloader=batches(2)))
    scores = []
    for _ in range(3):
        run.train_epoch()
        scores.append(run.evaluate())
        assert run.student.training
    assert same({**weights(run.student), **weights(run.loss_model)}, trained(distiller(**narrow())))
    assert list(scores[0]) == ["accuracy", "teacher_accuracy", "agreement"]
    run.close()


def test_evaluate_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\(\) needs dev_dataloader or eval_dataset"):
        distiller().evaluate()


def test_a_loop_of_ones_own_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    whole = distiller(**narrow())
    for _ in range(3):
        whole.train_epoch()
    begun = distiller(**narrow())
    begun.train_epoch()
    begun.train_epoch()
    begun.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"student", "checkpoints"}
    torch.manual_seed(77)
    later = distiller(**narrow())
    run = str(tmp_path)
    assert later.load_state(student=run, projections=run, optimizer=run, progress=run) == 2
    mean = later.train_epoch()
    assert same(weights(whole.student), weights(later.student))
    assert same(weights(whole.loss_model), weights(later.loss_model))
    assert later.progress == whole.progress and later.progress.step == 15
    assert mean["loss"] > 0
    for one in (whole, begun, later):
        one.close()


@pytest.mark.parametrize("left_out", ["student", "projections", "optimizer", "progress"])
def test_any_part_may_be_left_out_and_stays_as_it_is(left_out: str, tmp_path: Path) -> None:
    begun = distiller(**narrow())
    begun.train_epoch()
    begun.save(tmp_path)
    later = distiller(**narrow())
    later._prepare()
    fresh = {"student": weights(later.student), "projections": weights(later.loss_model)}
    parts = {part: tmp_path for part in ("student", "projections", "optimizer", "progress") if part != left_out}
    assert later.load_state(**parts) == (0 if left_out == "progress" else 1)
    for part, ours, theirs in (
        ("student", later.student, begun.student),
        ("projections", later.loss_model, begun.loss_model),
    ):
        assert same(weights(ours), fresh[part] if part == left_out else weights(theirs))
        assert not same(fresh[part], weights(theirs))
    moments = len(later.optimizer.state_dict()["state"])
    assert moments == (0 if left_out == "optimizer" else len(begun.optimizer.state_dict()["state"]))
    assert later.progress.step == (0 if left_out == "progress" else 5)
    for run in (begun, later):
        run.close()


def test_a_student_is_loaded_from_a_run_a_checkpoint_or_a_student_directory(tmp_path: Path) -> None:
    begun = distiller(**narrow())
    begun.train_epoch()
    begun.save(tmp_path)
    for folder in (tmp_path, tmp_path / "student", checkpoint.checkpoints(tmp_path)[0]):
        later = distiller(**narrow())
        assert not same(weights(begun.student), weights(later.student))
        later.load_state(student=folder)
        assert same(weights(begun.student), weights(later.student))
        later.close()
    begun.close()


def test_save_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"save\(\) needs a directory, since there is no output_dir"):
        distiller().save()
    run = distiller(output_dir=tmp_path)
    run.save()
    assert steps_of(tmp_path) == [0]
    run.close()


def test_saving_after_a_run_keeps_the_trained_projections_and_the_optimizer(tmp_path: Path) -> None:
    run = distiller(**narrow())
    run.train()
    projections, rate = weights(run.loss_model), run.scheduler.get_last_lr()
    run.save(tmp_path)
    saved = load_file(checkpoint.checkpoints(tmp_path)[0] / "projections.safetensors")
    assert same({name: saved[name] for name in projections}, projections)
    later = distiller(**narrow())
    later.load_state(optimizer=tmp_path)
    assert later.optimizer.state_dict()["state"] and later.scheduler.get_last_lr() == rate
    for one in (run, later):
        one.close()


# --- evaluators ----------------------------------------------------------------------------------------------------


class LongKnown:
    """The long-known form of an evaluator; it leaves both models in the wrong mode."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def evaluate(self, **given: Any) -> None:
        self.calls.append(given)
        given["student_model"].eval()
        given["teacher_model"].train()


def test_the_long_known_evaluator_is_asked_after_every_step() -> None:
    evaluator, dev = LongKnown(), batches(1)
    modes: list[bool] = []

    def adapt(device, batch):
        return batch, batch

    run = distiller(
        evaluator=evaluator,
        dev_dataloader=dev,
        dev_data_adaptor=adapt,
        num_train_epochs=2,
        eval_steps=1,
        callbacks=[Watch(lambda d: modes.append(d.student.training))],
    )
    assert scores_of(run) == {}
    assert [(call["epoch"], call["step"]) for call in evaluator.calls] == [(1, 1), (1, 2), (1, 3)] + [
        (2, 4),
        (2, 5),
        (2, 6),
    ]
    for call in evaluator.calls:
        assert set(call) == {
            "teacher_model",
            "student_model",
            "dev_data",
            "dev_data_adaptor",
            "epoch",
            "step",
            "loss_value",
        }
        loss = call["loss_value"]
        assert loss.dim() == 0 and not loss.requires_grad and loss.grad_fn is None and torch.isfinite(loss)
        assert call["student_model"] is run.student and call["teacher_model"] is run.teacher
        assert call["dev_data"] is dev and call["dev_data_adaptor"] is adapt
    assert modes == [True] * 6
    assert not any(module.training for module in run.teacher.modules())


def test_the_losses_given_to_the_evaluator_are_those_of_the_history(tmp_path: Path) -> None:
    evaluator = LongKnown()
    distiller(evaluator=evaluator, output_dir=tmp_path, gradient_accumulation_steps=2).train()
    logged = [line["loss"] for line in history(tmp_path)]
    assert [float(call["loss_value"]) for call in evaluator.calls] == pytest.approx(logged, rel=1e-6)


def test_the_ready_made_evaluator_logs_means_and_saves_students(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = MultiLayerBasedDistillationEvaluator(tmp_path / "saved", save_step=4, print_loss_step=2)
    run = distiller(evaluator=evaluator, train_dataloader=batches(6), output_dir=tmp_path / "run")
    with caplog.at_level(logging.INFO):
        run.train()
    losses = [line["loss"] for line in history(tmp_path / "run")]
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("evaluators")]
    assert lines == [f"epoch 1  step {step}  loss {sum(losses[step - 2 : step]) / 2:.6f}" for step in (2, 4, 6)]
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["epoch_1_step_4"]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "epoch_1_step_4")
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert same(weights(last), weights(run.student))  # nothing chooses the best, so the last one is kept


class Scripted:
    """The new form of an evaluator, with scores given beforehand; it leaves both models in the wrong mode."""

    def __init__(self, scores: list[float], greater: bool = True) -> None:
        self.primary_metric, self.greater_is_better = "score", greater
        self.scores, self.students, self.given = iter(scores), [], []

    def __call__(self, student, teacher, dataloader, accelerator):
        assert not student.training and not torch.is_grad_enabled()
        self.given.append((student, teacher, dataloader, accelerator))
        self.students.append(weights(student))
        student.train()
        student.bert.eval()
        teacher.train()
        return {"score": next(self.scores), "other": 1}


@pytest.mark.parametrize(
    ("scores", "greater", "setting", "best"),
    [
        ([0.1, 0.7, 0.3], True, {}, 1),
        ([0.9, 0.7, 0.9], True, {}, 0),
        ([0.5, 0.2, 0.4], False, {}, 1),
        ([0.5, 0.2, 0.4], True, {"greater_is_better": False}, 1),
        ([math.nan, 0.2, 0.1], True, {}, 1),
    ],
    ids=["greater", "the first of two", "smaller", "smaller by the setting", "not a number at first"],
)
def test_the_best_student_is_kept(
    scores: list[float], greater: bool, setting: dict[str, Any], best: int, tmp_path: Path
) -> None:
    evaluator = Scripted(scores, greater)
    dev = batches(1)
    run = distiller(evaluator=evaluator, dev_dataloader=dev, num_train_epochs=3, output_dir=tmp_path, **setting)
    metrics = scores_of(run)
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert same(weights(kept), evaluator.students[best])
    assert metrics == {"eval_score": scores[-1], "eval_other": 1.0, "best_score": scores[best]}
    assert same(weights(run.student), evaluator.students[-1]) and run.student.training and run.student.bert.training
    assert evaluator.given[0] == (run.student, run.teacher, dev, run.accelerator)
    assert not any(module.training for module in run.teacher.modules())


def test_another_metric_may_choose_the_best(tmp_path: Path) -> None:
    class Two(Scripted):
        def __call__(self, *given):
            score = super().__call__(*given)["score"]
            return {"score": score, "loss": score * 2}

    evaluator = Two([0.9, 0.1, 0.5])
    best = {"metric_for_best_model": "loss", "greater_is_better": False}
    metrics = distiller(evaluator=evaluator, num_train_epochs=3, output_dir=tmp_path, **best).train()
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert same(weights(kept), evaluator.students[1]) and metrics["best_loss"] == pytest.approx(0.2)


def test_a_plain_function_evaluates_and_the_last_student_is_kept(tmp_path: Path) -> None:
    def evaluator(student, teacher, dataloader, accelerator):
        return {"score": 1}

    run = distiller(evaluator=evaluator, num_train_epochs=2, output_dir=tmp_path)
    assert scores_of(run) == {"eval_score": 1.0}
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert same(weights(kept), weights(run.student))


def test_evaluations_come_at_their_steps_once_and_at_the_end(tmp_path: Path) -> None:
    for settings, wanted in (
        ({"eval_steps": 2}, [2, 4, 6, 7]),
        ({"eval_steps": 7}, [7]),
        ({"eval_steps": 50}, [7]),
        ({"eval_steps": 2, "max_steps": 4}, [2, 4]),
        ({"num_train_epochs": 2}, [7, 14]),
        ({"num_train_epochs": 2, "max_steps": 9}, [7, 9]),
    ):
        out = tmp_path / str(sorted(settings.items()))
        settings = {"train_dataloader": batches(7), "dev_dataloader": batches(1), "output_dir": out, **settings}
        distiller(**settings).train()
        assert [line["step"] for line in history(out) if "eval_accuracy" in line] == wanted
        assert (out / "student" / "model.safetensors").exists()


# --- scores of a task ----------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A model whose logits are looked up by the row's first id."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.calls = 0

    def forward(self, input_ids):
        self.calls += 1
        return self.logits[input_ids if self.logits.dim() == 2 and input_ids.dim() == 1 else input_ids[:, 0]]


def accelerator() -> Any:
    return distiller().accelerator


def test_accuracy_of_both_and_agreement() -> None:
    student = Fixed(torch.tensor([[2.0, 1], [0, 1], [3, 1], [0, 5]]))  # 0 1 0 1
    teacher = Fixed(torch.tensor([[2.0, 1], [0, 1], [0, 1], [4, 0]]))  # 0 1 1 0
    data = [
        {"input_ids": torch.tensor([[0], [1], [2]]), "labels": torch.tensor([0, 1, 1])},
        {"input_ids": torch.tensor([[3]]), "labels": torch.tensor([0])},
    ]
    evaluator = TaskEvaluator()
    assert evaluator(student, teacher, data, accelerator()) == {
        "accuracy": 0.5,
        "teacher_accuracy": 1.0,
        "agreement": 0.5,
    }
    assert evaluator.primary_metric == "accuracy" and evaluator.greater_is_better
    assert TaskEvaluator()(student, None, data, accelerator()) == {"accuracy": 0.5}
    without_labels = [{"input_ids": batch["input_ids"]} for batch in data]
    unlabelled = TaskEvaluator()
    assert unlabelled(student, teacher, without_labels, accelerator()) == {"agreement": 0.5}
    assert unlabelled.primary_metric == "agreement"


def test_ones_own_metrics_see_all_rows_in_order() -> None:
    seen = []

    def compute(logits, labels):
        seen.append((logits, labels))
        return {"first": 0.25, "second": 0.5}

    student = Fixed(torch.arange(8.0).reshape(4, 2))
    data = [{"input_ids": torch.tensor([[i], [i + 1]]), "labels": torch.tensor([i, i + 1])} for i in (0, 2)]
    evaluator = TaskEvaluator(compute, primary_metric="second")
    scores = evaluator(student, copy.deepcopy(student), data, accelerator())
    assert scores == {"first": 0.25, "second": 0.5, "teacher_first": 0.25, "teacher_second": 0.5, "agreement": 1.0}
    assert evaluator.primary_metric == "second"
    assert seen[0][0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and seen[0][1].tolist() == [0, 1, 2, 3]


def test_metrics_written_for_transformers_are_called_as_there() -> None:
    def compute(prediction):
        return {"right": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    student = Fixed(torch.tensor([[2.0, 1], [0, 1]]))
    data = [{"input_ids": torch.tensor([[0], [1]]), "labels": torch.tensor([0, 0])}]
    assert TaskEvaluator(compute)(student, None, data, accelerator()) == {"right": 0.5}


def test_real_labels_are_scored_by_correlation() -> None:
    student, teacher = Fixed(torch.tensor([[1.0], [2], [3], [4]])), Fixed(torch.tensor([[2.0], [1], [4], [3]]))
    data = [{"input_ids": torch.tensor([[0], [1], [2], [3]]), "labels": torch.tensor([0.5, 1.0, 1.5, 2.0])}]
    scores = TaskEvaluator()(student, teacher, data, accelerator())
    assert scores == pytest.approx({"pearson": 1.0, "teacher_pearson": 0.6, "agreement": 0.6})


class OfTokens(torch.nn.Module):
    """Class 1 for the ids in `ones`, class 0 for the others."""

    def __init__(self, *ones: int) -> None:
        super().__init__()
        self.ones = torch.nn.Parameter(torch.tensor([float(n in ones) for n in range(10)]))

    def forward(self, input_ids, attention_mask=None):
        return torch.stack([0 * self.ones[input_ids] + 0.5, self.ones[input_ids]], dim=-1)


def test_tokens_of_batches_of_unequal_length_are_scored_without_padding() -> None:
    short = {
        "input_ids": torch.tensor([[1, 2], [3, 0]]),
        "attention_mask": torch.tensor([[1, 1], [1, 0]]),
        "labels": torch.tensor([[1, 0], [1, -100]]),
    }
    long = {
        "input_ids": torch.tensor([[4, 5, 1, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, 0, 1, 1]]),
    }
    student, teacher = OfTokens(1), OfTokens(1, 3, 4)
    scores = TaskEvaluator()(student, teacher, [short, long], accelerator())
    assert scores == pytest.approx({"accuracy": 4 / 6, "teacher_accuracy": 5 / 6, "agreement": 5 / 6})
    without = [{key: value for key, value in batch.items() if key != "labels"} for batch in (short, long)]
    assert TaskEvaluator()(student, teacher, without, accelerator()) == pytest.approx({"agreement": 5 / 7})
    bare = [{"input_ids": batch["input_ids"]} for batch in (short, long)]
    assert TaskEvaluator()(student, teacher, bare, accelerator()) == pytest.approx({"agreement": 6 / 8})


def test_a_token_task_trains_and_is_scored() -> None:
    torch.manual_seed(0)
    config = bert(2, num_labels=3).config
    teacher, student = BertForTokenClassification(config), BertForTokenClassification(config)
    data = [{**b, "labels": (b["input_ids"] % 3).masked_fill(b["attention_mask"] == 0, -100)} for b in batches(5, 3)]
    metrics = scores_of(distiller(SOFT + HARD, teacher, student, train_dataloader=data, dev_dataloader=data))
    assert set(metrics) == {"eval_accuracy", "eval_teacher_accuracy", "eval_agreement", "best_accuracy"}
    logits = [student.eval()(**batch).logits for batch in data]
    right = sum(
        int(((x.argmax(-1) == b["labels"]) & (b["labels"] >= 0)).sum()) for x, b in zip(logits, data, strict=True)
    )
    assert metrics["eval_accuracy"] == pytest.approx(right / sum(int((b["labels"] >= 0).sum()) for b in data))


def test_a_causal_language_model_is_scored_on_the_next_token() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    ids = torch.randint(3, 40, (4, 9))
    predicted = model.eval()(ids).logits.argmax(-1)
    labels = torch.cat([ids[:, :1], predicted[:, :-1]], dim=1)  # what the model says comes next
    data = [{"input_ids": ids, "labels": labels}]
    assert TaskEvaluator()(model, None, data, accelerator()) == {"accuracy": 1.0}


@pytest.mark.parametrize(("data", "times"), [("eval_dataset", 1), ("dev_dataloader", 3)])
def test_the_teacher_is_scored_once_where_the_order_is_fixed(data: str, times: int) -> None:
    teacher = bert()
    calls = []
    teacher.classifier.register_forward_hook(lambda *given: calls.append(1))
    dev = (
        {"eval_dataset": rows(6), "per_device_eval_batch_size": 3} if data == "eval_dataset" else {data: batches(2, 3)}
    )
    run = distiller(HIDDEN, teacher, num_train_epochs=3, data_collator=collate, **dev)
    scores: list[dict[str, float]] = []

    class Keep(Callback):
        def on_evaluate(self, distiller, metrics):
            scores.append(metrics)

    run.callbacks.append(Keep())
    run.plan()
    calls.clear()
    run.train()
    assert len(calls) == 2 * times  # the entries need no logits of the teacher: it runs two layers in a step
    assert len(scores) == 3 and len({score["teacher_accuracy"] for score in scores}) == 1


def test_evaluation_order_and_scores_do_not_depend_on_the_batch_size() -> None:
    scores = []
    for size in (2, 5, 64):
        run = distiller(eval_dataset=rows(11), data_collator=collate, per_device_eval_batch_size=size)
        scores.append(run.evaluate())
    assert scores[0] == pytest.approx(scores[1]) and scores[0] == pytest.approx(scores[2])


# --- callbacks, history, saving --------------------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda distiller, *given: self.events.append((name, distiller.progress.step))
        return super().__getattribute__(name)


def test_callbacks_are_called_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    run = distiller(
        callbacks=[recorder],
        train_dataloader=batches(4),
        dev_dataloader=batches(1),
        output_dir=tmp_path,
        logging_steps=2,
        eval_steps=2,
        save_steps=3,
    )
    run.train()
    assert recorder.events == [
        ("on_init_end", 0),
        ("on_train_begin", 0),
        ("on_step_end", 1),
        ("on_step_end", 2),
        ("on_log", 2),
        ("on_evaluate", 2),
        ("on_step_end", 3),
        ("on_save", 3),
        ("on_step_end", 4),
        ("on_log", 4),
        ("on_evaluate", 4),
        ("on_save", 4),
        ("on_train_end", 4),
    ]


def test_a_run_that_fails_still_ends_for_its_callbacks() -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        distiller(callbacks=[recorder, Watch(lambda d: 1 / 0)]).train()
    assert [event for event, _ in recorder.events] == ["on_init_end", "on_train_begin", "on_step_end", "on_train_end"]


def test_a_callback_stops_the_run_after_the_step(tmp_path: Path) -> None:
    run = distiller(
        callbacks=[Watch(lambda d: d.stop() if d.progress.step == 4 else None)],
        dev_dataloader=batches(1),
        num_train_epochs=5,
        output_dir=tmp_path,
    )
    metrics = run.train()
    assert run.progress.step == 4 and run.progress.epoch == 1 and run.progress.batches == 1
    assert "eval_accuracy" in metrics and steps_of(tmp_path) == [4]
    assert [line["step"] for line in history(tmp_path) if "eval_accuracy" in line] == [3, 4]


@pytest.mark.parametrize(
    ("scores", "greater", "patience", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.2, 0.9], True, 2, 4),
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.2], True, 2, 6),
        ([0.5, 0.4, 0.6], False, 1, 3),
        ([0.5, 0.5, 0.5], True, 1, 2),
    ],
)
def test_early_stopping_waits_its_patience(scores: list[float], greater: bool, patience: int, epochs: int) -> None:
    evaluator = Scripted(scores, greater)
    run = distiller(evaluator=evaluator, num_train_epochs=len(scores), callbacks=[EarlyStopping(patience)])
    run.train()
    assert run.progress.epoch == epochs


def test_early_stopping_remembers_across_a_resume(tmp_path: Path) -> None:
    def epochs(number: int, scores: list[float]) -> int:
        run = distiller(
            evaluator=Scripted(scores), num_train_epochs=number, callbacks=[EarlyStopping(2)], output_dir=tmp_path
        )
        run.train(resume_from_checkpoint=True)
        return run.progress.epoch

    assert epochs(2, [0.5, 0.4]) == 2  # one evaluation without improvement
    assert epochs(9, [0.3, 0.9]) == 3  # and the second
    assert epochs(9, []) == 3  # a run that was stopped is finished


def test_the_history_has_every_term_rate_and_score(tmp_path: Path) -> None:
    config = [{**SOFT[0], "weight": 0.25}, {**HARD[0], "weight": 2.0, "name": "labels"}]
    run = distiller(
        config,
        train_dataloader=batches(4),
        dev_dataloader=batches(1),
        output_dir=tmp_path,
        logging_steps=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    metrics = run.train()
    lines = history(tmp_path)
    assert [(line["step"], line["epoch"], "loss" in line) for line in lines] == [
        (2, 1.0, True),
        (2, 1.0, False),
        (4, 2.0, True),
        (4, 2.0, False),
    ]
    terms = lines[0]
    assert set(terms) == {"step", "epoch", "loss", "kl_divergence:output_logits", "labels", "learning_rate"}
    weighted = 0.25 * terms["kl_divergence:output_logits"] + 2.0 * terms["labels"]
    assert terms["loss"] == pytest.approx(weighted, rel=1e-5)
    assert set(lines[1]) == {"step", "epoch", "eval_accuracy", "eval_teacher_accuracy", "eval_agreement"}
    assert {key: value for key, value in metrics.items() if key.startswith("eval_")} == {
        key: value for key, value in lines[3].items() if key.startswith("eval_")
    }
    assert metrics["best_accuracy"] == max(lines[1]["eval_accuracy"], lines[3]["eval_accuracy"])


def test_logged_losses_are_means_since_the_last_line(tmp_path: Path) -> None:
    for name, interval in (("each", 1), ("three", 3)):
        distiller(train_dataloader=batches(7), output_dir=tmp_path / name, logging_steps=interval).train()
    each = [line["loss"] for line in history(tmp_path / "each")]
    three = history(tmp_path / "three")
    assert [line["step"] for line in three] == [3, 6, 7]
    means = [sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]]
    assert [line["loss"] for line in three] == pytest.approx(means, rel=1e-6)


def test_checkpoints_come_at_their_steps_and_only_the_last_ones_stay(tmp_path: Path) -> None:
    for settings, wanted in (
        ({"save_steps": 2, "save_total_limit": 2}, [6, 7]),
        ({"save_steps": 2, "save_total_limit": 9}, [2, 4, 6, 7]),
        ({"save_steps": 7}, [7]),
        ({"num_train_epochs": 3, "save_total_limit": 2}, [14, 21]),
        ({"save_steps": 3, "max_steps": 5, "save_total_limit": 9}, [3, 5]),
    ):
        out = tmp_path / str(sorted(settings.items()))
        distiller(train_dataloader=batches(7), output_dir=out, **settings).train()
        assert steps_of(out) == wanted
        assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step-{n:08d}" for n in wanted}


def test_nothing_is_written_without_an_output_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distiller(dev_dataloader=batches(1), eval_steps=1, save_steps=1).train()
    assert contents(tmp_path) == {}


class Fails:
    """Calls of a function that go through until one raises, as where a disk is full or a process is killed."""

    def __init__(self, function: Any, last_good: int) -> None:
        self.function, self.left = function, last_good

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("no space left on device")
        return self.function(*given, **named)


@pytest.mark.parametrize("last_good", range(11))
def test_a_write_that_fails_leaves_the_checkpoint_before_it_whole(
    last_good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write of the second checkpoint fails, the first or the second is there whole, and the run goes on."""
    options = {"train_dataloader": batches(), "num_train_epochs": 3, "save_total_limit": 1}
    whole = trained(distiller(**options))
    run = distiller(**options, output_dir=tmp_path)

    class Break(Callback):
        def on_step_end(self, distiller):
            if distiller.progress.step == 4:
                for owner, name in ((checkpoint, "save_file"), (checkpoint, "save_model"), (os, "replace")):
                    monkeypatch.setattr(owner, name, shared(getattr(owner, name)))

    def shared(function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            return failing(function, *given, **named)

        return call

    failing = Fails(lambda function, *given, **named: function(*given, **named), last_good)
    run.callbacks.append(Break())
    with pytest.raises(OSError, match="no space left"):
        run.train()
    monkeypatch.undo()
    assert steps_of(tmp_path) in ([3], [6])
    again = distiller(**options, output_dir=tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.progress.step == 9 and same(whole, weights(again.student))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000009"}


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    """Killed between the two renames of a step that is saved again."""
    distiller(output_dir=tmp_path).train()
    kept = contents(tmp_path / "checkpoints" / "step-00000003")
    os.replace(tmp_path / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / ".step-00000003.old")
    assert steps_of(tmp_path) == [3]
    assert contents(tmp_path / "checkpoints" / "step-00000003") == kept


def test_a_finished_run_resumed_trains_nothing_and_knows_its_scores(tmp_path: Path) -> None:
    options = {"dev_dataloader": batches(1), "output_dir": tmp_path, "num_train_epochs": 2}
    for intervals in ({}, {"eval_steps": 4, "save_steps": 4}):
        settings = {**options, **intervals, "overwrite_output_dir": True}
        first = scores_of(distiller(**settings))
        before = contents(tmp_path)
        recorder = Recorder()
        again = distiller(**settings, callbacks=[recorder])
        assert again.train(resume_from_checkpoint=True) == first and "best_accuracy" in first
        assert [event for event, _ in recorder.events] == ["on_init_end", "on_train_begin", "on_train_end"]
        assert contents(tmp_path) == before


def test_a_run_resumed_where_there_is_none_starts_afresh(tmp_path: Path) -> None:
    fresh = trained(distiller())
    run = distiller(output_dir=tmp_path / "new")
    run.train(resume_from_checkpoint=True)
    assert same(fresh, weights(run.student)) and steps_of(tmp_path / "new") == [3]


def test_trackers_get_what_the_history_gets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    distiller(output_dir=tmp_path, dev_dataloader=batches(1), report_to="tensorboard").train()
    events = EventAccumulator(str(tmp_path / "distillation"))
    events.Reload()
    lines = history(tmp_path)
    for name in ("loss", "kl_divergence:output_logits", "learning_rate", "eval_agreement"):
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])


def test_a_second_run_may_have_another_precision() -> None:
    for precision in ("bf16", "no", "bf16"):
        run = distiller(mixed_precision=precision)
        assert run.accelerator.mixed_precision == precision
        run.train()


# --- what a step does ------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes whatever makes the host wait for a value of the device, and where in Python it was asked for."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "aten.equal", "unique", "masked_select")
    METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.places: list[str] = []
        for name in self.METHODS:
            patch.setattr(torch.Tensor, name, self.noted(getattr(torch.Tensor, name)))

    def noted(self, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.note()
            return method(*given, **named)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.OPERATIONS):
            self.note()
        return function(*args, **(kwargs or {}))

    def note(self) -> None:
        ours = (__file__, "/torch/")
        frames = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in ours)]
        self.places.append(f"{frames[-1].filename}:{frames[-1].lineno}")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_step_waits_for_the_device(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulation, masks, projections, clipping, the schedule and the sums of terms; transformers looks at masks."""
    config = [*HIDDEN, *MAPS, *SOFT, *HARD, {**HIDDEN[0], "loss": "cos", "name": "direction"}]
    data = batches(4)
    run = distiller(
        config,
        bert(width=24),
        bert(2),
        train_dataloader=data,
        gradient_accumulation_steps=2,
        logging_steps=100,
        mixed_precision=precision,
        evaluator=LongKnown(),
    )
    run._prepare()
    run.module.train()

    def step(window: list[Any]) -> None:
        run._after_step(run._step([run._batch(raw) for raw in window]), len(window), managed=True)

    step(data[:2])
    with Waits(monkeypatch) as waits:
        step(data[2:])
        step(data[:1])
        step([])
        assert waits.places and all("/transformers/" in place for place in waits.places), waits.places
        waits.places.clear()
        run._log()
        assert "training/progress.py" in waits.places[0]  # the watch sees what it should
    run.close()


def test_bf16_trains_and_keeps_the_weights_in_float32() -> None:
    kinds = set()
    student = bert(2, seed=1)
    student.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda m, a, out: kinds.add(out.dtype))
    run = distiller(
        HIDDEN + SOFT,
        bert(initializer_range=0.5),
        student,
        mixed_precision="bf16",
        num_train_epochs=10,
        learning_rate=5e-3,
    )
    losses = [run.train_epoch()["loss"] for _ in range(10)]
    assert torch.bfloat16 in kinds and {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in run.teacher.parameters()} == {torch.bfloat16}
    assert losses[-1] < 0.6 * losses[0]
    run.close()


def test_gradients_are_clipped_together() -> None:
    def norm(**settings: Any) -> float:
        student = bert(2, seed=1)
        before = weights(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
        distiller(SOFT, bert(initializer_range=0.5), student, optimizer=optimizer, max_steps=1, **settings).train()
        after = weights(student)
        return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in after))

    free = norm(max_grad_norm=0)
    assert free > 0.02
    assert norm(max_grad_norm=0.01) == pytest.approx(0.01, rel=1e-3)
    assert norm(max_grad_norm=10.0) == free
    assert norm(max_grad_norm=None) == free


# --- labels alone --------------------------------------------------------------------------------------------------


def test_fine_tuning_is_the_same_loop_with_labels_alone(tmp_path: Path) -> None:
    data = [{**b, "labels": (b["input_ids"][:, 0] > 20).long()} for b in batches(4)]
    student = bert(2, seed=2)
    settings = {"num_train_epochs": 20, "learning_rate": 5e-3, "output_dir": tmp_path}
    metrics = scores_of(distiller(HARD, None, student, train_dataloader=data, dev_dataloader=data, **settings))
    assert set(metrics) == {"eval_accuracy", "best_accuracy"} and metrics["best_accuracy"] == 1.0
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    right = [(saved(**batch).logits.argmax(-1) == batch["labels"]) for batch in data]
    assert torch.cat(right).all()


def test_fine_tuning_equals_a_loop_written_by_hand() -> None:
    data = batches(5)
    student, twin = bert(2, seed=2), bert(2, seed=2)
    distiller(
        HARD,
        None,
        student,
        train_dataloader=data,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.1),
        max_grad_norm=0,
    ).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in data:
        torch.nn.functional.cross_entropy(twin(**batch).logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    ours, theirs = weights(student), weights(twin)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6


def test_a_teacher_that_no_entry_asks_is_only_scored() -> None:
    teacher = bert()
    calls = []
    teacher.register_forward_hook(lambda *given: calls.append(1))
    metrics = distiller(HARD, teacher, dev_dataloader=batches(2)).train()
    assert "eval_teacher_accuracy" in metrics and len(calls) == 2


def test_regression_against_real_labels(tmp_path: Path) -> None:
    data = [{**b, "labels": b["input_ids"][:, 0].float() / 40} for b in batches(4)]
    student = bert(2, num_labels=1, seed=3)
    entries = [{"student": "output.logits", "loss": "mse"}]
    run = distiller(entries, None, student, train_dataloader=data, dev_dataloader=data, num_train_epochs=25)
    losses = [run.train_epoch()["loss"] for _ in range(25)]
    scores = run.evaluate()
    run.close()
    with torch.no_grad():
        rest = torch.cat([student.eval()(**batch).logits[:, 0] - batch["labels"] for batch in data])
    assert losses[-1] < 0.1 * losses[0] and float(rest.square().mean()) < 0.01
    assert scores["pearson"] > 0.9

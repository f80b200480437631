"""Optimizer and schedule, ready-made or one's own; what is frozen for a run, and what is left behind."""

from pathlib import Path

import pytest
import torch
from families import hooks_left_on
from runs import HIDDEN, MAPS, SOFT, batches, bert, distiller, history, narrow, same, weights
from watching import Watch

from knowledge_distillation import student_from_teacher
from knowledge_distillation.training.prepare import prepare


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
    prepare(run.run)
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


def test_the_student_trains_in_training_mode_and_is_left_so() -> None:
    student = bert(2).eval()
    modes: list[bool] = []
    run = distiller(student=student, callbacks=[Watch(lambda d: modes.append(student.training))])
    run.train()
    assert modes == [True] * 3

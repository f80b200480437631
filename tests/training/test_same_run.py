"""The same run in many forms gives the same weights; another seed gives others."""

import random

import numpy as np
import torch
from runs import SOFT, batches, bert, distiller, narrow, same, trained, weights
from watching import Watch

from knowledge_distillation import KnowledgeDistiller, MultiLayerBasedDistillationLoss, student_from_teacher


def test_training_lowers_the_loss_and_moves_the_student() -> None:
    run = distiller(SOFT, bert(initializer_range=0.5), bert(2, seed=1), num_train_epochs=12, learning_rate=5e-3)
    before, losses = weights(run.student), []
    run.callbacks.append(Watch(lambda d: losses.append(float(d.since_log.sums["loss"]))))
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

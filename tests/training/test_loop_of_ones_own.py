"""A loop of one's own: train_epoch, evaluate, save, load_state."""

from pathlib import Path

import pytest
import torch
from runs import batches, distiller, narrow, same, steps_of, trained, weights
from safetensors.torch import load_file
from tolerance import near

from knowledge_distillation import ConfigError
from knowledge_distillation.storage import checkpoint_files
from knowledge_distillation.training.prepare import prepare


def test_ones_own_loop_is_that_of_train() -> None:
    run = distiller(**narrow())
    means = [run.train_epoch() for _ in range(3)]
    result = {**weights(run.student), **weights(run.loss_model)}
    run.close()
    whole = distiller(**narrow())
    assert whole.train() == means[2]  # the losses of the last epoch
    assert same(result, {**weights(whole.student), **weights(whole.loss_model)})
    assert list(means[0]) == ["loss", "mse:layer1_hidden_states", "kl_divergence:output_logits"]
    assert means[0]["loss"] == near(sum(list(means[0].values())[1:]))
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
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "student", "checkpoints"}
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
    prepare(later.run)
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
    for folder in (tmp_path, tmp_path / "student", checkpoint_files.checkpoints(tmp_path)[0]):
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
    saved = load_file(checkpoint_files.checkpoints(tmp_path)[0] / "projections.safetensors")
    assert same({name: saved[name] for name in projections}, projections)
    later = distiller(**narrow())
    later.load_state(optimizer=tmp_path)
    assert later.optimizer.state_dict()["state"] and later.scheduler.get_last_lr() == rate
    for one in (run, later):
        one.close()

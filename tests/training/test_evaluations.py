"""When a run evaluates, what evaluators are given, and which student is kept."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import batches, bert, distiller, history, same, scores_of, weights
from tolerance import near
from transformers import AutoModelForSequenceClassification, BertModel, CLIPConfig, CLIPModel
from watching import LongKnown, Scripted, Watch

from knowledge_distillation import ConfigError, DataError, MultiLayerBasedDistillationEvaluator


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
    assert [float(call["loss_value"]) for call in evaluator.calls] == near(logged)


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


def test_what_is_set_on_the_distiller_is_set_for_its_run() -> None:
    run = distiller(dev_dataloader=batches(1), num_train_epochs=1)
    run.evaluator = lambda student, teacher, dataloader, accelerator: {"mine": float(len(dataloader))}
    run.dev_dataloader = batches(3)
    run.note = "of the caller's own"
    assert run.evaluate() == {"mine": 3.0} and run.train()["eval_mine"] == 3.0
    assert run.note == "of the caller's own" and not hasattr(run.run, "note")
    logged: list[dict[str, float]] = []
    run.log = logged.append  # a method of the distiller's own, not of its run
    run.log({"x": 1.0})
    assert logged == [{"x": 1.0}] and run.run.log != logged.append
    with pytest.raises(AttributeError, match="KnowledgeDistiller has no attribute 'nope'"):
        run.nope  # noqa: B018


def test_a_data_adaptor_may_be_set_later_and_a_run_that_is_over_says_its_losses_again() -> None:
    run, asked = distiller(num_train_epochs=1), []
    run.train_data_adaptor = lambda device, batch: (asked.append(1) or batch, batch)
    losses = run.train()
    assert len(asked) == 4 and "loss" in losses  # the probe and three batches
    assert run.train() == losses


@pytest.mark.case("D12")
@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_a_metric_is_named_as_transformers_names_it_or_plainly(prefix: str) -> None:
    options = {"dev_dataloader": batches(2), "greater_is_better": False}
    run = distiller(metric_for_best_model=f"{prefix}agreement", **options)
    metrics = run.train()
    assert metrics["best_agreement"] == metrics["eval_agreement"] == run.progress.best
    with pytest.raises(
        ConfigError, match="'eval_agrement' is not among .* accuracy, teacher_accuracy, agreement. Near"
    ):
        distiller(metric_for_best_model="eval_agrement", **options).train()


@pytest.mark.case("D12")
def test_a_metric_that_begins_with_eval_itself_comes_first() -> None:
    def evaluator(student, teacher, dataloader, accelerator):
        return {"eval_score": 1.0, "score": 2.0}

    run = distiller(dev_dataloader=batches(1), evaluator=evaluator, metric_for_best_model="eval_score")
    assert run.train()["best_eval_score"] == 1.0


def headless(layers: int) -> BertModel:
    return BertModel(bert(layers).config)


def clip() -> CLIPModel:
    side = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**side, "vocab_size": 40, "max_position_embeddings": 32, "eos_token_id": 39}
    vision = {**side, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def pairs() -> list[dict[str, torch.Tensor]]:
    return [{**batch, "pixel_values": torch.randn(4, 3, 8, 8)} for batch in batches(2, labels=False)]


NO_LOGITS: dict[str, Any] = {
    "embeddings": (lambda: (headless(2), headless(1)), batches, "pooler_output"),
    "teacher without a head": (lambda: (headless(2), bert(1)), batches, ""),
    "pictures and texts": (lambda: (clip(), clip()), pairs, "text_embeds"),
}


@pytest.mark.case("D15")
@pytest.mark.parametrize("models", NO_LOGITS)
def test_models_that_give_nothing_to_score_are_refused_before_step_1(models: str, tmp_path: Path) -> None:
    make, data, output = NO_LOGITS[models]
    teacher, student = make()
    name = f"output.{output}" if output else "layer1.hidden_states"
    config = [{"teacher": name, "student": name, "loss": "mse"}]
    options = {"train_dataloader": data(), "output_dir": tmp_path / "out"}
    run = distiller(config, teacher, student, dev_dataloader=data(), **options)
    with pytest.raises(DataError, match="no 'logits' to evaluate; it has: .* Give an evaluator of your own"):
        run.train()
    assert run.progress.step == 0 and not (tmp_path / "out").exists()
    options["evaluator"] = lambda student, teacher, dataloader, accelerator: {"score": 0.5}
    assert distiller(config, teacher, student, dev_dataloader=data(), **options).train()["eval_score"] == 0.5


@pytest.mark.case("D15")
def test_evaluation_data_that_a_model_cannot_read_is_refused_before_step_1() -> None:
    run = distiller(dev_dataloader=[{"attention_mask": batches(1)[0]["attention_mask"]}])
    with pytest.raises(DataError, match=r"batch 1 of the evaluation data \(attention_mask 4×6\): ValueError"):
        run.train()
    assert run.progress.step == 0

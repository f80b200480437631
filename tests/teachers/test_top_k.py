"""A cache of the largest logits: each loss in the table is what it is of all logits, or is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from runs import HARD, bert, distiller
from tolerance import near
from torch import Tensor

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.features.deferred import TopKLogits
from knowledge_distillation.losses.table import LOSSES
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

LOGITS = {"teacher": "output.logits", "student": "output.logits"}
SAID = [spec for spec in LOSSES if spec.top_k is not None]
OF_LOGITS = [spec for spec in LOSSES if not spec.hard and "vector" in spec.functions]
CLASSES, KEPT = 12, 4


def cached(config: list[dict], folder: Path, **options):
    teacher, student = bert(num_labels=CLASSES, seed=3), bert(2, num_labels=CLASSES)
    settings = {"teacher_cache": folder / "cache", "teacher_cache_top_k": KEPT, "learning_rate": 0.0, **options}
    return distiller(config, teacher, student, **settings)


def sides() -> tuple[Tensor, Tensor]:
    """Of the teacher all but some 1e-30 lies in four classes, whatever the temperature is."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, CLASSES, generator=generator, dtype=torch.float64)
    return student, torch.cat([teacher[:, :KEPT], 40 * teacher[:, KEPT:] - 700], -1)


@pytest.mark.case("A10")
@pytest.mark.parametrize("spec", SAID, ids=lambda spec: spec.name)
def test_what_can_be_said_of_the_largest_logits_is_the_loss_of_all(spec) -> None:
    student, whole = sides()
    few = TopKLogits.of(whole, KEPT, 2.0)
    context = make_context({"labels": torch.tensor([0, 1, 2, 3, 0, 11])})  # the last one is left out
    results = []
    for teacher in (whole, few):
        own = student.clone().requires_grad_()
        config = [
            {"teacher": "output.logits", "student": "output.logits", "loss": spec.name, "args": {"temperature": 2}}
        ]
        model = MultiLayerBasedDistillationLoss(config)
        torch.manual_seed(0)
        features = {Feature("output", "logits"): own}
        entry = model.config.check().entries[0]
        model.bind(entry, features, {Feature("output", "logits"): whole}, "vector", context)
        terms = model.terms(model.project(features), {Feature("output", "logits"): teacher}, context)
        results.append((terms.loss.detach(), torch.autograd.grad(terms.loss, own)[0]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@pytest.mark.case("A10")
def test_every_other_loss_is_refused_before_the_first_step(tmp_path: Path) -> None:
    others = ("crd", "margin_mse", "listwise_kl")  # need more of the batch than there is
    refused = [spec.name for spec in OF_LOGITS if spec.top_k is None and spec.name not in others]
    assert {"logit_standardization", "logits_mse", "mse", "reverse_kl", "cos", "cka", "pkt"} <= set(refused)
    config = [{**LOGITS, "loss": name, "projection": "none"} for name in refused]
    ends = [("js_divergence", {"beta": 1}), ("skewed_reverse_kl", {"skew": 0.0})]
    config += [{**LOGITS, "loss": name, "args": args} for name, args in ends]
    config += [
        {**LOGITS, "loss": "kl_divergence", "schedule": {"temperature": {"type": "linear", "start": 1, "end": 4}}}
    ]
    config += [{**LOGITS, "loss": "kl_divergence", "args": {"sample_temperature": "flsw"}}]
    with pytest.raises(ConfigError) as error:
        cached(config, tmp_path).plan()
    text = str(error.value)
    assert not (tmp_path / "cache").exists()
    for number, entry in enumerate(config):
        assert re.search(rf"\[{number}\] .*loss {entry['loss']}\b.*(needs every logit|temperature that changes)", text)
    assert "leave teacher_cache_top_k out (it is 4), or take one of adversarial, cross_entropy, dist, dkd, " in text


@pytest.mark.case("A10")
@pytest.mark.parametrize("loss", ["logit_standardization", "logits_mse"])
def test_a_loss_that_needs_all_logits_runs_with_a_cache_of_all(loss: str, tmp_path: Path) -> None:
    config = [{**LOGITS, "loss": loss}]
    live = cached(config, tmp_path, teacher_cache=None, teacher_cache_top_k=None).train()["loss"]
    stored = cached(config, tmp_path, teacher_cache_top_k=None, teacher_cache_dtype="float32").train()["loss"]
    assert stored == near(live)


@pytest.mark.case("A11")
def test_the_mass_of_the_rest_is_that_at_the_temperature() -> None:
    torch.manual_seed(0)
    logits = 2.5 * torch.randn(8, 1000, dtype=torch.float64)
    kept = logits.topk(50, -1).indices
    for temperature in (1.0, 2.0, 7.0):
        expected = 1 - (logits / temperature).softmax(-1).gather(-1, kept).sum(-1)
        few = TopKLogits.of(logits, 50, temperature).tensor()
        torch.testing.assert_close(1 - (few / temperature).softmax(-1).gather(-1, kept).sum(-1), expected)


@pytest.mark.case("A11")
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_run_at_a_temperature_reads_the_right_mass(temperature: float, tmp_path: Path) -> None:
    """With one class left over there is nothing to share out, so the loss is the very same."""
    config = [{**LOGITS, "loss": "kl_divergence", "args": {"temperature": temperature}}]
    options = {"teacher_cache_dtype": "float32", "num_train_epochs": 2}
    live = cached(config, tmp_path, teacher_cache=None, teacher_cache_top_k=None).train()["loss"]
    few = cached(config, tmp_path, teacher_cache_top_k=CLASSES - 1, **options).train()["loss"]
    assert few == near(live)


@pytest.mark.case("A11")
def test_entries_of_two_temperatures_are_refused(tmp_path: Path) -> None:
    config = [{**LOGITS, "loss": "kl_divergence", "args": {"temperature": 4}}, {**LOGITS, "loss": "dkd"}, *HARD]
    assert cached(config, tmp_path, train_dataloader=None or distiller().train_dataloader).plan()  # dkd's own is 4
    config[1] = {**LOGITS, "loss": "soft_cross_entropy"}
    with pytest.raises(ConfigError, match="output.logits is read at temperature 1, and by another entry at 4"):
        cached(config, tmp_path).plan()


def test_a_cache_of_another_temperature_is_refused(tmp_path: Path) -> None:
    run = cached([{**LOGITS, "loss": "kl_divergence", "args": {"temperature": 4}}], tmp_path)
    run.train()
    with pytest.raises(Exception, match="top 4 at temperature 4, this run has 12 in float16, top 4"):
        cached([{**LOGITS, "loss": "kl_divergence"}], tmp_path).train()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_classes_that_both_models_leave_out_come_back_so(dtype: str, tmp_path: Path) -> None:
    config = [{**LOGITS, "loss": "kl_divergence"}]
    values = {}
    for cache in (None, tmp_path):
        teacher, student = bert(num_labels=CLASSES, seed=3), bert(2, num_labels=CLASSES)
        for model in (teacher, student):
            with torch.no_grad():
                model.classifier.bias[-3:] = -torch.inf
        options = {} if cache is None else {"teacher_cache": cache, "teacher_cache_dtype": dtype}
        options |= {} if dtype == "int8" or cache is None else {"teacher_cache_top_k": 8}
        values[cache] = distiller(config, teacher, student, learning_rate=0.0, num_train_epochs=2, **options).train()
    assert values[tmp_path]["loss"] == pytest.approx(values[None]["loss"], rel=2e-2)

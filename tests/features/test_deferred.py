"""Maps that are given as queries and keys train a student as whole maps do, and are never built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny
from runs import HIDDEN, batches, bert, distiller, weights
from tolerance import assert_near, near
from torch import Tensor

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features import attention
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.features.deferred import AttentionMap, Deferred, attention_scores

MAP = {"teacher": "layer2.attention", "student": "layer1.attention"}
SCORES = {"teacher": "layer4.attention_scores", "student": "layer2.attention_scores", "loss": "mse"}
NOTE = "compared part by part, never kept whole"


@pytest.fixture
def large(monkeypatch):
    """Every map counts as large."""
    monkeypatch.setattr(attention, "SMALL", -1)


@pytest.fixture
def built(monkeypatch) -> list[torch.Size]:
    """The shapes of the maps that attention modules build."""
    shapes = []

    def counted(*args, **kwargs):
        scores = attention_scores(*args, **kwargs)
        shapes.append(scores.shape)
        return scores

    monkeypatch.setattr(attention, "attention_scores", counted)
    return shapes


FAMILIES = {
    "bert": ["layer2.attention", "layer1.attention_scores"],
    "modernbert": ["layer1.attention", "layer2.attention"],
    "gpt2": ["layer1.attention", "layer2.attention_scores"],
    "llama": ["layer1.attention", "layer2.attention_scores"],
    "vit": ["layer1.attention"],
    "t5": ["encoder_layer2.attention", "decoder_layer1.attention_scores", "decoder_layer2.cross_attention"],
    "bart": ["encoder_layer1.attention", "decoder_layer1.attention", "decoder_layer1.cross_attention"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_map_make_the_map(large, built, family):
    model = tiny(family)
    known = catalogue(model.model, model.inputs)
    places = {name: known.find(Feature(*name.rsplit(".", 1))).location for name in FAMILIES[family]}
    whole = Capture(model.model, places)
    expected = whole(model.inputs)
    whole.close()
    built.clear()
    capture = Capture(model.model, places, deferred=list(places))
    given = capture(model.inputs)
    capture.close()
    assert not built
    for name, feature in given.items():
        assert isinstance(feature, AttentionMap) and feature.requires_grad
        assert (feature.shape, feature.dtype, feature.device, feature.dim()) == (
            expected[name].shape,
            expected[name].dtype,
            expected[name].device,
            4,
        )
        assert_near(feature.tensor(), expected[name])
        assert not feature.detach().requires_grad and not feature.detach().tensor().requires_grad


def test_a_small_map_is_built(built):
    model = tiny("bert")
    place = catalogue(model.model, model.inputs).find(Feature("layer2", "attention")).location
    capture = Capture(model.model, {"map": place}, deferred=["map"])
    assert isinstance(capture(model.inputs)["map"], Tensor) and len(built) > 0
    capture.close()


def test_a_map_that_another_tap_wants_whole_is_whole_for_all(large):
    model = tiny("bert")
    place = catalogue(model.model, model.inputs).find(Feature("layer2", "attention")).location
    captures = [Capture(model.model, {"map": place}, deferred=some, stop_early=False) for some in (["map"], [])]
    with attention.observe(frozenset(), lambda module, tensors: None):
        assert isinstance(captures[0](model.inputs)["map"], Tensor)
    captures[1].close()
    assert isinstance(captures[0](model.inputs)["map"], Deferred)
    captures[0].close()


# --- a whole run -----------------------------------------------------------------------------------


def run_of(entries: list[dict[str, Any]], **options: Any) -> tuple[dict[str, float], dict[str, Tensor], Any]:
    models = {"teacher": bert(initializer_range=0.3), "student": bert(2, seed=1, initializer_range=0.3)}
    plain = torch.optim.SGD(models["student"].parameters(), lr=1e-3)  # Adam would blow up the rounding of a gradient 0
    run = distiller(entries, **models, train_dataloader=batches(4), optimizer=plain, **options)
    notes = run.plan().notes
    result = run.train()
    return result, weights(run.student), notes


CONFIGS = {
    "mse": [{**MAP, "loss": "mse"}],
    "scores": [SCORES],
    "kl": [{**MAP, "loss": "attention_kl", "args": {"epsilon": 1e-3}}],
    "cross-entropy": [{**MAP, "loss": "attention_cross_entropy"}],
    "two-losses-of-one-map": [{**MAP, "loss": "mse"}, {**MAP, "loss": "attention_kl"}, SCORES, *HIDDEN],
    "scheduled": [
        {**MAP, "loss": "attention_kl", "schedule": {"epsilon": {"type": "linear", "start": 0.01, "end": 0.001}}}
    ],
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean", "sequence_mean"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_is_the_same_with_maps_that_are_never_built(monkeypatch, built, config, reduction):
    entries = [{**entry, "reduction": reduction} for entry in CONFIGS[config]]
    assert any(not batch["attention_mask"].all() for batch in batches(4))
    whole, by_whole, notes = run_of(entries, gradient_accumulation_steps=2, max_grad_norm=0)
    assert not any(NOTE in note for note in notes)
    monkeypatch.setattr(attention, "SMALL", -1)
    built.clear()
    parts, by_parts, notes = run_of(entries, gradient_accumulation_steps=2, max_grad_norm=0)
    assert not any(shape[0] == 4 for shape in built)  # names are looked up on two rows, batches have four
    assert sum(NOTE in note for note in notes) == 2
    assert parts.keys() == whole.keys()
    assert parts == near(whole)
    assert_near(by_parts, by_whole)


def test_a_run_in_bfloat16_is_nearly_the_same(monkeypatch):
    entries = [{**MAP, "loss": "attention_kl"}, {**SCORES, "weight": 0.1}]
    whole, *_ = run_of(entries, mixed_precision="bf16")
    monkeypatch.setattr(attention, "SMALL", -1)
    parts, *_ = run_of(entries, mixed_precision="bf16")
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=2e-2)


def a_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().sum(-1)


KEPT = {
    "a-callable": [{**MAP, "loss": a_loss}],
    "a-projection": [{**MAP, "loss": "mse", "projection": "heads"}],
    "another-loss-of-the-same-map": [{**MAP, "loss": "mse"}, {**MAP, "loss": a_loss}],
    "a-loss-without-a-fused-form": [
        {"teacher": ["layer2.attention"], "student": ["layer1.attention"], "loss": "bert_emd"}
    ],
}


@pytest.mark.parametrize("config", KEPT)
def test_a_map_that_something_needs_whole_is_built(large, built, config):
    *_, notes = run_of(KEPT[config])
    assert built and not any(NOTE in note for note in notes)


def test_a_map_is_built_for_the_model_that_needs_it_and_for_no_other(large):
    """The teacher's map is read by a callable as well, the student's by a loss that takes parts alone."""
    other = {"teacher": "layer2.attention", "student": "layer2.attention", "loss": a_loss}
    *_, notes = run_of([{**MAP, "loss": "mse"}, other])
    assert [note for note in notes if NOTE in note] == [f"student: layer1.attention: {NOTE}"]


def test_a_model_without_the_interface_learns_from_the_parts_of_a_teacher_with_it(monkeypatch):
    def losses() -> tuple[float, list[str]]:
        run = distiller([{**MAP, "loss": "attention_kl"}], bert(initializer_range=0.3), tiny("mpnet", 0.0).model)
        notes = [note for note in run.plan().notes if NOTE in note]
        return run.train()["loss"], notes

    whole, nothing = losses()
    monkeypatch.setattr(attention, "SMALL", -1)
    parts, notes = losses()
    assert nothing == [] and notes == [f"teacher: layer2.attention: {NOTE}"]
    assert parts == near(whole)


def test_a_student_teaches_itself_by_parts(monkeypatch):
    entries = [{"teacher": "layer2.attention", "student": "layer1.attention", "teacher_name": "self", "loss": "mse"}]
    whole, *_ = run_of(entries)
    monkeypatch.setattr(attention, "SMALL", -1)
    parts, _, notes = run_of(entries)
    assert any(NOTE in note for note in notes)
    assert parts["loss"] == near(whole["loss"])


def test_a_misfit_is_said_as_ever(large):
    from knowledge_distillation import ConfigError

    with pytest.raises(ConfigError, match="the student has 4 heads, the teacher 2"):
        distiller([{**MAP, "loss": "mse"}], bert(), bert(2, heads=4)).plan()
    with pytest.raises(ConfigError, match="epsilon is above 0 and far below 1; found 2"):
        distiller([{**MAP, "loss": "attention_kl", "args": {"epsilon": 2}}]).plan()

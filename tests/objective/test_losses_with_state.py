"""Losses that are modules: built from the probed shapes, trained and kept with the projections."""

from __future__ import annotations

import pytest
import torch
from runs import HARD, SOFT, batches, bert, distiller, same, weights
from torch import Tensor, nn
from training_script import collate, rows

from knowledge_distillation import ConfigError
from knowledge_distillation.losses import table

STATES = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states"}


class Scaled(nn.Module):
    """A learned scale for each of the student's numbers, and a memory of the samples it saw."""

    def __init__(self, student: Tensor, teacher: Tensor, start: float = 1.0, num_samples: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((student.shape[-1],), start))
        self.register_buffer("seen", torch.zeros(num_samples or 1))
        self.steps: list[float] = []

    def forward(
        self, student: Tensor, teacher: Tensor, sample_index: Tensor | None = None, size: float = 1.0
    ) -> Tensor:
        if self.training:
            self.steps.append(size)
            if sample_index is not None:
                self.seen[sample_index] += 1
        return size * (student * self.scale - teacher).square().mean(-1)


class Knows(nn.Module):
    def __init__(self, student: Tensor, teacher: Tensor, teacher_model: nn.Module, teacher_features: tuple) -> None:
        super().__init__()
        self.told = [type(teacher_model).__name__, *map(str, teacher_features)]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1)


def entry(loss, **changes):
    return {**STATES, "loss": loss, "name": "it", **changes}


def test_a_class_is_built_on_the_probe_with_its_own_arguments_and_trains():
    made = distiller([entry(Scaled, args={"start": 2.0, "size": 3.0})], bert(2, seed=1), bert(1, seed=3))
    made.plan()
    module = made.loss_model.losses["it"]
    assert module.scale.shape == (16,) and module.scale[0] == 2 and not module.steps
    made.train()
    assert module.steps == [3.0] * 3 and not (module.scale == 2).any()


def test_an_argument_of_the_call_may_follow_a_schedule_and_one_of_the_constructor_may_not():
    course = {"type": "linear", "start": 0, "end": 3}
    made = distiller([entry(Scaled, schedule={"size": course}), *HARD], bert(2, seed=1), bert(1, seed=3))
    made.train()
    assert made.loss_model.losses["it"].steps == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"\[0\] schedule of start: loss Scaled takes no such argument at each step"):
        distiller([entry(Scaled, schedule={"start": course})], bert(2, seed=1), bert(1, seed=3)).plan()


def test_a_memory_of_the_training_set_gets_its_size_and_the_place_of_each_row():
    options = {"train_dataset": rows(10), "data_collator": with_index, "per_device_train_batch_size": 4}
    made = distiller([entry(Scaled)], bert(2, seed=1), bert(1, seed=3), **options)
    made.train()
    assert made.loss_model.losses["it"].seen.tolist() == [1] * 10


def with_index(batch):
    return {**collate(batch), "sample_index": torch.tensor([row["sample_index"] for row in batch])}


def test_the_teacher_and_the_names_of_its_features_are_told():
    made = distiller([entry(Knows)], bert(2, seed=1), bert(1, seed=3))
    made.plan()
    made.close()
    assert made.loss_model.losses["it"].told == ["BertForSequenceClassification", "layer2.hidden_states"]


def test_its_parameters_have_the_rate_of_the_entry():
    config = [entry(Scaled, learning_rate=0.05)]
    made = distiller(config, bert(2, seed=1), bert(1, seed=3), max_steps=1, warmup_ratio=0.0, weight_decay=0.0)
    made.train()
    moved = (made.loss_model.losses["it"].scale.detach() - 1).abs()
    assert moved.max().item() == pytest.approx(0.05, rel=1e-2)


def test_it_is_saved_with_the_run_and_rests_in_other_stages(tmp_path):
    config = [entry(Scaled, stage="a"), {**SOFT[0], "stage": "b"}]
    options = {"save_total_limit": 9, "save_steps": 1}

    def run(**more):
        return distiller(config, bert(2, seed=1), bert(1, seed=3), **options, **more)

    whole, again = run(output_dir=tmp_path / "run"), run()
    whole.train()
    at_its_end = weights(whole.loss_model.losses["it"])
    for step, as_at_its_end in ((2, False), (3, True), (5, True)):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        again.load_state(student=folder, projections=folder, optimizer=folder, progress=folder)
        assert same(weights(again.loss_model.losses["it"]), at_its_end) is as_at_its_end
    again.close()


def test_each_peer_has_its_own():
    made = distiller([entry(Scaled)], bert(2, seed=1), bert(1, seed=3), peer_model=bert(1, seed=4))
    made.train()
    held = made.loss_model.losses
    assert list(held) == ["it", "it@peer"] and not torch.equal(held["it"].scale, held["it@peer"].scale)


# --- what a named loss may say of itself -------------------------------------------------------------------------


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    return (student @ student.mT - teacher @ teacher.mT).square().mean(-1)


def mean_of_layers(student: tuple, teacher: tuple) -> Tensor:
    return (torch.stack(student).mean(0) - torch.stack(teacher).mean(0)).square().mean(-1)


@pytest.fixture
def named(monkeypatch):
    """Put a function into the table of names."""

    def put(name, function, **particulars):
        method = table.LossSpec(name, dict.fromkeys(("vector", "tokens", "attention"), function), **particulars)
        others = tuple(one for one in table.LOSSES if one.name != name)
        monkeypatch.setattr(table, "LOSSES", (*others, method))

    return put


def test_a_loss_that_looks_at_shapes_itself_gets_no_projection_unless_asked(named):
    named("gram", gram, own_shapes=True)
    wide = bert(2, width=24, heads=4, seed=1)
    for projection, held in (("auto", []), ("linear", ["it"])):
        made = distiller([entry("gram", projection=projection)], wide, bert(1, seed=3))
        made.train()
        assert list(made.loss_model.projections) == held


def test_a_named_loss_of_several_features_takes_lists(named):
    named("mean_of_layers", mean_of_layers, several=True, own_shapes=True)
    several = {"teacher": ["layer{1,2}.hidden_states"], "student": ["layer1.hidden_states"]}
    batch = batches(1)[0]
    made = distiller(
        [{**several, "loss": "mean_of_layers"}], bert(2, seed=1), bert(1, seed=3), train_dataloader=[batch]
    )
    assert made.train()["loss"] > 0


def test_a_loss_of_probabilities_takes_no_scores(named):
    named("maps", lambda student, teacher: (student - teacher).square().mean(-1))
    named("rows", row_divergence, probabilities=True)
    sides = {"teacher": "layer2.attention_scores", "student": "layer1.attention_scores"}
    distiller([{**sides, "loss": "maps"}], bert(2, seed=1), bert(1, seed=3)).train()
    said = (
        r"\[0\] loss rows compares probabilities, and layer1.attention_scores are scores. Nearest: layer1.attention$"
    )
    with pytest.raises(ConfigError, match=said):
        distiller([{**sides, "loss": "rows"}], bert(2, seed=1), bert(1, seed=3)).plan()


def row_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher * (teacher.clamp(min=1e-9).log() - student.clamp(min=1e-9).log())).sum(-1)

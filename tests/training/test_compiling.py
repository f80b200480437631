"""Compiled layers: the same losses, said in the plan, and models left as they were."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from runs import HARD, SOFT, batches, bert, distiller, weights

from knowledge_distillation import ConfigError, student_from_teacher
from knowledge_distillation.training import compiling
from knowledge_distillation.training.callbacks import Callback

HIDDEN = {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"}
WITHIN = {"teacher": "bert.encoder.layer.3.output.dense.output", "student": "bert.encoder.layer.1.output.dense.output"}
CONFIG = [HIDDEN, *SOFT, *HARD]


class Compiled(Callback):
    """How many layers of each model are compiled while it trains."""

    def on_step_end(self, distiller: Any) -> None:
        models = (distiller.teacher.model, distiller.student)
        self.layers = [sum("forward" in layer.__dict__ for layer in model.bert.encoder.layer) for model in models]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces as the real one does, and compiles nothing."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def test_a_compiled_run_gives_what_a_plain_one_gives(quick: None) -> None:
    runs = []
    for on in (False, True):
        student, seen = student_from_teacher(bert(), [2, 4]), Compiled()
        run = distiller(CONFIG, student=student, torch_compile=on, callbacks=[seen], learning_rate=1e-3)
        runs.append((run.train(), weights(student), seen.layers))
    (plain, left, none), (compiled, right, layers) = runs
    assert none == [0, 0] and layers == [4, 2]
    assert compiled == pytest.approx(plain, rel=1e-6, abs=1e-7)
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-4


def test_the_models_are_left_as_they_were(quick: None) -> None:
    student = student_from_teacher(bert(), [2, 4])
    run = distiller(CONFIG, student=student, torch_compile=True)
    run.plan()
    assert all("forward" in layer.__dict__ for layer in student.bert.encoder.layer)
    run.close()
    assert not any("forward" in module.__dict__ for module in student.modules())
    run.train()
    assert not any(
        "forward" in module.__dict__ for model in (student, run.teacher.model) for module in model.modules()
    )


def test_the_plan_says_how_many_layers_are_compiled(quick: None) -> None:
    notes = distiller(CONFIG, torch_compile=True).plan().notes
    assert "teacher: 4 of 4 layers are compiled" in notes and "student: 2 of 2 layers are compiled" in notes
    assert not [note for note in distiller(CONFIG).plan().notes if "compiled" in note]


def test_a_layer_with_a_hook_inside_is_left_alone(quick: None) -> None:
    seen = Compiled()
    config = [{**WITHIN, "loss": "mse"}, *CONFIG]
    run = distiller(config, torch_compile=True, callbacks=[seen])
    assert "teacher: 3 of 4 layers are compiled: features are taken from within the others" in run.plan().notes
    assert run.train()["loss"] == pytest.approx(distiller(config).train()["loss"], rel=1e-5)
    assert seen.layers == [3, 1]


def test_models_whose_attention_is_mapped_are_left_alone(quick: None) -> None:
    maps = {"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"}
    notes = distiller([maps, *SOFT], torch_compile=True).plan().notes
    assert "teacher: 0 of 4 layers are compiled: its attention is looked into" in notes


def test_a_student_that_recomputes_is_left_alone(quick: None) -> None:
    student = bert(2)
    student.gradient_checkpointing_enable()
    notes = distiller(CONFIG, student=student, torch_compile=True).plan().notes
    assert "student: 0 of 2 layers are compiled: it recomputes them" in notes


def test_a_layer_that_stands_several_times_is_compiled_once(quick: None) -> None:
    student = bert(3)
    student.bert.encoder.layer[2] = student.bert.encoder.layer[0]
    run = distiller(CONFIG, student=student, torch_compile=True)
    assert "student: 2 of 2 layers are compiled" in run.plan().notes
    run.close()
    assert not any("forward" in module.__dict__ for module in student.modules())


def test_a_model_under_two_names_is_compiled_once(quick: None) -> None:
    model = bert(2)
    notes, restore = compiling.compile_layers({"teacher": model, "student": model}, torch.device("cpu"))
    assert [note.split(": ")[1] for note in notes] == ["2 of 2 layers are compiled"] * 2
    restore()
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_weights_of_its_own(quick: None, copied: Any) -> None:
    student, inputs = bert(2).eval(), batches(1, labels=False)[0]
    _, restore = compiling.compile_layers({"student": student}, torch.device("cpu"))
    before = student(**inputs).logits
    other = copied(student)
    for parameter in student.bert.encoder.parameters():
        parameter.data.add_(0.1)
    assert not torch.allclose(student(**inputs).logits, before, atol=1e-3)
    for model in (other, copied(other)):
        torch.testing.assert_close(model(**inputs).logits, before)
        layer = model.bert.encoder.layer[0]
        assert layer.forward.__self__ is layer
    restore()


def test_other_shapes_are_not_compiled_anew(quick: None) -> None:
    graphs: list[int] = []

    class Count(Callback):
        def on_step_end(self, distiller: Any) -> None:
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch, pad = batches(1)[0], torch.nn.functional.pad
    # Lengths that are no other size as well: the compiler takes equal sizes for one.
    data = [{k: v if k == "labels" else pad(v, (0, more)) for k, v in batch.items()} for more in (5, 7, 9)]
    distiller(CONFIG, torch_compile=True, train_dataloader=data, callbacks=[Count()]).train()
    assert graphs[0] and graphs == graphs[:1] * 3


def test_a_machine_that_cannot_compile_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(ConfigError, match="torch_compile: torch.compile does not work here: .*no compiler here"):
        distiller(CONFIG, torch_compile=True).plan()

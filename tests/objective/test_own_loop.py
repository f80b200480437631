"""A loop of one's own on plain PyTorch models: (x, y) batches, layers by number, log, save, load in part, go on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tolerance import near
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from knowledge_distillation import ConfigError, KnowledgeDistiller
from knowledge_distillation.evaluation.report import epoch_line
from knowledge_distillation.presets import attention_transfer, hinton


class MLP(nn.Module):
    """Three linear maps, two of them in a container, and a switch that is no input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.rest = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: torch.Tensor, features: bool = False) -> torch.Tensor:
        return self.rest(self.first(x).relu())


class CNN(nn.Sequential):
    def __init__(self, width: int) -> None:
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU()]
        super().__init__(
            *layers, nn.Conv2d(width, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )


def rows(number: int = 24, shape: tuple[int, ...] = (6,)) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, *shape, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (number,), generator=generator))


def made(teacher: nn.Module | None, student: nn.Module, entries: list, **more) -> KnowledgeDistiller:
    data = (
        {}
        if "train_dataset" in more
        else {"train_dataloader": DataLoader(rows(), 8), "dev_dataloader": DataLoader(rows(), 8)}
    )
    settings = {"learning_rate": 1e-2, "mixed_precision": "no", "disable_tqdm": True, "device": "cpu", **data, **more}
    return KnowledgeDistiller(teacher, student, entries, **settings)


def seeded(model: type[nn.Module], width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model(width)


# --- what a batch is, and what a number counts -----------------------------------------------------------------------


def test_a_pair_is_the_input_and_its_label():
    student = seeded(MLP, 4)
    x, y = rows().tensors
    expected = F.cross_entropy(student(x), y).item()
    run = made(None, student, hinton(0), train_dataloader=[(x, y)], learning_rate=0.0)
    assert run.train_epoch()["loss"] == near(expected)
    accuracy = (student.eval()(x).argmax(-1) == y).float().mean().item()
    assert run.evaluate() == {"accuracy": pytest.approx(accuracy)}
    run.close()


def test_a_data_set_of_pairs_is_batched():
    run = made(None, seeded(MLP, 4), hinton(0), train_dataset=rows(), eval_dataset=rows(), num_train_epochs=1)
    assert {"loss", "eval_accuracy", "best_accuracy"} < run.train().keys()


@pytest.mark.parametrize(
    ("model", "shape", "numbers", "paths"),
    [
        (MLP, (6,), ["layer1", "layer2", "layer-1"], ["first", "rest.0", "rest.2"]),
        (CNN, (1, 6, 6), ["layer1", "layer-3", "layer3", "layer-1"], ["0", "2", "4", "7"]),
    ],
    ids=["mlp", "cnn"],
)
def test_a_number_is_that_of_a_linear_map_or_convolution_in_the_order_they_run(model, shape, numbers, paths):
    entries = [
        {"teacher": f"{path}.output", "student": f"{number}.hidden_states", "loss": "mse", "name": str(i)}
        for i, (number, path) in enumerate(zip(numbers, paths, strict=True))
    ]
    run = made(
        seeded(model, 4), seeded(model, 4), entries, train_dataloader=[rows(8, shape)[:]], teacher_dtype="float32"
    )
    losses = run.train_epoch()
    run.close()
    assert [losses[str(i)] for i in range(len(numbers))] == [pytest.approx(0.0, abs=1e-12)] * len(numbers)


def test_a_layer_that_runs_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.same(self.same(x)))

    entry = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": "it"}
    student = Twice()
    x, y = rows().tensors
    once = student.same(x)
    expected = F.mse_loss(once, student.same(once)).item()
    run = made(copy.deepcopy(student), student, [entry], train_dataloader=[(x, y)], teacher_dtype="float32")
    assert run.train_epoch()["it"] == near(expected)
    run.close()


def test_hinton_at_the_layers_before_the_last():
    teacher, student = seeded(MLP, 5), seeded(MLP, 5, seed=1)
    x, y = rows().tensors
    inner = {}
    for name, model in (("teacher", teacher), ("student", student)):
        inner[name] = F.log_softmax(model.rest[0](model.first(x).relu()) / 3.0, -1).detach()
    soft = F.kl_div(inner["student"], inner["teacher"], reduction="batchmean", log_target=True)
    expected = 0.25 * 9.0 * soft.item() + 0.75 * F.cross_entropy(student(x), y).item()
    entries = hinton(0.25, 3.0, student_layer=-2, teacher_layer=2)
    run = made(teacher, student, entries, train_dataloader=[(x, y)], teacher_dtype="float32")
    assert run.train_epoch()["loss"] == near(expected)
    run.close()


def test_layers_of_other_widths_are_projected_and_logits_are_not():
    run = made(seeded(MLP, 5), seeded(MLP, 4), hinton(student_layer=-2, teacher_layer=-2))
    assert [tuple(p.shape) for p in run.loss_model.parameters()] == []
    run.plan()
    assert [tuple(p.shape) for p in run.loss_model.parameters()] == [(5, 4), (5,)]
    run.close()


def test_attention_transfer_takes_the_same_numbers_on_both_sides():
    assert attention_transfer([1, 3]) == attention_transfer([1, 3], [1, 3])
    data = {"train_dataloader": [rows(8, (1, 6, 6))[:]]}
    run = made(seeded(CNN, 5), seeded(CNN, 4), attention_transfer([1, 3]), **data)
    losses = run.train_epoch()
    run.close()
    assert (
        losses["attention_transfer:layer1_hidden_states"] > 0 and losses["attention_transfer:layer3_hidden_states"] > 0
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (hinton(student_layer=9), r"layer9.hidden_states: the student has 3 layers. Nearest: layer3.hidden_states"),
        (hinton(teacher_layer=-4), r"layer-4.hidden_states: the teacher has 3 layers. Nearest: layer1.hidden_states"),
    ],
)
def test_a_number_too_far(entries, message):
    with pytest.raises(ConfigError, match=message):
        made(seeded(MLP, 4), seeded(MLP, 4), entries).plan()


# --- the loop --------------------------------------------------------------------------------------------------------


def looped(run: KnowledgeDistiller, epochs: int, start: int = 0) -> None:
    for _ in range(start, epochs):
        run.train_epoch()
        run.save()
    run.close()


def alike(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_state_is_loaded_in_part_and_a_run_goes_on_to_a_longer_total(tmp_path: Path):
    entries, teacher = hinton(student_layer=-2, teacher_layer=-2), seeded(MLP, 5)
    first = made(teacher, seeded(MLP, 4), entries, output_dir=tmp_path, num_train_epochs=4)
    looped(first, 2)
    momentum = [state["exp_avg"].clone() for state in first.optimizer.state.values()]
    saved = {name: tensor.clone() for name, tensor in first.student.state_dict().items()}
    looped(first, 4, start=2)

    alone = made(teacher, seeded(MLP, 4, seed=3), entries)
    half = tmp_path / "half"
    looped(made(teacher, seeded(MLP, 4), entries, output_dir=half, num_train_epochs=4), 2)
    assert alone.load_state(student=half) == 0
    assert all(torch.equal(tensor, saved[name]) for name, tensor in alone.student.state_dict().items())
    assert not alone.optimizer.state
    alone.close()

    both = made(teacher, seeded(MLP, 4, seed=3), entries)
    assert both.load_state(student=half, optimizer=half) == 0
    assert all(torch.equal(tensor, saved[name]) for name, tensor in both.student.state_dict().items())
    loaded = [state["exp_avg"] for state in both.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(loaded, momentum, strict=True))
    both.close()

    longer = made(teacher, seeded(MLP, 4, seed=3), entries, output_dir=half, num_train_epochs=4)
    done = longer.load_state(student=half, projections=half, optimizer=half, progress=half)
    assert done == 2
    looped(longer, 4, start=done)
    assert alike(longer.student, first.student) and alike(longer.loss_model, first.loss_model)


def test_losses_and_values_of_ones_own_reach_the_trackers(tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = made(None, seeded(MLP, 4), hinton(0), output_dir=tmp_path, report_to=["tensorboard"], logging_steps=2)
    for _ in range(2):
        run.train_epoch()
        run.log({"eval_accuracy": run.evaluate()["accuracy"]})
    run.close()
    [file] = (tmp_path / "distillation").glob("events.out.tfevents.*")
    read = events.EventAccumulator(str(file)).Reload()
    assert [event.step for event in read.Scalars("eval_accuracy")] == [3, 6]
    assert [event.step for event in read.Scalars("loss")] == [2, 3, 4, 6]


def test_an_epoch_is_a_line():
    assert epoch_line(2, 15, {"loss": 0.43119, "accuracy": 0.9125}) == "epoch  2/15  loss 0.4312  accuracy 0.9125"

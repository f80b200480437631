"""Rows and labels that do not fit: seen before the first step where the data says so, else named with their batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from families import hooks_left_on
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller, same, tokenizer_of, weights
from torch import Tensor
from training_script import collate, rows

from knowledge_distillation import DataError, DistillationError
from knowledge_distillation.evaluation.evaluators import TaskEvaluator
from knowledge_distillation.training import diagnosis


def second(**changes: Any) -> list[dict[str, Any]]:
    """Three batches, something else in the second; None takes a key out."""
    made = batches(3)
    made[1] = {key: value for key, value in {**made[1], **changes}.items() if value is not None}
    return made


def long_rows(length: int = 40) -> dict[str, Tensor]:
    """Four rows of which the second is this long, and the others have 10 and 20 tokens."""
    mask = torch.ones(4, length, dtype=torch.long)
    mask[0, 10:] = mask[2:, 20:] = 0
    return {"input_ids": torch.full((4, length), 3), "attention_mask": mask}


def only_two_columns(device: torch.device, batch: Any) -> Any:
    return {"input_ids": batch["input_ids"][:, :2]}, batch


class FailsOnTheWord(torch.nn.Module):
    """A student that cannot read one word."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert(1, vocab_size=1001)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if (input_ids == 1000).any():
            raise ZeroDivisionError("no such word")
        return self.inner(input_ids, attention_mask)


class FailsLater:
    """A loss that fails at its third batch: the probe is one call."""

    __name__ = "fails_later"

    def __init__(self) -> None:
        self.left = 3

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError("as it happens")
        return (student - teacher).square().mean(-1)


def word(where: int, number: int) -> Tensor:
    ids = batches(3)[1]["input_ids"].clone()
    ids[where, 1] = number
    return ids


labels = torch.tensor
LATER: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {  # what is given -> what the error says
    "no labels": (
        lambda: {"config": SOFT + HARD, "train_dataloader": second(labels=None)},
        ["batch 2 of epoch 1 (input_ids 4×9, attention_mask 4×9)", "no 'labels', which the first batch had and dist"]
        + ["distill_config[1]"],
    ),
    "no column that a loss asks for": (
        lambda: {"config": [{**SOFT[0], "loss": asks_for_weight}], "train_dataloader": with_weight(second())},
        ["batch 2 of epoch 1", "it has no 'row_weight', which the first batch had and distill_config[0]"],
    ),
    "label": (
        lambda: {"config": SOFT + HARD, "train_dataloader": second(labels=labels([0, 1, 7, 1]))},
        [
            "batch 2 of epoch 1",
            "row 2 has label 7, and the classes are 0 to 1: distill_config[1] compares",
        ],
    ),
    "label below 0": (
        lambda: {"config": HARD, "train_dataloader": second(labels=labels([-1, 1, 0, -100]))},
        ["row 0 has label -1, and the classes are 0 to 1: distill_config[0]"],
    ),
    "labels of other rows": (
        lambda: {"config": HARD, "train_dataloader": second(labels=labels([1, 0]))},
        ["batch 2 of epoch 1 (input_ids 4×9, attention_mask 4×9, labels 2): distill_config[0]: "],
    ),
    "long row": (
        lambda: {"config": HARD, "train_dataloader": second(**long_rows())},
        ["batch 2 of epoch 1 (input_ids 4×40", "row 1 has 40 tokens, and the student takes 32 at most"],
    ),
    "long row in a window of several batches": (
        lambda: {"config": HARD, "train_dataloader": second(**long_rows()), "gradient_accumulation_steps": 3},
        ["batch 2 of epoch 1", "row 1 has 40 tokens, and the student takes 32 at most"],
    ),
    "row that is too long for the teacher": (
        lambda: {
            "config": HIDDEN,
            "teacher": bert(2, max_position_embeddings=16),
            "student": bert(1),
            "train_dataloader": second(**long_rows(18)),
        },
        ["row 1 has 18 tokens, row 2 has 18 tokens, row 3 has 18 tokens, and the teacher takes 16 at most"],
    ),
    "word": (
        lambda: {"train_dataloader": second(input_ids=word(2, 77))},
        ["the student fails on row 2: IndexError: index 77 of an embedding that has 40 rows; the teacher fails on"],
    ),
    "row that only the model knows of": (
        lambda: {"config": HARD, "student": FailsOnTheWord(), "train_dataloader": second(input_ids=word(3, 1000))},
        ["batch 2 of epoch 1", "the student fails on row 3: ZeroDivisionError: no such word"],
    ),
    "no ids": (
        lambda: {"config": HARD, "train_dataloader": second(input_ids=None)},
        ["batch 2 of epoch 1 (attention_mask 4×9, labels 4): the student fails on the batch: ValueError"],
    ),
    "batch of another kind": (
        lambda: {"config": HARD, "train_dataloader": [batches(1)[0], "text"]},
        ["batch 2 of epoch 1 (str): a batch is a str"],
    ),
    "loss of one's own": (
        lambda: {"config": [*SOFT, {**SOFT[0], "loss": FailsLater(), "name": "mine"}]},
        [
            "batch 3 of epoch 1 (input_ids 4×7",
            "distill_config[1]: loss fails_later failed: ZeroDivisionError: as ",
        ],
    ),
    "data adaptor": (
        lambda: {"config": HARD, "train_dataloader": second(labels=None), "train_data_adaptor": takes_labels},
        ["batch 2 of epoch 1 (input_ids 4×9, attention_mask 4×9): KeyError: 'labels'"],
    ),
    "collator": (
        lambda: (
            {"config": HARD, "train_dataset": Drawn(rows(12), without="labels"), "data_collator": collate}
            | {"per_device_train_batch_size": 4, "group_by_length": False}
        ),
        ["of epoch 1: row ", " has no 'labels' (KeyError: 'labels')"],
    ),
}


def asks_for_weight(student: Tensor, teacher: Tensor, row_weight: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1) * row_weight


def with_weight(made: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [batch if number == 1 else {**batch, "row_weight": torch.ones(4)} for number, batch in enumerate(made)]


def takes_labels(device: torch.device, batch: Any) -> Any:
    return batch, {**batch, "labels": batch["labels"].clone()}


class Drawn(torch.utils.data.Dataset[Any]):
    """Rows that say nothing of themselves before they are drawn; the sixth lacks a key."""

    def __init__(self, made: list[dict[str, Any]], without: str) -> None:
        self.made = made
        del made[5][without]

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.made[place]


@pytest.mark.case("D6", "D7", "D9")
@pytest.mark.parametrize("what", LATER)
def test_an_error_of_a_later_batch_names_batch_row_and_entry(what: str, tmp_path: Path) -> None:
    given, messages = LATER[what]
    run = distiller(**{"config": SOFT, "output_dir": tmp_path, **given()})
    with pytest.raises(DistillationError) as raised:
        run.train()
    for message in messages:
        assert message in str(raised.value)
    assert "\n" not in str(raised.value) and raised.value.__cause__ is not None
    assert hooks_left_on(run.student) == []


def test_the_batch_is_counted_within_its_epoch_and_looking_for_the_row_changes_nothing() -> None:
    class OfEpochs(list[Any]):
        def __iter__(self) -> Any:
            return iter(second(labels=labels([0, 1, 7, 1])) if run.progress.epoch == 1 else batches(3))

    run = distiller(HARD, train_dataloader=OfEpochs([1, 2, 3]), num_train_epochs=3)
    before: dict[str, Tensor] = {}
    original = diagnosis._explained

    def kept(*given: Any) -> Any:
        before.update(weights(run.student))
        return original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "_explained", kept)
        with pytest.raises(DataError, match="batch 2 of epoch 2 .*row 2 has label 7"):
            run.train()
    assert same(before, weights(run.student))


def data_set(place: int, **changes: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"input_ids": [1] * (3 + i % 5), "labels": i % 2} for i in range(20)]
    made[place] |= changes
    return made


EARLY: dict[str, tuple[dict[str, Any], str]] = {
    "long row": (
        {"input_ids": [2] * 40},
        "row 7 of the training data has 40 tokens, and the student takes 32 at most",
    ),
    "label": ({"labels": 7}, r"row 7 has label 7, and the classes are 0 to 1: distill_config\[0\] compares"),
    "no label": ({"labels": None}, "row 7 of the training data has no 'labels', which others have"),
}


@pytest.mark.case("D7", "D9")
@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list])
@pytest.mark.parametrize("what", EARLY)
def test_a_data_set_that_says_so_is_refused_before_the_first_step(what: str, form: Any, tmp_path: Path) -> None:
    changes, message = EARLY[what]
    options = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": 4, "output_dir": tmp_path / "out"}
    run = distiller(HARD, train_dataset=form(data_set(7, **changes)), **options)
    with pytest.raises(DataError, match=message):
        run.train()
    assert run.progress.step == 0 and not (tmp_path / "out").exists()
    assert hooks_left_on(run.student) == []


@pytest.mark.case("D9")
def test_rows_as_long_as_the_model_reads_train_whatever_its_config_calls_its_positions() -> None:
    options = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": 4}
    run = distiller(HARD, train_dataset=data_set(7, input_ids=[2] * 32), **options)
    before = weights(run.student)
    run.plan()
    assert same(before, weights(run.student))
    run.train()
    assert run.progress.step == 5


AS_THEY_MEAN: dict[str, Callable[[Tensor], Any]] = {
    "bool": Tensor.bool,
    "int32": Tensor.int,
    "uint8": lambda given: given.to(torch.uint8),
    "column": lambda given: given[:, None],
    "column of int32": lambda given: given.int()[:, None],
    "list": Tensor.tolist,
    "tuple": lambda given: tuple(given.tolist()),
    "array": Tensor.numpy,
}


@pytest.mark.case("D8")
@pytest.mark.parametrize("form", AS_THEY_MEAN)
def test_labels_of_every_form_mean_the_same_classes(form: str) -> None:
    def scores(change: Callable[[Tensor], Any]) -> dict[str, float]:
        data = [{**batch, "labels": change(batch["labels"])} for batch in batches()]
        return distiller(HARD, None, bert(1), train_dataloader=data, dev_dataloader=data).train()

    assert scores(AS_THEY_MEAN[form]) == scores(lambda given: given)


@pytest.mark.case("D8")
def test_labels_that_are_texts_are_said() -> None:
    data = [{**batch, "labels": ["good", "bad", "bad", "good"]} for batch in batches()]
    with pytest.raises(DataError, match="labels are texts, such as 'good': class numbers are needed.*class_encode"):
        distiller(HARD, train_dataloader=data).train()
    texts = [{"input_ids": [1, 2, 3], "labels": word} for word in ("good", "bad")]
    for form in (list, datasets.Dataset.from_list):
        with pytest.raises(DataError, match=r"labels are texts \('good', 'bad'\), and the student's classes have no"):
            distiller(HARD, train_dataset=form(texts))


def test_a_column_of_labels_stays_one_where_rows_have_one_token() -> None:
    from knowledge_distillation.features.inputs import named_inputs

    column = torch.tensor([[3], [4]])
    assert named_inputs({"input_ids": column, "labels": column}, bert(1))["labels"].shape == (2, 1)
    assert named_inputs({"input_ids": column.expand(2, 5), "labels": column}, bert(1))["labels"].tolist() == [3, 4]
    real = named_inputs({"input_ids": column.expand(2, 5), "labels": column.float()}, bert(1))["labels"]
    assert real.shape == (2, 1) and real.is_floating_point()


def test_a_later_batch_of_the_evaluation_data_is_named() -> None:
    data = batches(3)
    data[1] = {"attention_mask": data[1]["attention_mask"]}
    with pytest.raises(DataError, match=r"batch 2 of the evaluation data \(attention_mask 4×9\): ValueError"):
        distiller(dev_dataloader=data).train()
    data[1] = {key: value for key, value in batches(3)[1].items() if key != "labels"}
    with pytest.raises(DataError, match="batch 2 of the evaluation data .* has no labels, which those before it have"):
        distiller(dev_dataloader=data).train()
    assert isinstance(distiller(dev_dataloader=data).evaluator, TaskEvaluator)

"""Rows and labels that do not fit: seen before the first step where the data says so, else named with their batch."""

from __future__ import annotations

import re
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

from knowledge_distillation import ConfigError, DataError, DistillationError
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
    for row in made if "attention_mask" in changes else ():
        row["attention_mask"] = [1] * len(row["input_ids"])
    made[place] |= changes
    return made


EARLY: dict[str, tuple[dict[str, Any], str]] = {
    "long row": (
        {"input_ids": [2] * 40},
        "row 7 of the training data has 40 tokens, and the student takes 32 at most",
    ),
    "label": ({"labels": 7}, r"row 7 has label 7, and the classes are 0 to 1: distill_config\[0\] compares"),
    "no label": ({"labels": None}, "row 7 of the training data has no 'labels', which others have"),
    "word": (
        {"input_ids": [3, 99999]},
        "the student fails on row 7 of the training data: IndexError: index 99999 of an embedding that has 40 rows",
    ),
    "mask": (
        {"attention_mask": [1, 1]},
        "row 7 of the training data has 2 values of 'attention_mask' for 5 tokens: one for each token is needed",
    ),
}


@pytest.mark.case("D7", "D9")
@pytest.mark.parametrize("what", ["long row", "word"])
def test_a_row_of_the_first_batch_is_called_by_its_place_in_the_data(what: str) -> None:
    changes, message = EARLY[what]
    options = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": 20}
    with pytest.raises(DistillationError, match=message):
        distiller(HARD, train_dataset=data_set(7, **changes), **options).plan()


@pytest.mark.case("D7")
@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list])
def test_a_mask_that_is_not_as_long_as_its_tokens_is_called_by_its_row(form: Any) -> None:
    changes, message = EARLY["mask"]
    with pytest.raises(DataError, match=message):
        distiller(HARD, train_dataset=form(data_set(7, **changes)), processing_class=tokenizer_of(40))


@pytest.mark.case("D7")
@pytest.mark.parametrize("label", [0.5, [1]])
@pytest.mark.parametrize("size", [4, 20])
def test_a_label_of_another_form_is_called_by_its_row(label: Any, size: int) -> None:
    options = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": size}
    message = rf"row 7 of the training data has label {re.escape(str(label))}, and others a whole number, such as 0"
    with pytest.raises(DistillationError, match=message):
        distiller(HARD, train_dataset=data_set(7, labels=label), **options).plan()


@pytest.mark.case("D7")
@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list])
@pytest.mark.parametrize("what", ["label", "long row", "word", "mask"])
def test_rows_of_the_evaluation_data_are_looked_at_as_well(what: str, form: Any, tmp_path: Path) -> None:
    changes, message = EARLY[what]
    given = {"train_dataset": form(data_set(0)), "eval_dataset": form(data_set(7, **changes))}
    with pytest.raises(DataError, match=message.replace("training", "evaluation")):
        distiller(HARD, processing_class=tokenizer_of(40), output_dir=tmp_path / "out", **given).train()
    assert not (tmp_path / "out").exists()


NOTHING: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "labels": (
        {"labels": -100},
        HARD,
        r"distill_config\[0\]: every label is -100 in all rows of the training data, so nothing counts for output",
    ),
    "mask": (
        {"completion_mask": [0, 0, 0]},
        [{**HIDDEN[0], "mask": "completion"}, *HARD],
        r"distill_config\[0\]: completion_mask is 0 at every token in all rows of the training data",
    ),
}


@pytest.mark.case("D7")
@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list])
@pytest.mark.parametrize("what", NOTHING)
def test_rows_that_leave_nothing_to_learn_are_refused_and_a_batch_of_them_is_warned_of(what: str, form: Any) -> None:
    changes, config, message = NOTHING[what]
    rows = [{"input_ids": [1, 2, 3], "labels": place % 2, **changes} for place in range(8)]
    options = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": 4, "group_by_length": False}
    with pytest.raises(DataError, match=message):
        distiller(config, train_dataset=form(rows), **options).plan()
    mark = next(iter(changes))
    batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    plan = distiller(config, train_dataloader=[batch]).plan()
    assert any(f"nothing of the first batch counts for {HARD_OR[mark]}" in note for note in plan.notes)
    rows[-1] |= {"labels": 1, **({mark: [0, 0, 1]} if mark != "labels" else {})}
    distiller(config, train_dataset=form(rows), **options).plan()


HARD_OR = {"labels": "cross_entropy", "completion_mask": "mse"}  # names of the entries


@pytest.mark.case("D7")
def test_weights_of_0_are_no_run() -> None:
    with pytest.raises(ConfigError, match=r"\[0\] the weight of every entry is 0, so nothing is learnt"):
        distiller([{**HARD[0], "weight": 0}, {**SOFT[0], "weight": 0}]).plan()
    growing = {**HARD[0], "weight": 0, "schedule": {"weight": {"type": "linear", "start": 0.0, "end": 1.0}}}
    distiller([growing, {**SOFT[0], "weight": 0}]).plan()


@pytest.mark.case("D7", "D9")
@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list])
@pytest.mark.parametrize("what", [what for what in EARLY if what != "mask"])
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


ODD_LABELS: dict[str, tuple[Any, str]] = {
    "too few": (labels([0, 1, 1]), "labels 3 are not one for each of 4 rows"),
    "too many": (labels([0, 1] * 4), "labels 8 are not one for each of 4 rows"),
    "one for all": (torch.tensor(1), "labels scalar are not one for each of 4 rows"),
    "real": (torch.tensor([0.0, 1.0, 1.0, 0.3]), "labels are real numbers, and distill_config[0] takes class numbers"),
    "missing in a list": ([0, None, 1, 0], "labels [0, None, 1, 0] are not numbers"),
    "ragged": ([[0], [1, 1], [0], [0]], "labels [[0], [1, 1], [0], [0]] are not numbers"),
    "complex": (torch.ones(4, dtype=torch.complex64), "labels are complex numbers"),
    "a mask that is too short": (None, "attention_mask 4×3 does not fit input_ids 4×9"),
}


@pytest.mark.case("D8")
@pytest.mark.parametrize("what", ODD_LABELS)
def test_odd_labels_and_masks_of_a_later_batch_are_said_in_words(what: str) -> None:
    given, message = ODD_LABELS[what]
    changes = {"attention_mask": torch.ones(4, 3)} if given is None else {"labels": given}
    with pytest.raises(DataError) as raised:
        distiller([*HARD, *HIDDEN], train_dataloader=second(**changes)).train()
    assert message in str(raised.value) and "batch 2 of epoch 1" in str(raised.value)


@pytest.mark.case("D4")
def test_a_share_of_a_label_is_no_label_and_never_taken_for_0() -> None:
    def run(*shares: float) -> Any:
        data = [{**b, "labels": torch.full((4, 3), value)} for b, value in zip(batches(2), shares, strict=True)]
        student = bert(1, num_labels=3, problem_type="multi_label_classification")
        return distiller(HARD, None, student, train_dataloader=data)

    assert run(1.0, 1.0).train()["loss"] > 0
    with pytest.raises(DistillationError, match=r"labels of output.logits \(4, 3\) are 0 or 1 for each class"):
        run(0.3, 1.0).train()
    with pytest.raises(DataError, match="batch 2 of epoch 1 .*row 0 has label 0.3.*, and the classes are 0 to 1"):
        run(1.0, 0.3).train()


@pytest.mark.case("D17")
@pytest.mark.parametrize("form", ["arrays", "lists", "arrays of objects", "tensors in a list"])
def test_batches_of_arrays_and_lists_train_as_those_of_tensors(form: str) -> None:
    def changed(batch: dict[str, Tensor]) -> dict[str, Any]:
        if form == "arrays of objects":
            return {**batch, "labels": batch["labels"].numpy().astype(object)}
        if form == "tensors in a list":
            return {**batch, "labels": list(batch["labels"])}
        return {key: value.numpy() if form == "arrays" else value.tolist() for key, value in batch.items()}

    data = [changed(batch) for batch in batches()]
    given = distiller(HARD, None, bert(1), train_dataloader=data, dev_dataloader=data).train()
    assert given == distiller(HARD, None, bert(1), train_dataloader=batches(), dev_dataloader=batches()).train()


@pytest.mark.case("D17")
@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.ones(4, 3), "attention_mask 4×3 does not fit input_ids 4×6"),
        (torch.full((4, 6), -1e4), "1 for tokens that count and 0 for padding; the teacher's holds -10000"),
    ],
)
def test_a_mask_that_tells_nothing_of_the_tokens_is_refused(mask: Tensor, told: str) -> None:
    data = batches(3)
    data[0] = {**data[0], "attention_mask": mask}
    with pytest.raises(DataError, match=told):
        distiller(HIDDEN, train_dataloader=data).train()


@pytest.mark.case("D17")
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("rows_too", [True, False])
def test_a_batch_of_nothing_is_said(place: int, rows_too: bool) -> None:
    data = batches(3)
    data[place] = {k: v[:0] if rows_too else v[:, :0] if v.dim() > 1 else v for k, v in data[place].items()}
    with pytest.raises(DataError, match="it has no rows" if rows_too else "its rows have no tokens"):
        distiller(train_dataloader=data).train()


class Says:
    """Three batches that say a length of their own."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, int):
            return self.length
        raise self.length

    def __iter__(self) -> Any:
        return iter(batches(3))


@pytest.mark.case("D18")
def test_data_that_says_a_wrong_length_trains_on_what_it_gives_and_no_step_is_made_of_nothing(caplog: Any) -> None:
    def run(data: Any) -> Any:
        steady = {"lr_scheduler_type": "constant", "warmup_ratio": 0}
        return distiller(HARD, None, bert(1), train_dataloader=data, **steady)

    whole = run(batches()).train()
    for said, steps, told in ((10, 3, "has 10 batches, and gave 3"), (1, 1, "has 1 batches, and has more")):
        caplog.clear()
        odd = run(Says(said))
        assert (odd.train() == whole) is (said == 10)
        assert odd.progress.step == steps and told in caplog.text
    assert run(Says(NotImplementedError("no length"))).train() == whole
    with pytest.raises(DataError, match="says that it has 0 batches, and has some"):
        run(Says(0)).train()


@pytest.mark.case("D18")
def test_one_batch_or_a_path_is_no_loader() -> None:
    for given in (batches(1)[0], "train.csv"):
        with pytest.raises(DataError, match="an iterable of batches is needed: one batch is given as"):
            distiller(train_dataloader=given).train()


@pytest.mark.case("D18")
def test_tables_and_odd_rows_are_named() -> None:
    good = [{"input_ids": [1, 2, 3], "labels": 0} for _ in range(6)]
    table = datasets.Dataset.from_list(good)
    for given, told in (
        (table.to_pandas(), "DataFrame, which gives no row by its number: datasets.Dataset.from_pandas"),
        (datasets.DatasetDict(train=table), "DatasetDict, which gives no row by its number: give one of its parts"),
        ({"input_ids": [[1]]}, "a dict, which gives no row by its number: datasets.Dataset.from_dict"),
        (["a film", "a plot"], "rows of the training data are str, such as 'a film': dicts are needed"),
        ([*good[:3], None], "row 3 of the data set has no 'input_ids', as the first row has: TypeError"),
        ([*good[:2], {"labels": 1}], "row 2 of the data set has no 'input_ids', as the first row has: KeyError"),
        ([*good[:2], {"input_ids": [1], "labels": "bad"}], r"labels are texts \(0, 'bad'\)"),
    ):
        with pytest.raises(DataError, match=told):
            distiller(HARD, train_dataset=given, processing_class=tokenizer_of(40))


@pytest.mark.case("D18")
def test_columns_that_no_tensor_holds_are_left_out_and_a_collator_may_read_the_text() -> None:
    plain = [{"input_ids": [1, 2, 3 + i % 2], "labels": i % 2} for i in range(6)]
    other = {"none": None, "meta": {"by": "me"}, "words": ["a", "b"], "text": "a"}
    odd = datasets.Dataset.from_list([{**row, **other} for row in plain])

    def loss(data: Any, **options: Any) -> float:
        return distiller(HARD, None, bert(1), train_dataset=data, per_device_train_batch_size=2, **options).train()[
            "loss"
        ]

    def by_text(given: list[dict[str, Any]]) -> dict[str, Tensor]:
        assert all(row["text"] == "a" for row in given)
        return {key: torch.tensor([row[key] for row in given]) for key in ("input_ids", "labels")}

    tokenizer = {"processing_class": tokenizer_of(40)}
    assert loss(odd, **tokenizer) == loss(datasets.Dataset.from_list(plain), **tokenizer)
    assert loss(odd, data_collator=by_text) > 0

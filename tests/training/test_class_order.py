"""Classes of two models, and those of the data, are one another's by name, whatever their order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from runs import HARD, HIDDEN, SOFT, batches, bert, distill, distiller, glue_folder, same, tokenizer_of, weights
from tolerance import assert_near
from transformers import (
    AutoModelForSequenceClassification,
    BertForTokenClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from knowledge_distillation import ConfigError, DistillationError, KnowledgeDistiller, student_from_teacher

POSITIVE_FIRST, NEGATIVE_FIRST = ("positive", "negative"), ("negative", "positive")


def named(model: Any, names: Sequence[str]) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    return model


def labelled(names: Sequence[str], number: int = 8) -> datasets.Dataset:
    """Rows whose labels have names."""
    made = [{"input_ids": [1, 2, 3 + i % 5], "labels": i % len(names)} for i in range(number)]
    features = {"input_ids": datasets.List(datasets.Value("int64")), "labels": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_list(made, features=datasets.Features(features))


def inputs() -> dict[str, torch.Tensor]:
    return {key: value for key, value in batches(1)[0].items() if key != "labels"}


def logits(model: Any, given: Any = None) -> torch.Tensor:
    return model.eval()(**(given or inputs())).logits.detach()


def class_notes(run: KnowledgeDistiller) -> list[str]:
    return [note for note in run.plan().notes if "classes" in note and "class number" not in note]


@pytest.mark.case("D2")
@pytest.mark.parametrize("spelling", [str, str.upper, lambda name: f" {name.title()}"])
def test_a_teacher_is_put_into_the_order_of_the_student_and_the_callers_model_stays(spelling: Any) -> None:
    teacher = named(bert(2), [spelling(name) for name in POSITIVE_FIRST])
    student, before = named(bert(1, seed=3), NEGATIVE_FIRST), weights(teacher)
    run = distiller(SOFT, teacher, student)
    assert class_notes(run) == [
        "teacher: its classes are put in the order of the student, by name: negative, positive"
    ]
    assert_near(logits(run.teacher), logits(teacher)[:, [1, 0]])
    assert same(weights(teacher), before) and teacher.config.id2label[0] == spelling("positive")
    run.train()
    assert same(weights(teacher), before)


@pytest.mark.case("D2")
def test_the_loss_is_that_of_a_teacher_whose_classes_stood_right_from_the_start() -> None:
    turned = named(bert(2, initializer_range=0.5), POSITIVE_FIRST)
    right = named(bert(2, initializer_range=0.5), NEGATIVE_FIRST)
    with torch.no_grad():
        right.classifier.weight.copy_(turned.classifier.weight[[1, 0]])
        right.classifier.bias.copy_(turned.classifier.bias[[1, 0]])

    def loss(teacher: Any, names: Sequence[str]) -> float:
        return distiller(SOFT, teacher, named(bert(1, seed=3, initializer_range=0.5), names)).train()["loss"]

    assert loss(turned, NEGATIVE_FIRST) == pytest.approx(loss(right, NEGATIVE_FIRST), rel=1e-4)
    assert loss(turned, POSITIVE_FIRST) != pytest.approx(loss(right, NEGATIVE_FIRST), rel=1e-2)


@pytest.mark.case("D2")
def test_a_student_cut_out_of_the_teacher_learns_the_labels_of_the_data(tmp_path: Path) -> None:
    teacher = named(bert(2), POSITIVE_FIRST)
    student = student_from_teacher(teacher, [2])
    before = logits(student)
    run = distiller(
        SOFT + HARD,
        teacher,
        student,
        train_dataset=labelled(NEGATIVE_FIRST),
        eval_dataset=labelled(NEGATIVE_FIRST),
        learning_rate=0.0,
        output_dir=tmp_path,
    )
    metrics = run.train()
    assert [note.split(":")[0] for note in class_notes(run)] == ["student", "teacher"]
    assert_near(logits(student), before[:, [1, 0]])
    assert metrics["eval_agreement"] == (logits(run.teacher).argmax(-1) == logits(student).argmax(-1)).float().mean()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert saved.config.id2label == {0: "negative", 1: "positive"}
    assert_near(logits(saved), logits(student))


@pytest.mark.case("D2")
def test_an_evaluation_alone_maps_as_well() -> None:
    teacher, student = named(bert(2), POSITIVE_FIRST), named(bert(2), NEGATIVE_FIRST)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(student.classifier, name).copy_(getattr(teacher.classifier, name)[[1, 0]])
    metrics = distiller(SOFT, teacher, student, dev_dataloader=batches(2)).evaluate()
    assert metrics["agreement"] == 1 and metrics["teacher_accuracy"] == metrics["accuracy"]


@pytest.mark.case("D2")
def test_a_cache_belongs_to_one_order(tmp_path: Path) -> None:
    def run(names: Sequence[str], **options: Any) -> KnowledgeDistiller:
        student = named(bert(1, seed=3), names)
        return distiller(SOFT, named(bert(2, initializer_range=0.5), POSITIVE_FIRST), student, **options)

    cached = run(NEGATIVE_FIRST, teacher_cache=str(tmp_path), teacher_cache_dtype="float32").train()
    assert cached["loss"] == pytest.approx(run(NEGATIVE_FIRST).train()["loss"], rel=1e-4)
    with pytest.raises(DistillationError, match="of something else"):
        run(POSITIVE_FIRST, teacher_cache=str(tmp_path), teacher_cache_dtype="float32").train()


@pytest.mark.case("D2")
def test_each_of_several_teachers_and_peers_is_mapped_on_its_own() -> None:
    names = ("a", "b", "c")
    orders = {"first": ("c", "a", "b"), "second": ("a", "b", "c"), "third": ("b", "c", "a")}
    teachers = {name: named(bert(2, num_labels=3, seed=n), order) for n, (name, order) in enumerate(orders.items())}
    config = [{**SOFT[0], "teacher_name": name, "name": name} for name in teachers]
    peer = named(bert(1, num_labels=3, seed=8), ("c", "b", "a"))
    before = logits(peer)
    run = distiller(config, teachers, named(bert(1, num_labels=3, seed=9), names), peer_model=peer)
    assert [note.split(":")[0] for note in class_notes(run)] == ["peer", "teacher first", "teacher third"]
    for name, teacher in teachers.items():
        order = [orders[name].index(one) for one in names]
        assert_near(logits(run.teachers[name]), logits(teacher)[:, order])
    assert_near(logits(peer), before[:, [2, 1, 0]])


def resnet() -> Any:
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)
    return ResNetForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def two_heads() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = DeiTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    return DeiTForImageClassificationWithTeacher(config), {"pixel_values": torch.randn(2, 3, 8, 8)}


def tokens() -> Any:
    return BertForTokenClassification(bert(1, num_labels=3).config), inputs()


def last_token() -> Any:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=3, pad_token_id=0)
    return GPT2ForSequenceClassification(config), inputs()


@pytest.mark.case("D2")
@pytest.mark.parametrize("make", [resnet, two_heads, tokens, last_token])
def test_heads_of_every_make(make: Any) -> None:
    teacher, given = make()
    student, _ = make()
    named(teacher, ("x", "y", "z")), named(student, ("z", "x", "y"))
    run = distiller(SOFT, teacher, student, train_dataloader=[given])
    run.plan()
    assert_near(logits(run.teacher, given), logits(teacher, given)[..., [2, 0, 1]])


class OneByOne(torch.nn.Module):
    """Its logits are made of no map that has a row for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.scale = named(bert(1), ("a", "b")).config, torch.nn.Parameter(torch.tensor([1.0]))

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        sums = input_ids.float().mean(1, keepdim=True) * self.scale
        return {"logits": torch.cat([sums, 1 - sums], 1)}


@pytest.mark.case("D2")
def test_what_cannot_be_mapped_is_refused_and_what_names_cannot_tell_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(teacher: Sequence[str], student: Sequence[str], config: Any = SOFT, **options: Any) -> KnowledgeDistiller:
        return distiller(config, named(bert(2), teacher), named(bert(1), student), **options)

    with pytest.raises(ConfigError, match="are positive, neutral, those of the student negative, positive: they"):
        run(("positive", "neutral"), NEGATIVE_FIRST).plan()
    assert class_notes(run(("positive", "neutral"), NEGATIVE_FIRST, HIDDEN)) == []
    with pytest.raises(ConfigError, match="those of the data negative, positive: they agree in part only"):
        run(NEGATIVE_FIRST, ("positive", "neutral"), train_dataset=labelled(NEGATIVE_FIRST)).plan()
    with pytest.raises(ConfigError, match="no linear map of OneByOne makes one class each"):
        distiller(SOFT, OneByOne(), named(bert(1), ("b", "a"))).plan()
    unnamed = ("LABEL_0", "LABEL_1")
    for names, said in (
        (
            (unnamed, NEGATIVE_FIRST),
            "of the student are negative, positive, and those of the teacher have no names",
        ),
        ((POSITIVE_FIRST, unnamed), "the classes of the teacher are positive, negative, and neither the student nor"),
        (
            (("cat", "dog"), NEGATIVE_FIRST),
            "are cat, dog, those of the student negative, positive: classes go by number",
        ),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(*names).plan()
        assert any(said in record.message for record in caplog.records), caplog.messages
    caplog.clear()
    run(unnamed, unnamed).plan()
    assert caplog.messages == []


@pytest.mark.case("D2")
def test_a_student_without_names_takes_those_of_the_data_and_texts_as_labels_are_their_numbers() -> None:
    student = bert(1)
    distiller(HARD, None, student, train_dataset=labelled(NEGATIVE_FIRST)).plan()
    assert student.config.id2label == {0: "negative", 1: "positive"}
    texts = [{"input_ids": [1, 2, 3 + i % 5], "labels": NEGATIVE_FIRST[i % 2]} for i in range(8)]
    losses = [
        distiller(HARD, None, named(bert(1), NEGATIVE_FIRST), train_dataset=data).train()["loss"]
        for data in (labelled(NEGATIVE_FIRST), texts, datasets.Dataset.from_list(texts))
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.case("D2")
def test_the_commands_map_a_saved_teacher_onto_the_task(tmp_path: Path) -> None:
    teacher = named(bert(2, vocab_size=60, max_position_embeddings=64), POSITIVE_FIRST)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer_of(60).save_pretrained(tmp_path / "teacher")
    data = ("--task", "sst2", "--data-dir", glue_folder(tmp_path / "glue"))
    checked = distill("check", "--teacher", tmp_path / "teacher", "--student", "2", "--method", "hinton", *data)
    assert checked.exit_code == 0, checked.output
    for who in ("student", "teacher"):
        assert f"{who}: its classes are put in the order of the data, by name: negative, positive" in checked.output
    scored = distill("evaluate", tmp_path / "teacher", *data)
    named(teacher, NEGATIVE_FIRST).save_pretrained(tmp_path / "teacher")
    other = distill("evaluate", tmp_path / "teacher", *data)
    accuracy = [float(result.output.partition("accuracy: ")[2].split()[0]) for result in (scored, other)]
    assert sum(accuracy) == pytest.approx(1, abs=2e-4)

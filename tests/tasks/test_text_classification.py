"""A text, or a pair, into one of several classes: from rows of a file to predictions."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, BertConfig

from knowledge_distillation import DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.tasks import Reading, find_task
from knowledge_distillation.tasks.text_classification import accuracy_and_f1

TEXTS = ["a good film", "a bad film", "so so", "good"]
TASK = find_task("text-classification")


def rows(labels: list, **columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"review": TEXTS[: len(labels)], "stars": labels, **columns})


def reading(data: datasets.Dataset, *text: str) -> Reading:
    columns = Columns(text or ("review",), "stars")
    return Reading(columns, train_tokenizer(TEXTS, vocab_size=60), TASK.class_names({"train": data}, columns))


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["pos", "neg", "mid", "pos"], ("mid", "neg", "pos"), [2, 1, 0, 2]),
        ([5, 10, 1, 5], ("1", "5", "10"), [1, 2, 0, 1]),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        ([" pos", "neg ", "pos", "neg"], ("neg", "pos"), [1, 0, 1, 0]),
    ],
)
def test_classes_are_what_stands_in_the_column(labels, names, numbers):
    data = rows(labels)
    read = reading(data)
    assert read.names == names
    assert TASK.encode(data, read, True)["labels"][:] == numbers
    assert TASK.fields(read)["id2label"] == dict(enumerate(names))


def test_a_class_label_keeps_its_order():
    data = rows([1, 0, 1, 1]).cast_column("stars", datasets.ClassLabel(names=["yes", "no"]))
    assert reading(data).names == ("yes", "no")
    assert TASK.encode(data, reading(data), True)["labels"][:] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["pos"] * 4, "holds one class only, 'pos'"),
        (["pos", None, "neg", "pos"], "row 1 of the train rows has no label in column 'stars'"),
        ([0.5, 1.0, 2.0, 3.0], "holds fractions, such as 0.5, and no classes: say --task regression"),
        ([["a"], ["b"], ["a"], ["a"]], r"holds lists, such as \['a'\], and no classes"),
    ],
)
def test_labels_that_are_no_classes(labels, message):
    with pytest.raises(DataError, match=message):
        TASK.class_names({"train": rows(labels)}, Columns(("review",), "stars"))


def test_a_class_that_training_does_not_have_is_named_with_the_nearest():
    splits = {"train": rows(["positive", "negative"]), "validation": rows(["positiv", "negative"])}
    with pytest.raises(DataError, match="holds positiv, of which there is no training row. Nearest: positive."):
        TASK.class_names(splits, Columns(("review",), "stars"))


def test_more_values_than_classes_can_be():
    many = datasets.Dataset.from_dict({"review": ["x"] * 1001, "stars": [f"a text {n}" for n in range(1001)]})
    with pytest.raises(DataError, match="holds 1,001 different values, more than 1,000 classes: is it the label"):
        TASK.class_names({"train": many}, Columns(("review",), "stars"))


def test_a_pair_is_read_as_the_tokenizer_reads_pairs():
    data = rows(["a", "b", "a", "b"], other=TEXTS[::-1])
    read = reading(data, "review", "other")
    encoded = TASK.encode(data, read, True)
    assert encoded[0]["input_ids"] == read.tokenizer(TEXTS[0], TEXTS[3])["input_ids"]
    assert sorted(encoded.column_names) == ["attention_mask", "input_ids", "labels", "length", "token_type_ids"]


def test_predictions_are_those_of_the_model_row_by_row():
    data = rows(["pos", "neg", "mid", "pos"])
    read = reading(data)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(read.tokenizer), **sizes, **TASK.fields(read))
    model = AutoModelForSequenceClassification.from_config(config).train()
    said = list(TASK.predict(model, data.remove_columns("stars"), read, batch_size=3))
    assert model.training and len(said) == 4
    model.eval()
    for text, one in zip(TEXTS, said, strict=True):
        odds = model(**read.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert one["prediction"] == read.names[int(odds.argmax())]
        torch.testing.assert_close(torch.tensor(one["probability"]), odds.max(), rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 5)), generator.integers(0, 4, 200)
    scores = accuracy_and_f1(logits, labels)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert scores["f1_macro"] == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))

"""A real number for a text or a pair: from rows of a file to predictions."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from task_runs import classifier, read, trained

from knowledge_distillation import DataError
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.presets import METHODS, hinton
from knowledge_distillation.tasks import find_task
from knowledge_distillation.tasks.regression import correlations

TASK = find_task("regression")
TEXTS = ["a good film", "a bad film", "so so", "good"]
OTHERS = ["good", "bad film", "a film", "so good"]


def rows(scores: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"one": TEXTS, "two": OTHERS, "score": scores})


def reading(data: datasets.Dataset):
    return read(TASK, data, ("one", "two"), "score", TEXTS + OTHERS)


@pytest.mark.parametrize("scores", [[4.5, 0, 2.25, 5], [4, 0, 2, 5], ["4.5", "0", " 2.25", "5e0"]])
def test_labels_are_numbers_whichever_way_they_stand_there(scores):
    data = rows(scores)
    read_as = reading(data)
    encoded = TASK.encode(data, read_as, True)
    assert encoded["labels"][:] == [float(score) for score in scores]
    assert encoded[1]["input_ids"] == read_as.tokenizer("a bad film", "bad film")["input_ids"]
    assert TASK.fields(read_as) == {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (["4.5", "0", "high", "5"], "row 2 of the train rows has 'high' in column 'score', which is no finite number"),
        ([4.5, None, 1.0, 2.0], "row 1 of the train rows has no number in column 'score'"),
        ([4.5, float("inf"), 1.0, 2.0], "row 1 of the train rows has inf in column 'score', which is no finite"),
        ([True, False, True, True], "row 0 of the train rows has True in column 'score', .* say --task text-cl"),
        ([[1.0], [2.0], [3.0], [4.0]], r"row 0 of the train rows has \[1.0\] in column 'score'"),
    ],
)
def test_a_label_that_is_no_number(scores, message):
    with pytest.raises(DataError, match=message):
        TASK.class_names({"train": rows(scores)}, Columns(("one", "two"), "score"))


def test_a_row_that_is_no_number_is_named_when_rows_are_encoded_too():
    with pytest.raises(DataError, match="row 3 has 'x' in column 'score'"):
        TASK.encode(rows(["1", "2", "3", "x"]), reading(rows([1, 2, 3, 4])), False)


def test_scores_are_those_of_scipy():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 200)
    said = labels + generator.normal(size=200)
    assert correlations(said[:, None], labels) == pytest.approx(
        {"spearmanr": stats.spearmanr(said, labels).statistic, "pearson": stats.pearsonr(said, labels).statistic}
    )


LONG = {
    "type": "ts_distill",
    **{"teacher_layer_name": "output", "teacher_layer_output_name": "logits"},
    **{"student_layer_name": "output", "student_layer_output_name": "logits"},
}


def test_entries_of_classes_become_squared_errors_without_a_temperature():
    soft = {"teacher": "output.logits", "student": "output.logits", "loss": "logits_mse"}
    assert TASK.fit(hinton(0.3, 4.0)) == [
        {**soft, "weight": 0.3},
        {"student": "output.logits", "loss": "mse", "weight": 0.7},
    ]
    course = {"temperature": {"values": [4, 1]}, "weight": {"values": [1, 0]}}
    written = {**soft, "loss": "soft_cross_entropy", "args": {"temperature": 4}, "schedule": course}
    assert TASK.fit([written]) == [{**soft, "schedule": {"weight": course["weight"]}}]
    long = {**LONG, "loss": {"loss_function": "kl_divergence", "args": {"temperature": 2}}}
    assert TASK.fit([long]) == [{**LONG, "loss": "logits_mse"}]
    others = [
        {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "args": {}},
        {"teacher": "output.logits", "student": "output.logits"},
        {**soft, "loss": "logits_mse", "weight": 2},
        {**soft, "loss": "klx"},
    ]
    assert TASK.fit(others) == others


def test_a_distilled_student_learns_what_its_teacher_says_and_is_measured_by_both_correlations():
    data = rows([4.5, 0.0, 2.0, 5.0])
    read_as = reading(data)
    teacher = classifier(TASK, read_as, layers=2)
    run, result = trained(
        TASK, read_as, data, hinton(1.0), teacher, num_train_epochs=60, learning_rate=3e-3, output_dir=None
    )
    assert {"eval_spearmanr", "eval_pearson", "eval_teacher_spearmanr", "eval_agreement"} <= result.keys()
    assert result["eval_agreement"] > 0.9
    assert result["best_spearmanr"] >= result["eval_spearmanr"]


def test_every_method_that_learns_from_logits_gives_squared_errors_only():
    teacher = classifier(TASK, reading(rows([1, 2, 3, 4])), layers=2)
    for name in ("hinton", "layers", "tinybert", "pkd", "distilbert", "born_again"):
        takes_models = "teacher" in METHODS[name].__annotations__
        entries = METHODS[name](teacher, teacher) if takes_models else METHODS[name]()
        losses = {entry["loss"] for entry in TASK.fit(entries) if entry["student"] == "output.logits"}
        assert losses and losses <= {"logits_mse", "mse"}, name


def test_a_prediction_is_the_models_number():
    data = rows([1, 2, 3, 4])
    read_as = reading(data)
    model = classifier(TASK, read_as).eval()
    said = [one["prediction"] for one in TASK.predict(model, data, read_as, batch_size=3)]
    for one, two, number in zip(TEXTS, OTHERS, said, strict=True):
        alone = model(**read_as.tokenizer(one, two, return_tensors="pt")).logits.item()
        torch.testing.assert_close(number, alone, rtol=1e-5, atol=1e-6)

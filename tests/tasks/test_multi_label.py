"""Any number of classes for a text: from rows of a file to predictions."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from task_runs import classifier, read, trained
from tolerance import near

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.presets import expand
from knowledge_distillation.tasks import find_task

TASK = find_task("multi-label")
TEXTS = ["a good film", "a bad film", "so so", "good"]
SETS = [["joy"], ["anger", "fear"], [], ["fear", "joy"]]
VECTORS = [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
COLUMNS = Columns(("text",), "labels")


def rows(labels: list, texts: list = TEXTS) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts[: len(labels)], "labels": labels})


def reading(data: datasets.Dataset, label: str = "labels", **options):
    return read(TASK, data, ("text",), label, TEXTS, **options)


@pytest.mark.parametrize(
    "labels",
    [
        SETS,
        ["joy", "anger,fear", None, "joy, fear"],
        ["joy", "anger;fear", "", "joy;fear"],
        ["joy", "anger|fear", "", "fear|joy|fear"],
        ["['joy']", "['anger', 'fear']", "[]", "['joy', 'fear']"],
    ],
)
def test_labels_are_read_in_whichever_form_they_stand_there(labels):
    data = rows(labels)
    read_as = reading(data)
    assert read_as.names == ("anger", "fear", "joy")
    encoded = TASK.encode(data, read_as, True)
    assert encoded["labels"][:] == VECTORS
    assert encoded[1]["input_ids"] == read_as.tokenizer(TEXTS[1])["input_ids"]
    assert TASK.fields(read_as)["problem_type"] == "multi_label_classification"
    assert TASK.fields(read_as)["id2label"] == {0: "anger", 1: "fear", 2: "joy"}


@pytest.mark.parametrize("labels", [[[10], [9, 2]], ["10", "9,2"], ["10", "9 2"]])
def test_numbers_are_ordered_by_size(labels):
    data = rows(labels)
    assert reading(data).names == ("2", "9", "10")
    assert TASK.encode(data, reading(data), True)["labels"][:] == [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]


def test_one_number_for_each_row_and_a_class_label_are_sets_of_one():
    assert reading(rows([10, 9, None])).names == ("9", "10")
    data = rows([[1], [0, 1]]).cast_column("labels", datasets.List(datasets.ClassLabel(names=["yes", "no"])))
    assert reading(data).names == ("no", "yes")
    assert TASK.encode(data, reading(data), True)["labels"][:] == [[1.0, 0.0], [1.0, 1.0]]


def test_several_columns_of_zero_and_one():
    columns = {"fear": [0, 1], "joy": [True, False], "anger": ["1", "0.0"]}
    data = datasets.Dataset.from_dict({"text": TEXTS[:2], **columns})
    read_as = reading(data, "fear, joy,anger")
    assert read_as.names == ("fear", "joy", "anger")
    encoded = TASK.encode(data, read_as, True)
    assert encoded["labels"][:] == [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    assert "fear" not in encoded.column_names
    with pytest.raises(DataError, match="row 1 has 2 in column 'fear', where 0 or 1 was expected"):
        reading(data.remove_columns("fear").add_column("fear", [0, 2]), "fear,joy")
    with pytest.raises(DataError, match="no column 'feer'. They have: .*Nearest: fear."):
        reading(data, "feer,joy")


def test_names_from_a_file_stand_for_their_numbers(tmp_path):
    (tmp_path / "labels.txt").write_text("fear\njoy\nanger\n")
    data = rows(["1", "2,0", "", "0,1"])
    read_as = reading(data, class_names=tmp_path / "labels.txt")
    assert read_as.names == ("fear", "joy", "anger")
    assert TASK.encode(data, read_as, True)["labels"][1] == [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match="row 0 of the train rows has the label '3', which is none of fear, joy"):
        reading(rows(["3"]), class_names=tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("fear\njoy\nfear\n")
    with pytest.raises(DataError, match="has 'fear' twice: a file of class names"):
        reading(data, class_names=tmp_path / "labels.txt")


def test_a_separator_is_guessed_only_where_one_would_do():
    data = rows(["sad, or so; joy", "joy"])
    with pytest.raises(DataError, match=r"has ',' in 'sad, or so; joy' and ';' in .*say by which one"):
        reading(data)
    assert reading(data, separator=";").names == ("joy", "sad, or so")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["joy", "joy"], "column 'labels' holds one label only, 'joy'"),
        ([[], []], "column 'labels' holds no label"),
        (["joy", "a text of its own"] + [f"n{n}" for n in range(1000)], "1,002 different labels, more than 1,000"),
    ],
)
def test_columns_that_are_no_labels(labels, message):
    texts = TEXTS * 300
    with pytest.raises(DataError, match=message):
        TASK.class_names({"train": rows(labels, texts)}, COLUMNS)


def test_a_label_that_training_does_not_have_is_named_with_its_row_and_the_nearest():
    splits = {"train": rows(SETS), "validation": rows([["joy"], ["anger", "feer"]])}
    with pytest.raises(DataError, match="row 1 of the validation rows has the label 'feer', .* Nearest: fear."):
        TASK.class_names(splits, COLUMNS)


def of_one_batch(method: str, **options) -> tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The terms of a method on one batch of all rows, and the logits of student and teacher, and the labels."""
    data = rows(SETS)
    read_as = reading(data)
    teacher, student = (classifier(TASK, read_as, layers=2, seed=seed).eval() for seed in (0, 1))
    batch = read_as.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        z, t = student(**batch).logits, teacher(**batch).logits
    entries = expand(method, teacher, student, **options)
    run, result = trained(
        TASK, read_as, data, entries, teacher, student=student, per_device_train_batch_size=4, learning_rate=0.0
    )
    return result, z, t, torch.tensor(VECTORS)


def of_each_class(z: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """Yang et al., eq. 5, written out: the divergence of two classes, yes and no, for each label; and their mean."""
    p, q = (t / temperature).sigmoid(), (z / temperature).sigmoid()
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


@pytest.mark.parametrize("method", ["hinton", "layers"])
def test_soft_targets_are_those_of_each_label_and_labels_are_binary_cross_entropy(method):
    result, z, t, labels = of_one_batch(method, alpha=0.25, temperature=3.0)
    soft, hard = of_each_class(z, t, 3.0), F.binary_cross_entropy_with_logits(z, labels)
    terms = {name: value for name, value in result.items() if "logits" in name}
    assert len(terms) == 2
    assert sorted(terms.values()) == near(sorted([float(soft), float(hard)]))


def test_the_prediction_stage_of_tinybert_is_the_cross_entropy_of_each_label():
    result, z, t, _ = of_one_batch("tinybert")
    (term,) = (value for name, value in result.items() if "logits" in name)
    assert term == near(float(F.binary_cross_entropy_with_logits(z, t.sigmoid())))


def test_scores_are_those_of_scikit_learn():
    data = rows(SETS)
    read_as = reading(data)
    student = classifier(TASK, read_as, seed=3)
    run, result = trained(TASK, read_as, data, TASK.hard_entries(), student=student)
    student.eval()
    with torch.no_grad():
        batch = read_as.tokenizer(TEXTS, padding=True, return_tensors="pt")
        said = student(**batch).logits.sigmoid().numpy() > 0.5
    true = np.array(VECTORS, dtype=bool)
    assert 0 < said.sum() < said.size
    for kind in ("micro", "macro"):
        assert result[f"eval_f1_{kind}"] == pytest.approx(f1_score(true, said, average=kind, zero_division=0))
    assert result["best_f1_micro"] == result["eval_f1_micro"]


def test_predictions_are_the_labels_above_one_half():
    data = rows(SETS)
    read_as = reading(data)
    model = classifier(TASK, read_as, seed=3).eval()
    said = list(TASK.predict(model, data.remove_columns("labels"), read_as, batch_size=3))
    chosen = set()
    for text, one in zip(TEXTS, said, strict=True):
        chances = model(**read_as.tokenizer(text, return_tensors="pt")).logits.sigmoid()[0]
        names = [read_as.names[number] for number in range(3) if chances[number] > 0.5]
        assert one["prediction"] == names
        assert one["probability"] == near(chances[chances > 0.5].tolist())
        chosen |= {*names}
    assert chosen


def test_an_option_that_no_task_takes_is_named_with_the_nearest():
    for task, options in {
        "multi-label": {"separator": ";"},
        "causal-lm": {"pack": False, "max_new_tokens": 3},
    }.items():
        find_task(task).check_options(options)
    with pytest.raises(ConfigError, match="task multi-label takes no option 'seperator'. Nearest: separator. It"):
        TASK.check_options({"seperator": ";"})
    with pytest.raises(ConfigError, match="task regression takes no option 'pack'. It takes none"):
        find_task("regression").check_options({"pack": True})
    for name, value, what in (("max_new_tokens", -1, "a whole number of 0 or more"), ("pack", "no", "true or false")):
        with pytest.raises(ConfigError, match=f"option {name} of task causal-lm is {what}; found {value!r}"):
            find_task("causal-lm").check_options({name: value})

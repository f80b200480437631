"""A file of one's own by command, in a recipe and from Python: read, guessed, trained on, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import TINY_BERT, distill, weights, written
from transformers import AutoModelForSequenceClassification

from knowledge_distillation import (
    ConfigError,
    DataError,
    KnowledgeDistiller,
    load_task_data,
    student_from_teacher,
)
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.recipes.build import LoadedRecipe
from knowledge_distillation.recipes.load import load_recipe

WORDS = {"pos": ("good", "fine", "great"), "neg": ("bad", "poor", "dull"), "mid": ("plain", "so so", "fair")}
KINDS = ("pos", "neg", "mid")


def reviews(folder: Path, rows: int = 48, name: str = "train.csv", classes: tuple[str, ...] = KINDS) -> Path:
    """A CSV of reviews with a quoted comma in each."""
    lines = ["review,stars"]
    for number in range(rows):
        kind = classes[number % len(classes)]
        lines.append(f'"the film, {WORDS[kind][number // 3 % 3]} film",{kind}')
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def own(folder: Path, **changes: object) -> Path:
    """A recipe of these reviews."""
    changes = {"data": str(reviews(folder)), "task": None, "data_dir": None, **changes}
    return written(folder, **changes)


def test_a_csv_of_three_classes_from_finetuning_to_evaluation(tmp_path):
    path = own(tmp_path, distill_config=None, method="hinton")
    first = distill("finetune", path, "-o", tmp_path / "teacher")
    assert first.exit_code == 0, first.output
    assert "task: text-classification, told from the values of column 'stars'" in first.output
    assert "text: column 'review'; label: column 'stars'" in first.output and "held out" in first.output

    data = ["--data", tmp_path / "train.csv"]
    second = distill("run", *data, "--teacher", tmp_path / "teacher/student", "--student", "2", "-o", tmp_path / "run")
    assert second.exit_code == 0, second.output
    assert "best accuracy on the evaluation data" in second.output
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert student.config.id2label == {0: "mid", 1: "neg", 2: "pos"}

    assert f"next: distill run {path} --teacher {tmp_path / 'teacher/student'} --student LAYERS" in first.output
    told = second.output[second.output.index("next: distill ") :].split()
    assert told[2:] == ["evaluate", str(tmp_path / "run/student"), "--data", str(tmp_path / "train.csv")]
    third = distill("evaluate", tmp_path / "run/student", *data, "--teacher", tmp_path / "teacher/student")
    assert third.exit_code == 0, third.output
    assert "text-classification: 48 rows" in third.output and "teacher_f1_macro" in third.output


def test_the_same_by_recipe_and_from_python(tmp_path):
    """Equal weights after training say that both read the same rows in the same way."""
    path = own(tmp_path, tokenizer=None, eval=str(reviews(tmp_path, 12, "dev.csv")))
    loaded = LoadedRecipe.of(load_recipe(path))
    student = loaded.student()
    loaded.distiller(student, loaded.config(student), None).train()

    again = LoadedRecipe.of(load_recipe(path))
    data = load_task_data(tmp_path / "train.csv", again.tokenizer, eval=tmp_path / "dev.csv", max_length=16)
    other, recipe = again.student(), again.recipe
    run = KnowledgeDistiller(again.teacher, other, recipe.distill_config, args=recipe.settings, **data.arguments())
    run.train()
    one, two = weights(student), weights(other)
    assert all((one[name] == two[name]).all() for name in one)
    assert data.task.name == loaded.recipe.task == "text-classification" and data.fields["num_labels"] == 3


def test_a_python_user_gets_model_fields_and_entries(tmp_path):
    tokenizer = train_tokenizer(["the film good bad fine poor great dull plain so fair"], vocab_size=60)
    data = load_task_data(reviews(tmp_path), tokenizer, text="review", label="stars", max_length=16)
    from transformers import AutoConfig

    config = AutoConfig.for_model(**TINY_BERT, vocab_size=len(tokenizer), **data.fields)
    teacher = AutoModelForSequenceClassification.from_config(config)
    student = student_from_teacher(teacher, [2])
    run = KnowledgeDistiller(
        teacher,
        student,
        data.entries("hinton", teacher, student),
        num_train_epochs=1,
        disable_tqdm=True,
        **data.arguments(),
    )
    metrics = run.train()
    assert {"eval_accuracy", "eval_f1_macro", "eval_agreement"} <= metrics.keys()


def test_classes_keep_the_numbers_of_the_teacher(tmp_path):
    """The teacher saw pos, neg and mid in another order than the alphabet's."""
    path = own(tmp_path, distill_config=None, method="hinton")
    loaded = LoadedRecipe.of(load_recipe(path))
    config = loaded.teacher.config
    config.id2label = {0: "pos", 1: "mid", 2: "neg"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    loaded.teacher.save_pretrained(tmp_path / "teacher")
    loaded.tokenizer.save_pretrained(tmp_path / "teacher")
    again = LoadedRecipe.of(load_recipe(path, [], {"teacher": str(tmp_path / "teacher")}))
    names = again.data["train"].features["labels"].names
    assert names == ["pos", "mid", "neg"]
    assert [names[number] for number in again.data["validation"]["labels"]] == [
        row["stars"] for row in again.task_data.rows.splits["validation"]
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "reviw"}, "there is no column 'reviw'. Nearest: review. Columns: review, stars"),
        ({"label": "star"}, "there is no column 'star'. Nearest: stars"),
        ({"task": "text-clasification"}, "task 'text-clasification' is unknown. Nearest: text-classification"),
        ({"task": "sst2"}, "data is .*, and task 'sst2' has rows of its own. Tasks of one's own data: text-class"),
        ({"data_dir": "x"}, "data and data_dir are given"),
        ({"data": None, "text": "review"}, "text belongs to rows of one's own: say where they lie, as data"),
        ({"data": None, "task": "text-classification"}, "is one of one's own data: say where it lies, as data"),
        ({"data": "nothing.csv"}, "nothing.csv"),
        ({"task": "regression"}, "stars"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_built(tmp_path, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        LoadedRecipe.of(load_recipe(own(tmp_path, **changes)))


def test_labels_of_the_evaluation_rows_that_training_does_not_have(tmp_path):
    (tmp_path / "dev.csv").write_text("review,stars\nfine,poss\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds poss, of which there is no training row. Nearest: pos."):
        LoadedRecipe.of(load_recipe(own(tmp_path, eval=str(tmp_path / "dev.csv"))))


def test_evaluating_needs_rows(tmp_path):
    said = distill("evaluate", tmp_path)
    assert said.exit_code == 2 and "evaluate needs rows: --data FILE, or the --task" in said.output


def test_a_folder_of_pictures_is_seen_as_one(tmp_path):
    from PIL import Image

    for number in range(24):
        folder = tmp_path / "pictures" / ("red" if number % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), folder.name).save(folder / f"{number}.png")
    net = {"model_type": "wide_resnet", "depth": 10, "widen_factor": 1}
    changes = {"data": str(tmp_path / "pictures"), "teacher": net, "student": net, "max_length": None}
    path = own(tmp_path, distill_config=None, method="hinton", **changes)
    said = distill("finetune", path, "-o", tmp_path / "run")
    assert said.exit_code == 0, said.output
    config = json.loads((tmp_path / "run/student/config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "blue", "1": "red"}


def test_an_option_that_the_task_does_not_take_is_an_error_with_the_nearest(tmp_path):
    tokenizer = train_tokenizer(["the film"], 60)
    with pytest.raises(
        ConfigError, match="task multi-label takes no option 'seperator'. Nearest: separator. It takes:"
    ):
        load_task_data(reviews(tmp_path), tokenizer, task="multi-label", seperator=";")
    with pytest.raises(ConfigError, match="task text-classification takes no option 'max_len'. It takes none"):
        load_task_data(reviews(tmp_path), tokenizer, max_len=20)

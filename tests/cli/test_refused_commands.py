"""A command that cannot run ends with status 2 and one clear error, and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TINY_BERT, VOCABULARY, bert, contents, distill, tokenizer_of, written


def refused(result: Any, *messages: str) -> None:
    """Exit status 2, the messages on one error's lines, no traceback."""
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    for message in messages:
        assert message in result.stderr, result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is the same after the test, apart from recipes."""
    written(tmp_path)
    yield tmp_path
    assert {path.split("/")[0] for path in contents(tmp_path)} <= {"glue", "recipe.yaml", "base.yaml", "saved"}


SETTINGS = {
    "training.learning_rat=1": ["recipe: training: unknown setting 'learning_rat'. Nearest: learning_rate."],
    "training.num_train_epochs=0": ["recipe: training: num_train_epochs is a whole number of 1 or more; found 0"],
    "training.seed=abc": ["recipe: training: seed is a whole number of 0 or more, below 2**32; found 'abc'"],
    "training.output_dir=x": ["unknown setting 'output_dir'"],
    "finetune.max_grad_norms=1": ["recipe: finetune: unknown setting 'max_grad_norms'. Nearest: max_grad_norm."],
    "training=5": ["recipe: training is a mapping of settings; found 5"],
    "training.metric_for_best_model=acc": ["metric_for_best_model 'acc' is not among", "Nearest: accuracy."],
    "techer=x": ["recipe: unknown key 'techer'. Nearest: teacher. Keys: teacher, student, task"],
    "task=sst": ["recipe: task 'sst' is unknown. Nearest: sst2. Known: embedded, sst2, qqp"],
    "task=[1]": ["recipe: task is a text; found [1]"],
    "method=hintn": [
        "recipe: method 'hintn' is unknown. Nearest: hinton. Known: activation_boundary, at, attention_transfer, "
    ],
    "method=hinton": ["recipe: give either method or distill_config"],
    "alpha=x": ["recipe: alpha is a number; found 'x'"],
    "max_length=0": ["recipe: max_length is a whole number from 1 to 1,000,000; found 0"],
    "max_train_samples=-3": ["recipe: max_train_samples is a whole number of 1 or more; found -3"],
    "vocab_size=3": ["vocab_size is 3; the 5 special tokens need more"],
    "nonsense": ["--set takes key=value, as in training.learning_rate=1e-4; found 'nonsense'"],
    "a=[": ["--set a=[: the value is not valid YAML"],
    "distill_config.5.weight=1": ["--set distill_config.5.weight: distill_config is a list of 2 items", "found '5'"],
    "distill_config.first.weight=1": ["distill_config is a list of 2 items, counted from 0; found 'first'"],
    "task.name=x": ["--set task.name: task is 'sst2', not a mapping"],
    "distill_config.0.loss=msee": ["1 problem in distill_config\n  [0] unknown loss 'msee'. Nearest: mse."],
    "distill_config=5": ["distill_config is a list of entries; found 5"],
    "teacher=5": ["recipe: teacher: a model is a name, or a mapping with model_type; found 5"],
    "teacher.model_type=brt": ["recipe: teacher: model_type 'brt' is not one transformers knows. Nearest: bert."],
    "teacher.hidden_siz=8": ["recipe: teacher: a bert config has no field 'hidden_siz'. Nearest: hidden_size."],
    "teacher.num_attention_heads=3": [
        "recipe: teacher: cannot build a bert for sst2: The hidden size (16) is not a multiple"
    ],
    "teacher={model_type: vit}": ["recipe: teacher: cannot build a vit for sst2: Unrecognized configuration class"],
    "teacher=./nowhere": ["recipe: './nowhere': no such directory"],
    "student=./nowhere": ["recipe: './nowhere': no such directory, for the student's tokenizer"],
    "student={layers: [1], of: ./nowhere}": ["recipe: student: of: './nowhere': no such directory"],
    "student=null": ["recipe: student is missing: {layers: [...]}, a directory"],
    "student={layers: [9]}": ["layers [9]: BertForSequenceClassification has layers 1 to 2; found [9]"],
    "student={layers: 3}": ["layers are whole numbers in a list; found 3"],
    "student={layers: [1], form: x}": ["a student cut out of a model has the keys layers and of; found ['form']"],
    "student.vocab_size=4": ["the tokenizer has ", "entries and the student's vocabulary 4"],
    "data_dir=./nowhere": ["data_dir nowhere is not a folder; expected one that holds SST-2/"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_command_refuses_with_status_2_and_writes_nothing(setting: str, folder: Path) -> None:
    result = distill("run", folder / "recipe.yaml", "-o", folder / "out", "--set", setting)
    refused(result, *SETTINGS[setting])
    assert not (folder / "out").exists()


def test_recipes_that_cannot_be_read(folder: Path) -> None:
    path = folder / "recipe.yaml"
    refused(distill("run", folder / "nowhere.yaml"), "nowhere.yaml does not exist")
    for content, message in (
        (b"a: [1", "is not valid YAML"),
        (b"- 1", "is a mapping; found list"),
        (b"task: \xe9", "is not valid YAML: 'utf-8' codec can't decode"),
        (b"base: 5", "base is the path of a recipe; found 5"),
        (b"base: nowhere.yaml", "nowhere.yaml does not exist"),
        (b"base: recipe.yaml", "is its own base: recipe.yaml -> recipe.yaml"),
        (b"max_length: 8", "recipe: teacher is missing: a directory, a hub name, or a mapping to build one"),
    ):
        path.write_bytes(content)
        refused(distill("run", path, "-o", folder / "out"), message)


def test_broken_data_is_named_by_file_and_line(folder: Path) -> None:
    train = folder / "glue" / "SST-2" / "train.tsv"
    good = train.read_text()
    run = ("run", folder / "recipe.yaml", "-o", folder / "out")
    train.write_text(good + "a row without a label\n")
    refused(distill(*run), f"{train}, line 26: found 1 column, expected 2 (sentence, label)")
    train.write_text(good.replace("\t1\n", "\t7\n", 1))
    refused(distill(*run), f"{train}, line 2: found label '7', expected one of 0, 1")
    train.write_text("sentence\tlabel\n")
    refused(distill(*run), f"{train} holds no rows")
    train.write_text("")
    refused(distill(*run), f"{train} is empty")
    train.write_text(good.replace("sentence", "sentance", 1))
    refused(distill(*run), f"{train} has no column 'sentence'", "Nearest: sentance.")
    train.unlink()
    refused(distill(*run), "SST-2 has no file train.tsv")


def test_a_directory_that_holds_another_run(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    for command in ("run", "finetune"):
        out = tmp_path / command
        assert distill(command, recipe, "-o", out).exit_code == 0
        before = contents(out)
        refused(distill(command, recipe, "-o", out), "holds another run (run.json, history.jsonl", "--resume")
        changed = distill(command, recipe, "-o", out, "--resume", "--set", "training.learning_rate=1e-3")
        refused(changed, "cannot resume", "settings.learning_rate: it has 5e-05, asked is 0.001")
        assert contents(out) == before


def test_saved_models_that_cannot_be_used(folder: Path) -> None:
    saved = folder / "saved"
    tokenizer_of(VOCABULARY).save_pretrained(saved)
    bert(2, num_labels=3).save_pretrained(saved)
    of_saved = ("--set", f"student={saved}")
    run = ("run", folder / "recipe.yaml", "-o", folder / "out", *of_saved)
    refused(distill(*run), f"cannot load model for sst2 {str(saved)!r}: it has 3 classes, and the task 2")
    bert(2).save_pretrained(saved)
    weights_file = saved / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    refused(distill(*run), f"cannot load model for sst2 {str(saved)!r}: ")
    (saved / "config.json").unlink()
    refused(distill(*run), f"no model for sst2 in {str(saved)!r}: it holds model.safetensors, tokenizer.json")


def test_other_commands_refuse_too(folder: Path) -> None:
    refused(distill("check", folder / "nowhere.yaml"), "nowhere.yaml does not exist")
    written(folder, student={**TINY_BERT, "num_attention_heads": 4, "num_hidden_layers": 1}, distill_config=HEADS)
    refused(distill("check", folder / "recipe.yaml"), "the student has 4 heads, the teacher 2")
    refused(distill("layers", "brt"), "no model 'brt': no such directory, hub name or model_type. Nearest: bert.")
    refused(
        distill("evaluate", folder / "nowhere", "--task", "sst2", "--data-dir", folder / "glue"), "no such directory"
    )
    refused(distill("finetune"), "recipe: teacher is missing")
    refused(distill("run", folder / "recipe.yaml", "--task", "sst3"), "task 'sst3' is unknown. Nearest: sst2.")
    unused = distill("run", folder / "recipe.yaml", "--alpha", 0.3)
    refused(unused, "recipe: alpha belongs to a method, and this recipe has a distill_config")


@pytest.mark.case("D1")
@pytest.mark.parametrize("command", ["finetune", "run", "check"])
def test_a_folder_that_no_task_reads_is_refused_and_nothing_else_is_trained_on(command: str, folder: Path) -> None:
    (folder / "glue" / "train.csv").write_text("sentence,label\nfine,1\n")
    model = ("--teacher", folder / "nowhere", "--data-dir", folder / "glue")
    options = ("-o", folder / "out") if command != "check" else ()
    for task in ([], ["--task", "embedded"], ["--task", "digits"]):
        result = distill(command, *model, *options, *task)
        refused(
            result, "data_dir is ", "comes with its own data and reads no folder: name the task whose files lie there"
        )
    (folder / "glue" / "SST-2" / "train.tsv").rename(folder / "glue" / "SST-2" / "train.csv")
    refused(distill("check", folder / "recipe.yaml"), "SST-2 has no file train.tsv. It holds: dev.tsv, train.csv")
    (folder / "glue" / "SST-2" / "train.csv").rename(folder / "glue" / "SST-2" / "train.tsv")
    (folder / "glue" / "train.csv").unlink()


@pytest.mark.case("D1")
def test_the_plan_names_the_data_and_its_rows(folder: Path) -> None:
    result = distill("check", folder / "recipe.yaml")
    assert result.exit_code == 0
    assert "data: sst2 from " in result.output and "24 rows of train, 10 rows of validation" in result.output


UNREAD = {
    "a method's argument beside entries": (("check", "--set", "temperature=2"), "temperature belongs to a method"),
    "entries of a fine-tuning": (("finetune", "--set", "distill_config.0.weight=2"), "and does not read it"),
    "weight of an evaluation": (("evaluate", "--set", "alpha=0.3"), "--set alpha: distill evaluate trains nothing"),
    "teacher of no preset": (("presets", "--teacher", "bert"), "--teacher and --student are of one preset"),
}


@pytest.mark.case("D1")
@pytest.mark.parametrize("what", UNREAD)
def test_an_option_that_a_command_would_not_look_at_is_refused(what: str, folder: Path) -> None:
    (command, *options), message = UNREAD[what]
    given = {
        "check": [folder / "recipe.yaml"],
        "finetune": [folder / "recipe.yaml"],
        "evaluate": [folder / "nowhere", "--task", "sst2"],
    }
    refused(distill(command, *given.get(command, []), *options), message)


HEADS = [{"teacher": "layer2.attention", "student": "layer1.attention", "loss": "mse"}]


def test_an_unknown_option_or_command_is_told_by_the_terminal() -> None:
    for arguments in (("run", "--techer", "x"), ("rnu",)):
        result = distill(*arguments)
        assert result.exit_code == 2 and arguments[-2 if len(arguments) > 1 else 0] in result.stderr
        assert "Traceback" not in result.output

"""The command `distill`, from the outside: what it prints, what it writes, and how soon it answers."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import HARD, TINY_BERT, bert, contents, distill, recipe, written
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, ResNetConfig

from knowledge_distillation import parse_config
from knowledge_distillation.presets import expand, list_presets

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy")


def succeeded(result: Any) -> str:
    assert result.exit_code == 0, (result.exception, result.output)
    return result.output


def of_history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def of_run(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


# --- how soon it answers -----------------------------------------------------------------------------------------


def processor_seconds() -> float:
    """Time the finished child processes took on a processor, however busy the machine is with others."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_takes_less_than_a_second_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "knowledge_distillation", "--help"]
    seconds = []
    for _ in range(3):
        begun = processor_seconds()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        seconds.append(processor_seconds() - begun)
    assert done.returncode == 0
    for name in ("run", "finetune", "evaluate", "check", "presets", "layers", "demo"):
        assert re.search(rf"\b{name}\b", done.stdout)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported and not imported & set(HEAVY)
    assert min(seconds) < 1


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"""
import sys
import knowledge_distillation as kd
from knowledge_distillation import data
from knowledge_distillation.cli import commands as cli
assert "KnowledgeDistiller" in dir(kd) and kd.__version__
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there() -> None:
    import knowledge_distillation as kd

    assert all(getattr(kd, name) is not None for name in kd.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Distiller'"):
        kd.Distiller  # noqa: B018


@pytest.mark.parametrize(
    "command", [[], ["run"], ["finetune"], ["evaluate"], ["check"], ["presets"], ["layers"], ["demo"]]
)
def test_each_command_explains_itself(command: list[str]) -> None:
    assert "Usage: " in succeeded(distill(*command, "--help"))


# --- finetune, run, evaluate: one after the other, as one uses them --------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a fine-tuned `teacher`, and a `student` distilled from it, with its baseline."""
    folder = tmp_path_factory.mktemp("house")
    path = written(folder)
    said = succeeded(distill("finetune", path, "-o", folder / "teacher", "--epochs", "2"))
    (folder / "finetune.txt").write_text(said)
    taught = ("--teacher", folder / "teacher" / "student", "-o", folder / "student", "--baseline", "--tensorboard")
    (folder / "run.txt").write_text(succeeded(distill("run", path, *taught)))
    return folder


def test_finetuning_prints_its_score_and_saves_a_model(house: Path) -> None:
    said = (house / "finetune.txt").read_text()
    assert "cross_entropy" in said and "runs 2 of 2 layers, and the head" in said
    assert re.search(r"^best_accuracy: [01]\.\d{4}$", said, re.MULTILINE)
    assert f"\nmodel: {house / 'teacher' / 'student'}\nnext: distill run " in said
    steps = [line["step"] for line in of_history(house / "teacher") if "eval_accuracy" in line]
    assert steps == [3, 6]  # 24 rows, 8 a step, two epochs


def rows_of_table(said: str) -> dict[str, list[str]]:
    """Model -> its columns, of the last table; names that were wrapped are whole again."""
    table: dict[str, list[str]] = {}
    name = ""
    for line in said[said.rindex("model ") :].splitlines()[2:]:
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) > 2:
            name = cells[0]
            table[name] = cells[1:]
        elif cells[0] == "distillation":
            table[f"{name} distillation"] = table.pop(name)
    return table


def test_a_run_with_baseline_prints_teacher_and_both_students(house: Path) -> None:
    table = rows_of_table((house / "run.txt").read_text())
    assert list(table) == ["teacher", "student without distillation", "student with distillation"]
    students = of_history(house / "student"), of_history(house / "student" / "baseline")
    scores = [max(line["eval_accuracy"] for line in lines if "eval_accuracy" in line) for lines in students]
    assert table["student with distillation"][0] == f"{scores[0]:.4f}"
    assert table["student without distillation"][0] == f"{scores[1]:.4f}"
    teacher = next(line for line in students[0] if "eval_teacher_accuracy" in line)["eval_teacher_accuracy"]
    assert table["teacher"][0] == f"{teacher:.4f}"
    best = max(line["eval_accuracy"] for line in of_history(house / "teacher") if "eval_accuracy" in line)
    assert teacher == best  # the teacher of the run is the one that fine-tuning saved


def test_a_baseline_has_the_students_settings_and_no_teacher(house: Path) -> None:
    with_teacher, without = of_run(house / "student"), of_run(house / "student" / "baseline")
    assert without["settings"] == with_teacher["settings"]
    assert without["models"]["student"] == with_teacher["models"]["student"] and without["models"]["teacher"] is None
    assert [one["loss"] for one in without["distill_config"]] == ["cross_entropy"]


def test_the_student_directory_is_read_by_transformers_alone(house: Path) -> None:
    student = AutoModelForSequenceClassification.from_pretrained(house / "student" / "student")
    tokenizer = AutoTokenizer.from_pretrained(house / "student" / "student")
    assert student.config.num_hidden_layers == 1 and student.config.num_labels == 2
    ids = tokenizer(["the good film"], return_tensors="pt")
    assert len(tokenizer) == student.config.vocab_size
    assert torch.isfinite(student(**ids).logits).all()


def test_a_finished_run_resumed_does_nothing_and_prints_the_same_table(house: Path) -> None:
    def kept() -> dict[str, bytes]:
        return {path: data for path, data in contents(house / "student").items() if "distillation/" not in path}

    before = kept()
    taught = ("--teacher", house / "teacher" / "student", "-o", house / "student", "--baseline", "--resume")
    settings = ("--set", "training.report_to=[tensorboard]")
    again = succeeded(distill("run", house / "recipe.yaml", *taught, *settings))
    assert "epoch" not in again and "epoch 1.00  step 3" in (house / "run.txt").read_text()
    first, second = (rows_of_table(text) for text in ((house / "run.txt").read_text(), again))
    without_times = [{name: [row[0], row[1]] for name, row in table.items()} for table in (first, second)]
    assert without_times[0] == without_times[1]
    assert kept() == before


def test_tensorboard_has_the_losses_and_the_scores(house: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(house / "student" / "distillation"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "learning_rate", "eval_accuracy", "eval_agreement"} <= set(tags)
    history = [line["loss"] for line in of_history(house / "student") if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(history)


def test_without_the_option_nothing_is_logged_for_tensorboard(house: Path) -> None:
    assert not list((house / "teacher").rglob("events*"))


def test_evaluating_a_saved_student_gives_the_score_it_was_saved_with(house: Path) -> None:
    student, teacher = house / "student" / "student", house / "teacher" / "student"
    data = ("--task", "sst2", "--data-dir", house / "glue")
    scores = dict(
        line.split(": ") for line in succeeded(distill("evaluate", student, *data, "--teacher", teacher)).splitlines()
    )
    table = rows_of_table((house / "run.txt").read_text())
    assert list(scores) == ["sst2", "accuracy", "teacher_accuracy", "agreement"]
    assert scores.pop("sst2").endswith(" rows")
    assert scores["accuracy"] == table["student with distillation"][0]
    assert scores["teacher_accuracy"] == table["teacher"][0]
    assert list(yaml.safe_load(succeeded(distill("evaluate", student, *data)))) == ["sst2", "accuracy"]
    few = yaml.safe_load(succeeded(distill("evaluate", student, *data, "--set", "max_eval_samples=2")))
    assert few["sst2"] == "2 rows"


# --- options and overrides -----------------------------------------------------------------------------------------


def test_overrides_reach_nested_keys_and_items_of_lists(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [
        "training.learning_rate=2e-4",
        "training.num_train_epochs=2",
        "distill_config.0.weight=3",
        "distill_config.1.loss=mse",
        "distill_config.1={student: output.logits, loss: cross_entropy, args: {label_smoothing: 0.1}}",
        "student.hidden_size=8",
        "finetune.seed=3",
    ]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    said = succeeded(distill("run", written(tmp_path), "-o", out, *arguments))
    run = of_run(out)
    assert run["settings"]["learning_rate"] == 2e-4 and run["settings"]["num_train_epochs"] == 2
    assert [one["weight"] for one in run["distill_config"]] == [3.0, 1.0]
    assert run["distill_config"][1]["args"] == {"label_smoothing": 0.1}
    assert run["settings"]["seed"] == 1  # that of fine-tuning is another
    assert "8×7×8" in said and "Linear" in said  # a narrower student, and so a projection


def test_options_win_over_the_recipe_and_over_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--epochs", 3, "--seed", 9, "--max-train-samples", 9, "--set", "training.num_train_epochs=2")
    succeeded(distill("run", written(tmp_path), "-o", out, *options))
    run = of_run(out)
    assert run["settings"]["num_train_epochs"] == 3 and run["settings"]["seed"] == 9
    assert of_history(out)[-1]["step"] == 6  # nine rows are two batches


def test_finetune_takes_its_own_settings_over_those_of_training(tmp_path: Path) -> None:
    path = written(tmp_path, finetune={"learning_rate": 0.25, "num_train_epochs": 2})
    succeeded(distill("finetune", path, "-o", tmp_path / "out"))
    settings = of_run(tmp_path / "out")["settings"]
    assert settings["learning_rate"] == 0.25 and settings["num_train_epochs"] == 2 and settings["seed"] == 1
    baseline = ("run", path, "-o", tmp_path / "student", "--baseline")
    succeeded(distill(*baseline))
    assert of_run(tmp_path / "student" / "baseline")["settings"] == of_run(tmp_path / "student")["settings"]


def test_a_recipe_starts_from_its_base(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml")
    (tmp_path / "recipe.yaml").write_text("base: base.yaml\ntraining: {seed: 5}\nstudent: {layers: [2]}\n")
    succeeded(distill("run", tmp_path / "recipe.yaml", "-o", tmp_path / "out"))
    run = of_run(tmp_path / "out")
    assert run["settings"]["seed"] == 5 and run["settings"]["per_device_train_batch_size"] == 8
    saved = json.loads((tmp_path / "out" / "student" / "config.json").read_text())
    assert saved["num_hidden_layers"] == 1


@pytest.mark.parametrize(("numbers", "depth"), [("1,2", 2), ("-1", 1), ("2, 1", 2)])
def test_numbers_for_the_student_cut_layers_out_of_the_teacher(numbers: str, depth: int, tmp_path: Path) -> None:
    teacher = {**TINY_BERT, "num_hidden_layers": 3, "initializer_range": 0.5}
    path = written(tmp_path, teacher=teacher, distill_config=None, method="hinton")
    still = ("--set", "training.learning_rate=0", "--student", numbers)
    succeeded(distill("run", path, "-o", tmp_path / "out", *still))
    succeeded(distill("finetune", path, "-o", tmp_path / "teacher", "--set", "training.learning_rate=0"))
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student").bert.encoder.layer
    of_teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher" / "student")
    layers = of_teacher.bert.encoder.layer
    wanted = [int(number) for number in numbers.split(",")]
    assert len(student) == depth
    for layer, number in zip(student, wanted, strict=True):
        own = layers[number - 1 if number > 0 else number]
        assert torch.equal(layer.attention.self.query.weight, own.attention.self.query.weight)


def test_a_method_with_its_arguments(tmp_path: Path) -> None:
    path = written(tmp_path)  # the method takes the place of the recipe's own entries
    options = ("--method", "hinton", "--alpha", 0.3, "--temperature", 4, "-o", tmp_path / "out")
    assert "temperature=4" in succeeded(distill("run", path, *options))
    soft, hard = of_run(tmp_path / "out")["distill_config"]
    assert soft["loss"] == "kl_divergence" and soft["weight"] == 0.3 and soft["args"] == {"temperature": 4.0}
    assert hard["loss"] == "cross_entropy" and hard["weight"] == 0.7


def test_stages_of_a_method_have_epochs_of_their_own(tmp_path: Path) -> None:
    stages = [{"name": "intermediate", "num_train_epochs": 2}, {"name": "prediction", "learning_rate": 1e-4}]
    path = written(tmp_path, distill_config=None, method="tinybert", stages=stages, student={"layers": [2]})
    said = succeeded(distill("run", path, "-o", tmp_path / "out", "--baseline"))
    run = of_run(tmp_path / "out")
    assert [entry["stage"] for entry in run["distill_config"]] == [["intermediate"]] * 3 + [["prediction"]]
    assert of_history(tmp_path / "out")[-1]["step"] == 9  # 24 rows, 8 a step: two epochs, and one
    assert run["settings"]["stages"] == stages
    baseline = tmp_path / "out" / "baseline"
    assert of_run(baseline)["settings"]["stages"] == [] and of_history(baseline)[-1]["step"] == 3
    assert list(rows_of_table(said)) == ["teacher", "student without distillation", "student with distillation"]


def test_a_run_of_written_stages_goes_on_where_it_was(tmp_path: Path) -> None:
    states = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    stages = [
        {"name": "states", "max_steps": 2, "distill_config": [states]},
        {"name": "task", "learning_rate": 1e-3, "distill_config": HARD},
    ]
    path = written(tmp_path, distill_config=None, stages=stages)
    succeeded(distill("run", path, "-o", tmp_path / "whole"))
    assert [line["step"] for line in of_history(tmp_path / "whole") if "eval_accuracy" in line] == [2, 5]
    part = (
        "run",
        path,
        "-o",
        tmp_path / "part",
        "--set",
        "training.save_steps=1",
        "--set",
        "training.save_total_limit=9",
    )
    succeeded(distill(*part))
    for folder in sorted((tmp_path / "part" / "checkpoints").iterdir())[3:]:  # as if it had been killed in the second
        shutil.rmtree(folder)
    succeeded(distill(*part, "--resume"))
    students = [tmp_path / name / "student" / "model.safetensors" for name in ("whole", "part")]
    assert students[0].read_bytes() == students[1].read_bytes()


def test_a_searched_mapping_is_printed(tmp_path: Path) -> None:
    teacher = {**TINY_BERT, "num_hidden_layers": 3, "initializer_range": 0.5, "max_position_embeddings": 128}
    own = {"method": "tinybert", "mapping": "search", "student": {"layers": [1, 2]}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"teacher": teacher, "vocab_size": 200, "max_train_samples": 64, **own}))
    said = succeeded(distill("check", path))  # on the sentences that come with the package
    assert said.startswith(
        "linear CKA of hidden states over 2 batches; mean of the chosen pairs 1.000, of evenly spaced"
    )
    assert re.search(r"^student +layer1 +layer2 +layer3$", said, re.MULTILINE)
    assert re.search(r"^layer1 +\[1\.00\] ", said, re.MULTILINE)


def test_the_method_is_layers_where_a_recipe_says_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, distill_config=None, student={"layers": [2]})
    succeeded(distill("run", path, "-o", tmp_path / "out"))
    losses = [(one["loss"], one["teacher"]) for one in of_run(tmp_path / "out")["distill_config"]]
    assert losses == [
        ("mse", ["embedding_layer.embedding"]),
        ("mse", ["layer2.hidden_states"]),
        ("mse", ["layer2.attention"]),
        ("kl_divergence", ["output.logits"]),
        ("cross_entropy", []),
    ]


def test_a_run_without_a_recipe(house: Path, tmp_path: Path) -> None:
    teacher = house / "teacher" / "student"
    data = ("--task", "sst2", "--data-dir", house / "glue", "--epochs", 1)
    said = succeeded(distill("run", "--teacher", teacher, "--student", "1", *data, "-o", tmp_path / "out"))
    assert list(rows_of_table(said)) == ["teacher", "student with distillation"]
    assert (tmp_path / "out" / "student" / "model.safetensors").exists()


def test_a_run_that_is_given_no_directory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = succeeded(distill("run", path))
    assert "student with" in said and "student: " + str(tmp_path) not in said
    assert contents(tmp_path) == before


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    path = written(tmp_path)
    succeeded(distill("run", path, "-o", tmp_path / "out", "--epochs", 2))
    succeeded(distill("run", path, "-o", tmp_path / "out", "--seed", 4, "--overwrite"))
    assert of_run(tmp_path / "out")["settings"]["seed"] == 4
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000003"]
    assert of_history(tmp_path / "out")[-1]["step"] == 3


def test_an_interrupted_run_with_baseline_goes_on(tmp_path: Path) -> None:
    """Resumed after the first of the two runs: the baseline starts afresh."""
    path = written(tmp_path)
    succeeded(distill("run", path, "-o", tmp_path / "out"))
    before = (tmp_path / "out" / "student" / "model.safetensors").read_bytes()
    said = succeeded(distill("run", path, "-o", tmp_path / "out", "--baseline", "--resume"))
    assert "student without distillation" in rows_of_table(said)
    assert (tmp_path / "out" / "student" / "model.safetensors").read_bytes() == before


def test_labels_alone_need_no_teacher(tmp_path: Path) -> None:
    """Every entry is hard, so the teacher of the recipe is loaded for the tokenizer and the table at most."""
    path = written(tmp_path, distill_config=HARD)
    said = succeeded(distill("run", path, "-o", tmp_path / "out"))
    assert list(rows_of_table(said)) == ["student"]
    assert of_run(tmp_path / "out")["models"]["teacher"] is None
    both = distill("run", path, "-o", tmp_path / "other", "--baseline")
    assert both.exit_code == 2 and "this recipe has no other entries" in both.stderr
    assert not (tmp_path / "other").exists()


# --- check, layers, demo -------------------------------------------------------------------------------------------


def test_check_prints_the_plan_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, output_dir=str(tmp_path / "out"))
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = succeeded(distill("check", path))
    for text in ("layer2.hidden_states", "layer1.hidden_states", "8×7×16", "mse", "cross_entropy", "labels"):
        assert text in said
    assert "teacher: BertForSequenceClassification" in said and "runs 2 of 2 layers" in said
    assert "step" not in said
    assert contents(tmp_path) == before


def test_layers_of_a_model_type_and_of_a_directory(tmp_path: Path) -> None:
    said = succeeded(distill("layers", "electra"))
    assert "ElectraModel" in said
    for name in ("embedding_layer.embedding", "layer12.hidden_states", "layer12.attention_scores"):
        assert re.search(rf"{re.escape(name)}\s", said)
    assert "electra_layer4" in said and "layer13" not in said
    bert(2).save_pretrained(tmp_path)
    said = succeeded(distill("layers", tmp_path))
    assert "BertForSequenceClassification" in said
    assert "output.logits" in said and "layer2.query" in said and "layer3" not in said


def shown(*arguments: Any) -> list[dict[str, Any]]:
    """What `distill presets` prints, as a list that is understood."""
    config = yaml.safe_load(succeeded(distill("presets", *arguments)))["distill_config"]
    parse_config(config).check()
    return config


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_is_shown_as_it_expands(name: str) -> None:
    if name in ("ofd", "margin_relu"):
        teacher = student = ResNetConfig()
    else:
        teacher, student = BertConfig(num_hidden_layers=12), BertConfig(num_hidden_layers=3)
    options = {"teacher_names": ["first", "second"]} if name == "meal_v2" else {}
    assert shown(name) == expand(name, teacher, student, **options)


def test_a_preset_is_shown_for_models_by_name(tmp_path: Path) -> None:
    bert(6, heads=4).save_pretrained(tmp_path / "teacher")
    bert(2, heads=2).save_pretrained(tmp_path / "student")
    both = ("--teacher", tmp_path / "teacher", "--student", tmp_path / "student")
    assert shown("tinybert", *both) == expand("tinybert", bert(6, heads=4).config, bert(2, heads=2).config)
    assert shown("tinybert", "--teacher", "vit") == shown("tinybert")  # twelve layers as well
    said = succeeded(distill("presets", "layers", *both))
    assert said.startswith("# teacher: bert with 6 layers; student: bert with 2 layers\ndistill_config:\n")
    assert succeeded(distill("presets", "ofd")).startswith("# teacher: resnet; student: resnet\n")


def test_all_presets_are_listed() -> None:
    said = succeeded(distill("presets"))
    for name in list_presets():
        assert re.search(rf"\b{name}\b", said)
    assert "relation_heads=None" in said and "teacher_names" in said and "mapping=skip" in said
    assert "regression" not in said and "student " not in said.partition("hinton")[0].partition("student_layers")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinybrt"], "method 'tinybrt' is unknown. Nearest: tinybert. Known: activation_boundary, at, "),
        (["pkd", "--teacher", "brt"], "no model 'brt': no such directory, hub name or model_type. Nearest: bert."),
        (["pkd", "--student", "resnet"], "needs a teacher at least as deep as the student; found depths [12, None]"),
        (["ofd", "--teacher", "bert"], "BertConfig and BertConfig do not end in a BatchNorm and a ReLU."),
        (["layers", "--teacher", "t5"], "an encoder-decoder has two stacks of layers: write its entries out"),
    ],
)
def test_what_cannot_be_shown(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = distill("presets", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("ConfigError: ") and message in result.stderr


def test_the_demo_in_a_few_steps(tmp_path: Path) -> None:
    said = succeeded(distill("demo", "--smoke", "-o", tmp_path))
    assert list(rows_of_table(said)) == ["teacher", "student without distillation", "student with distillation"]
    assert "bert_layer12.hidden_states" in said and "agree on" in said
    for name, depth in (("teacher", 12), ("student_without", 3), ("student", 3)):
        config = json.loads((tmp_path / name / "student" / "config.json").read_text())
        assert config["num_hidden_layers"] == depth
        assert of_history(tmp_path / name)[-1]["step"] == 4
    assert said.rstrip().endswith(f"student: {tmp_path / 'student' / 'student'}")


def test_a_regression_task_by_its_own_metric(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "STS-B"
    folder.mkdir(parents=True)
    for name, number in (("train", 12), ("dev", 6)):
        lines = [f"a film {i}\ta plot {i % 3}\t{i % 6}" for i in range(number)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    data = {"task": "stsb", "data_dir": str(tmp_path / "data")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe(tmp_path, distill_config=None), **data}))
    said = succeeded(distill("finetune", tmp_path / "recipe.yaml", "-o", tmp_path / "out"))
    assert "best_pearson: " in said and "eval_spearmanr: " in said
    entries = of_run(tmp_path / "out")["distill_config"]
    assert [one["loss"] for one in entries] == ["mse"]


def test_the_version() -> None:
    from knowledge_distillation import __version__

    assert succeeded(distill("--version")) == f"knowledge_distillation {__version__}\n"


def test_a_switch_is_shown_without_a_value() -> None:
    lines = succeeded(distill("run", "--help")).splitlines()
    shown = next(line for line in lines if "--resume" in line)
    assert "<bool>" not in shown and "Go on from the last checkpoint" in shown

"""A recipe: one file that says a whole run, and the objects it becomes."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import HARD, TINY_BERT, bert, glue_folder, recipe, same, weights, written

from knowledge_distillation import ConfigError, parse_config
from knowledge_distillation.config import parse
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.data.text import train_tokenizer
from knowledge_distillation.presets import expand
from knowledge_distillation.recipes.build import LoadedRecipe, load_data
from knowledge_distillation.recipes.build_models import zero_residual_branches
from knowledge_distillation.recipes.load import load_recipe
from knowledge_distillation.recipes.recipe import Recipe
from knowledge_distillation.tasks.glue import GlueTexts


def loaded(folder: Path, **changes: Any) -> LoadedRecipe:
    return LoadedRecipe.of(load_recipe(written(folder, **changes)))


# --- reading -------------------------------------------------------------------------------------------------------


def test_what_a_recipe_does_not_say_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: somewhere\n")
    assert load_recipe(path) == Recipe(teacher="somewhere") == load_recipe(None, (), {"teacher": "somewhere"})
    path.write_text("")
    assert load_recipe(path) == Recipe()


def test_later_wins_base_file_override_option(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("max_length: 1\nvocab_size: 11\nalpha: 0.1\ntemperature: 1.0\n")
    (tmp_path / "recipe.yaml").write_text("base: base.yaml\nvocab_size: 12\nalpha: 0.2\ntemperature: 2.0\n")
    read = load_recipe(tmp_path / "recipe.yaml", ["alpha=0.3", "temperature=3.0"], {"temperature": 4.0, "task": None})
    assert (read.max_length, read.vocab_size, read.alpha, read.temperature) == (1, 12, 0.3, 4.0)
    assert read.task is None  # an option that was not given changes nothing


def test_a_setting_named_on_the_command_line_holds_for_finetune_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("finetune: {num_train_epochs: 3, seed: 5}\n")
    read = partial(load_recipe, tmp_path / "recipe.yaml")
    assert read(["training.num_train_epochs=1"]).finetune == {"seed": 5}
    assert read((), {"training.num_train_epochs": 1, "training.seed": None}).finetune == {"seed": 5}
    both = ["training.num_train_epochs=1", "finetune.num_train_epochs=2"]
    assert read(both).finetune == {"num_train_epochs": 2, "seed": 5}


def test_a_method_on_the_command_line_takes_the_place_of_what_the_file_says_of_another(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: pkd\nalpha: 0.2\nmapping: last\nmethod_args: {beta: 7}\n")
    read = partial(load_recipe, tmp_path / "recipe.yaml")
    assert read((), {"method": "pkd"}).method_options() == {"alpha": 0.2, "mapping": "last", "beta": 7}
    assert read((), {"method": "hinton"}).method_options() == {"alpha": 0.2}
    assert read((), {"method": "tinybert"}).method_options() == {"mapping": "last"}
    with pytest.raises(ConfigError, match="method tinybert takes no 'alpha'"):
        read(["alpha=0.5"], {"method": "tinybert"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"distill_config": [STATES], "temperature": 3.0}))
    assert read((), {"method": "hinton"}).own_entries() is None


def test_a_base_may_have_a_base_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "root.yaml").write_text("max_length: 7\n")
    (tmp_path / "shared" / "middle.yaml").write_text("base: ../root.yaml\nvocab_size: 8\n")
    (tmp_path / "recipe.yaml").write_text("base: shared/middle.yaml\n")
    read = load_recipe(tmp_path / "recipe.yaml")
    assert (read.max_length, read.vocab_size) == (7, 8)


def test_settings_are_merged_with_the_base_and_everything_else_is_replaced(tmp_path: Path) -> None:
    base = {"training": {"seed": 1, "max_steps": 5}, "student": {"layers": [1]}, "finetune": {"seed": 2}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    over = {
        "base": "base.yaml",
        "training": {"seed": 3},
        "student": {"model_type": "bert"},
        "finetune": {"max_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(over))
    read = load_recipe(tmp_path / "recipe.yaml")
    assert read.training == {"seed": 3, "max_steps": 5} and read.finetune == {"seed": 2, "max_steps": 1}
    assert read.student == {"model_type": "bert"}


def test_an_override_makes_what_is_missing_on_its_way() -> None:
    read = load_recipe(None, ["training.seed=3", "student.layers=[1, 2]", "teacher.model_type=bert", "max_length=9"])
    assert read.training == {"seed": 3} and read.student == {"layers": [1, 2]} and read.max_length == 9
    assert read.teacher == {"model_type": "bert"}


def test_values_of_overrides_are_yaml() -> None:
    read = load_recipe(None, ["training.learning_rate=1e-4", "training.eval_steps=null", "task=sst2", "data_dir=a=b"])
    assert read.training == {"learning_rate": "1e-4", "eval_steps": None}  # YAML wants 1.0e-4; the settings read both
    assert read.data_dir == "a=b"


def test_an_override_meets_one_of_two_values_that_share_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: &one {model_type: bert, num_hidden_layers: 4}\nstudent: *one\n")
    read = load_recipe(path, ["student.num_hidden_layers=2"])
    assert read.teacher["num_hidden_layers"] == 4 and read.student["num_hidden_layers"] == 2


def test_all_problems_of_a_recipe_come_together() -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe(None, ["task=sst", "method=hintn", "training.seeed=1", "finetune.max_steps=x"])
    for part in (
        "task 'sst' is unknown",
        "method 'hintn'",
        "training: unknown setting 'seeed'",
        "finetune: max_steps",
    ):
        assert part in str(raised.value)


STATES = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "pkd", "method_args": {"betta": 1}}, "method pkd takes no 'betta'. Nearest: beta."),
        ({"method": "pkd", "method_args": {"beta": "much"}}, "beta of method pkd is a finite number of 0 or more"),
        ({"method": "pkd", "method_args": [1]}, "method_args is a mapping of arguments; found [1]"),
        ({"method": "tinybert", "alpha": 0.5}, "method tinybert takes no 'alpha'. It takes: mapping"),
        ({"method": "meal_v2"}, "method meal_v2 needs teacher_names"),
        ({"method": "hinton", "mapping": "last"}, "method hinton takes no 'mapping'."),
        ({"method": "minilm", "mapping": "last"}, "method minilm takes no 'mapping'."),
        (
            {"method": "pkd", "mapping": "serach"},
            "mapping is one of uniform, last, skip, search, or pairs of layers; found 'serach'. Nearest: search.",
        ),
        (
            {"method": "pkd", "mapping": [2, 1]},
            "mapping is a list of [teacher layer, student layer] pairs; found [2, 1]",
        ),
        ({"method": "pkd", "method_args": {"mapping": "lats"}}, "found 'lats'. Nearest: last."),
        ({"mapping": "last", "distill_config": [STATES]}, "mapping belongs to a method, and this recipe has a"),
        ({"method_args": {"beta": 1}, "distill_config": [STATES]}, "method_args belongs to a method"),
        ({"method": "pkd", "distill_config": [STATES]}, "give either method or distill_config"),
        (
            {"method": "pkd", "stages": [{"name": "a", "distill_config": [STATES]}]},
            "give either method or distill_config",
        ),
        ({"stages": "intermediate"}, "stages is a list of stages; found 'intermediate'"),
        ({"stages": [{"max_steps": 1}]}, "stages[0] is a mapping with a name; found {'max_steps': 1}"),
        ({"stages": [{"name": "a"}, {"name": None}]}, "stages[1] is a mapping with a name; found {'name': None}"),
        ({"stages": [{"name": "a", "seed": 1}]}, "training: stages[0]: 'seed' is no setting of a stage."),
        (
            {"stages": [{"name": "a", "distill_config": STATES}]},
            "stages[0]: distill_config is a list; found {'teacher'",
        ),
        (
            {"stages": [{"name": "a", "distill_config": [{**STATES, "stage": "b"}]}]},
            "stages[0]: its entries belong to stage 'a' and name no other",
        ),
        ({"stages": [{"name": "a"}], "training": {"stages": [{"name": "b"}]}}, "stages are given twice"),
    ],
)
def test_methods_mappings_and_stages_that_cannot_be(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe(None, (), content)
    assert str(raised.value).startswith("recipe: ") and message in str(raised.value)


# --- objects -------------------------------------------------------------------------------------------------------


def test_models_built_from_scratch_fit_the_tokenizer_and_the_task(tmp_path: Path) -> None:
    ready = loaded(tmp_path)
    student = ready.student()
    for model, depth in ((ready.teacher, 2), (student, 1)):
        assert model.config.vocab_size == len(ready.tokenizer) and model.config.num_labels == 2
        assert model.config.num_hidden_layers == depth and model.config.pad_token_id == ready.tokenizer.pad_token_id
    assert set(ready.data) == {"train", "validation"}
    assert {"input_ids", "attention_mask", "labels", "length"} <= set(ready.data["train"].column_names)


def test_a_student_is_fresh_each_time_and_the_same_each_time(tmp_path: Path) -> None:
    ready = loaded(tmp_path)
    first = ready.student()
    torch.manual_seed(123)
    second = ready.student()
    assert first is not second and same(weights(first), weights(second))
    assert not same(weights(first), weights(ready.student(seed=7)))


def test_the_seed_is_that_of_training(tmp_path: Path) -> None:
    ones = [loaded(tmp_path, training={"seed": seed, "mixed_precision": "no"}).teacher for seed in (1, 1, "2")]
    assert same(weights(ones[0]), weights(ones[1])) and not same(weights(ones[0]), weights(ones[2]))


def test_a_student_may_be_cut_out_of_the_teacher_or_of_another_model(tmp_path: Path) -> None:
    ready = loaded(tmp_path, student={"layers": [2]})
    student = ready.student()
    assert student.config.num_hidden_layers == 1
    ours, theirs = student.bert.encoder.layer[0], ready.teacher.bert.encoder.layer[1]
    assert same(weights(ours), weights(theirs))
    other = {**TINY_BERT, "num_hidden_layers": 3, "hidden_size": 8}
    student = loaded(tmp_path, student={"layers": [1, 3], "of": other}).student()
    assert student.config.num_hidden_layers == 2 and student.config.hidden_size == 8


def test_a_student_of_two_stacks_is_cut_by_stack(tmp_path: Path) -> None:
    sides = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads", "ffn_dim")}
    sizes = {"model_type": "bart", "d_model": 8, "max_position_embeddings": 160, **sides}
    student = loaded(tmp_path, teacher=sizes, student={"layers": {"encoder": [2], "decoder": [1]}}).student()
    assert (student.config.encoder_layers, student.config.decoder_layers) == (1, 1)
    message = 'BartForSequenceClassification are given as a mapping {"encoder": [...], "decoder": [...]}; found [2]'
    with pytest.raises(ConfigError, match=re.escape(message)):
        loaded(tmp_path, teacher=sizes, student={"layers": [2]}).student()


def test_the_tokenizer_is_the_named_one_or_that_of_a_saved_teacher(tmp_path: Path) -> None:
    for number, name in enumerate(("named", "teacher")):
        train_tokenizer([f"word{number} of text"], 60).save_pretrained(tmp_path / name)
    bert(2, vocab_size=60).save_pretrained(tmp_path / "teacher")
    saved = {"teacher": str(tmp_path / "teacher")}
    assert "1" in loaded(tmp_path, **saved).tokenizer.get_vocab()
    assert "0" in loaded(tmp_path, **saved, tokenizer=str(tmp_path / "named")).tokenizer.get_vocab()
    assert loaded(tmp_path).tokenizer.get_vocab().keys() >= {"film", "good"}  # trained on the sentences


def test_a_trained_tokenizer_has_seen_no_evaluation_text(tmp_path: Path) -> None:
    folder = glue_folder(tmp_path / "glue")
    (folder / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nqqqqq\t1\n")
    assert "q" not in loaded(tmp_path).tokenizer.get_vocab()


def test_entries_are_those_of_the_recipe_or_of_its_method(tmp_path: Path) -> None:
    ready = loaded(tmp_path)
    assert ready.config(ready.student()) == parse_config(recipe(tmp_path)["distill_config"])
    ready = loaded(tmp_path, distill_config=None, method="hinton", alpha=0.25, temperature=3.0)
    soft, hard = ready.config(ready.student()).entries
    assert (soft.weight, soft.args, hard.weight) == (0.25, {"temperature": 3.0}, 0.75)


def test_arguments_of_a_method(tmp_path: Path) -> None:
    three = {**TINY_BERT, "num_hidden_layers": 3}
    own = {"distill_config": None, "teacher": three, "student": {**TINY_BERT, "num_hidden_layers": 2}, "method": "pkd"}
    ready = loaded(tmp_path, **own, alpha=0.2, temperature=5, method_args={"beta": 10}, mapping=[[3, 1], [2, 2]])
    student = ready.student()
    options = {"alpha": 0.2, "temperature": 5, "beta": 10, "mapping": [[3, 1], [2, 2]]}
    assert ready.config(student) == parse_config(expand("pkd", ready.teacher, student, **options))
    ready = loaded(tmp_path, **own, method_args={"alpha": 0.7, "mapping": "last"}, alpha=0.2)  # the nearer one holds
    assert ready.config(student) == parse_config(expand("pkd", ready.teacher, student, alpha=0.7, mapping="last"))
    assert ready.why == ""


def test_a_mapping_that_is_searched(tmp_path: Path) -> None:
    teacher = {**TINY_BERT, "num_hidden_layers": 4, "initializer_range": 0.5}
    own = {"distill_config": None, "method": "tinybert", "teacher": teacher, "student": {"layers": [1, 2]}}
    ready = loaded(tmp_path, **own, mapping="search")
    student = ready.student()
    assert ready.config(student) == parse_config(expand("tinybert", ready.teacher, student, mapping=[(1, 1), (2, 2)]))
    assert "over 1 batches; mean of the chosen pairs 1.000" in ready.why and "[1.00]" in ready.why
    assert ready.config(student) == loaded(tmp_path, **own, mapping="search").config(student)


def test_stages_hold_settings_and_entries_of_their_own(tmp_path: Path) -> None:
    stages = [
        {"name": "states", "max_steps": 2, "distill_config": [STATES]},
        {"name": "task", "learning_rate": "1e-3", "distill_config": HARD},
    ]
    everywhere = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}
    ready = loaded(tmp_path, distill_config=[everywhere], stages=stages)
    student = ready.student()
    config = ready.config(student)
    assert config == parse_config([everywhere, {**STATES, "stage": "states"}, {**HARD[0], "stage": "task"}])
    run = ready.distiller(student, config, None)
    assert [(stage.name, len(stage.entries)) for stage in run.stages] == [("states", 2), ("task", 2)]
    assert [(stage.settings.max_steps, stage.settings.learning_rate) for stage in run.stages] == [
        (2, 5e-5),
        (-1, 1e-3),
    ]
    for plain in (ready.distiller(student, None, None), ready.distiller(ready.teacher, None, None, finetune=True)):
        assert [stage.name for stage in plain.stages] == [""]  # a baseline and a teacher learn in one


def test_stages_of_the_recipe_are_those_of_its_entries(tmp_path: Path) -> None:
    ready = loaded(tmp_path, distill_config=None, method="tinybert", stages=[{"name": "predicton"}])
    student = ready.student()
    with pytest.raises(ConfigError, match="stage 'intermediate' of distill_config is none of the run's"):
        ready.distiller(student, ready.config(student), None)
    halves = [{"name": "fast", "learning_rate": 1e-3}, {"name": "slow"}]  # entries of no stage are on in all of them
    ready = loaded(tmp_path, distill_config=None, method="born_again", stages=halves)
    run = ready.distiller(student, ready.config(student), None)
    assert [(stage.name, len(stage.entries), stage.settings.learning_rate) for stage in run.stages] == [
        ("fast", 2, 1e-3),
        ("slow", 2, 5e-5),
    ]


def test_a_recipe_is_parsed_once_on_its_way_to_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, settings, real_item, real_parse = [], [], parse._parse_item, TrainingSettings.parse
    monkeypatch.setattr(parse, "_parse_item", lambda index, *rest: items.append(index) or real_item(index, *rest))
    monkeypatch.setattr(TrainingSettings, "parse", lambda written: settings.append(written) or real_parse(written))
    ready = loaded(tmp_path)
    student = ready.student()
    ready.distiller(student, ready.config(student), None).plan()
    assert items == list(range(len(recipe(tmp_path)["distill_config"])))
    assert len(settings) == 2  # those of `training` and those of `finetune`


def test_labels_alone(tmp_path: Path) -> None:
    read = load_recipe(written(tmp_path, distill_config=None, method="hinton"))
    assert GlueTexts(read.glue_task).hard_entries() == HARD
    assert GlueTexts(Recipe(task="stsb").glue_task).hard_entries() == [{"student": "output.logits", "loss": "mse"}]
    assert Recipe(task="stsb").glue_task.is_regression and Recipe().glue_task.num_labels == 2


def test_samples_are_limited(tmp_path: Path) -> None:
    ready = loaded(tmp_path, max_train_samples=7, max_eval_samples=3)
    assert (len(ready.data["train"]), len(ready.data["validation"])) == (7, 3)
    embedded = load_data(Recipe(max_train_samples=5))
    assert (len(embedded["train"]), len(embedded["validation"])) == (5, 1000)


def test_text_is_cut_at_max_length(tmp_path: Path) -> None:
    rows = loaded(tmp_path, max_length=4).data["train"]
    assert max(rows["length"]) == 4 == max(map(len, rows["input_ids"]))


def test_layers_with_empty_branches_begin_as_the_identity(tmp_path: Path) -> None:
    ready = loaded(tmp_path, teacher={**TINY_BERT, "num_hidden_layers": 6, "zero_residual_branches": True})
    ids = torch.tensor([[2, 7, 9, 3]])
    states = ready.teacher.eval()(ids, output_hidden_states=True).hidden_states
    assert len(states) == 7 and all(torch.allclose(state, states[0], atol=1e-4) for state in states)
    plain = loaded(tmp_path, teacher={**TINY_BERT, "num_hidden_layers": 6}).teacher.eval()
    states = plain(ids, output_hidden_states=True).hidden_states
    assert not torch.allclose(states[6], states[0], atol=1e-2)
    with pytest.raises(ConfigError, match="needs layers built as BERT's; Linear has none"):
        zero_residual_branches(torch.nn.Linear(2, 2))


def test_the_best_student_of_a_task_is_chosen_by_its_own_metric(tmp_path: Path) -> None:
    ready = loaded(tmp_path)
    run = ready.distiller(ready.student(), None, None)
    assert run.settings.metric_for_best_model == "accuracy" and run.teacher is None
    named = {**recipe(tmp_path)["training"], "metric_for_best_model": "agreement"}
    ready = loaded(tmp_path, training=named)
    student = ready.student()
    run = ready.distiller(student, ready.config(student), None)
    assert run.settings.metric_for_best_model == "agreement" and run.teacher is not None


def test_a_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DATA_DIR", str(glue_folder(tmp_path / "glue", train=9)))
    assert len(load_data(Recipe(task="sst2"))["train"]) == 9

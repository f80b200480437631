"""Recipes and overrides that are odd or too much end in one clear error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from runs import TINY_BERT, distill, recipe, written

from knowledge_distillation import ConfigError
from knowledge_distillation.recipes.build import LoadedRecipe
from knowledge_distillation.recipes.build_models import from_pretrained
from knowledge_distillation.recipes.load import MOST_BASES, load_recipe
from knowledge_distillation.recipes.sweep_grid import parse_grid


@pytest.mark.case("F3")
def test_a_long_chain_of_bases(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text("max_length: 8\n")
    for number in range(1, 1100):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number - 1}.yaml\n")
    assert load_recipe(tmp_path / f"{MOST_BASES}.yaml").max_length == 8
    for number in (MOST_BASES + 1, 1099):
        with pytest.raises(ConfigError, match=rf"recipe .*{number}.yaml stands on more than {MOST_BASES} others"):
            load_recipe(tmp_path / f"{number}.yaml")


@pytest.mark.case("F4")
@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "distill_config.²=1",
            "--set distill_config.²: distill_config is a list of 2 items, counted from 0; found '²'",
        ),
        ("distill_config.-1=1", "distill_config is a list of 2 items, counted from 0; found '-1'"),
        ("distill_config.99999999999999999999=1", "distill_config is a list of 2 items"),
        ("training.learning_rate=2020-13-45", "--set training.learning_rate=2020-13-45: the value is not valid YAML"),
        ("alpha=0x_", "--set alpha=0x_: the value is not valid YAML"),
        ("training={1: 2}", "recipe: training is a mapping of settings; found {1: 2}"),
        ("training={learning_rate: 1, learning_rate: 2}", "the key 'learning_rate' stands twice in one mapping"),
        ("finetune={[1]: 2}", "the value is not valid YAML"),
        ("method_args=[[1]]", "recipe: method_args is a mapping of arguments; found [[1]]"),
        ("max_length=" + "9" * 400, "the value: it has a whole number of more than 64 bits"),
        ("output_dir=" + "x" * 300, "recipe: output_dir is a text; found 'xxx"),
        ('task="a\\0b"', "the value: it has a text with a NUL character: 'a\\x00b'"),
        ("vocab_size=99999999999", "recipe: vocab_size is a whole number from 1 to 1,000,000; found 99999999999"),
        ("=1", "recipe: unknown key ''"),
    ],
)
def test_an_odd_override_is_one_error(override: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_recipe(path, [override])
    assert told in str(raised.value)


@pytest.mark.case("F4")
def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    result = distill("check", written(tmp_path), "--set", "training.learning_rate=2020-13-45")
    assert result.exit_code == 2 and "ConfigError: --set training.learning_rate=2020-13-45" in result.stderr


def test_an_odd_grid(tmp_path: Path) -> None:
    for text in ("temperature=2020-13-45", "temperature=1]", "temperature=" + "[" * 2000):
        with pytest.raises(ConfigError, match="^--grid temperature="):
            parse_grid([text])


@pytest.mark.case("F5")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": {"model_type": ["a"]}}, "recipe: teacher: model_type ['a'] is not one transformers knows."),
        ({"teacher": {"model_type": {}}}, "recipe: teacher: model_type {} is not one transformers knows."),
        ({"teacher": {**TINY_BERT, 1: 2}}, "recipe: teacher: a bert config has no field 1."),
        ({"teacher": {**TINY_BERT, "num_hidden_layers": 10**9}}, "it has more than 20,000 modules"),
        ({"teacher": {**TINY_BERT, "max_position_embeddings": 32_000_000}}, "it has more than 500,000,000 parameters"),
        ({"teacher": {**TINY_BERT, "num_labels": 10**9}}, "recipe: teacher: num_labels is at most 100,000"),
        ({"teacher": {**TINY_BERT, "zero_residual_branches": 3}}, "zero_residual_branches is true or false; found 3"),
        ({"teacher": "./" + "x" * 300}, "xxx': no such directory, for the teacher's tokenizer"),
        ({"teacher": "~nobody/x"}, "recipe: '~nobody/x': no such directory"),
        ({"student": {"layers": None}}, "recipe: student: layers is a list of at most 1,000 numbers"),
        ({"student": {"layers": [1] * 1001}}, "recipe: student: layers is a list of at most 1,000 numbers"),
        ({"student": {"layers": [1], 1: 2}}, "has the keys layers and of; found [1]"),
        ({"student": {**TINY_BERT, "hidden_size": "wide"}}, "recipe: student: cannot build a bert for sst2: "),
    ],
)
def test_an_odd_model_is_one_error(changes: dict, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    began = time.process_time()
    with pytest.raises(ConfigError) as raised:
        LoadedRecipe.of(load_recipe(path)).student()
    assert told in str(raised.value) and time.process_time() - began < 5


def test_entries_that_are_no_mappings_are_numbered(tmp_path: Path) -> None:
    entries = recipe(tmp_path)["distill_config"]
    with pytest.raises(ConfigError, match=r"\[2\] an entry is a mapping; found int\n  \[3\] an entry is a mapping"):
        load_recipe(written(tmp_path, distill_config=[*entries, 5, [6]])).config.check()


@pytest.mark.parametrize("auto", ["AutoTokenizer", "AutoModelForSequenceClassification"])
def test_a_name_that_is_no_folder_is_not_said_to_be_a_fault_of_the_network_alone(auto, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = "'bm/nothere': there is no such folder here, and the hub is not asked .HF_HUB_OFFLINE is set"
    with pytest.raises(ConfigError, match=message):
        from_pretrained(auto, "bm/nothere", "model for sst2")

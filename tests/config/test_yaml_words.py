"""YAML 1.1 takes `no`, `off`, `yes` and `on` for booleans: where a text is asked for they stay texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from runs import distill, written

from knowledge_distillation import ConfigError
from knowledge_distillation.config.parse import parse_config
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.config.validation import parts_of
from knowledge_distillation.config.written import parse_yaml
from knowledge_distillation.config.yaml_words import TEXTS
from knowledge_distillation.recipes.load import load_recipe
from knowledge_distillation.recipes.sweep_grid import parse_grid

WORDS = ["no", "No", "off", "OFF", "yes", "on"]


@pytest.mark.case("D14")
@pytest.mark.parametrize("said", ["no", "No", "off", "false", "'no'"])
def test_no_is_a_precision_on_the_command_line_and_in_a_file(said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"training: {{mixed_precision: {said}}}")
    assert load_recipe(path).settings.mixed_precision == "no"
    assert load_recipe(None, [f"training.mixed_precision={said}"]).settings.mixed_precision == "no"
    assert parse_grid([f"training.mixed_precision=bf16,{said}"])["training.mixed_precision"][0] == "bf16"


@pytest.mark.case("D14")
def test_the_command_runs_with_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert distill("check", path, "--set", "training.mixed_precision=no").exit_code == 0
    refused = distill("check", path, "--set", "training.mixed_precision=yes")
    assert refused.exit_code == 2
    assert "mixed_precision is one of auto, no, bf16, fp16; found 'yes'" in refused.stderr


def test_a_choice_that_says_no_takes_every_way_to_say_it() -> None:
    for off in (False, "no", "off", "none"):
        settings = TrainingSettings.parse({"mixed_precision": off, "balance": off})
        assert (settings.mixed_precision, settings.balance) == ("no", "none")
        written: Any = [off] if isinstance(off, str) else off
        assert TrainingSettings.parse({"report_to": off}).report_to == ()
        assert TrainingSettings.parse({"report_to": written}).report_to == ()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.case("D14")
def test_every_setting_that_takes_a_text_gets_the_word(word: str) -> None:
    hints = get_type_hints(TrainingSettings, include_extras=True)
    takes_text = {
        name
        for name, hint in hints.items()
        if any(part is str or get_origin(part) is Literal for part in parts_of(hint)) and "args" not in name
    }
    assert {"mixed_precision", "teacher_cache", "metric_for_best_model", "report_to", "optim"} <= takes_text
    for name in takes_text - {"lr_scheduler_kwargs", "stages"}:
        assert parse_yaml(f"{{{name}: {word}}}", "it", TEXTS) == {name: word}
        assert parse_yaml(f"training: {{{name}: [{word}, &a {word}, *a]}}", "it", TEXTS) == {
            "training": {name: [word] * 3}
        }
        assert parse_yaml(word, "it", TEXTS, key=name) == word
    assert "group_by_length" not in TEXTS and get_args(hints["group_by_length"])[0] is bool
    assert parse_yaml(f"group_by_length: {word}", "it", TEXTS)["group_by_length"] is (word.lower() in ("yes", "on"))


def test_words_in_entries_stages_and_recipes(tmp_path: Path) -> None:
    path = tmp_path / "entries.yaml"
    path.write_text("- {student: output.logits, loss: cross_entropy, name: off, stage: [on, no], projection: no}")
    [entry] = parse_config(path).check().entries
    assert entry.name == "off" and entry.stage == ("on", "no") and entry.projection.type == "none"
    recipe = load_recipe(None, ["output_dir=no", "stages=[{name: on}, {name: off}]", "task=cifar10", "augment=no"])
    assert recipe.output_dir == "no" and recipe.augment is False
    assert [stage["name"] for stage in recipe.settings.stages] == ["on", "off"]
    assert load_recipe(None, ["stages=[{name: a}]", "stages.0.name=yes"]).settings.stages[0]["name"] == "yes"


def test_yaml_that_refers_to_itself_and_empty_yaml() -> None:
    assert parse_yaml("", "it", TEXTS) is None
    with pytest.raises(ConfigError, match="nested too deep"):
        parse_yaml("&a [*a, no]", "it", TEXTS)

"""What is too much, too deep or no text at all is refused before anybody asks what it means."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SOFT, distiller

from knowledge_distillation import ConfigError, parse_config
from knowledge_distillation.config.parse import MOST_NAMES, expand_braces
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.config.written import DEEPEST, MOST_BYTES, MOST_VALUES, oddity, parse_yaml

ENTRY = {"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}


def problems_of(**changes: Any) -> str:
    return "\n".join(text for _, text in parse_config([{**ENTRY, **changes}]).problems)


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def laughs(levels: int = 40) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.case("F1")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("{1,2}" * 40 + ".hidden_states", "has more than 20 braces"),
        ("{1,2}" * 15 + ".hidden_states", f"stand for more than {MOST_NAMES:,} names"),
        ("layer{1..999999999}.hidden_states", f"stand for more than {MOST_NAMES:,} names"),
        ("layer{" + "9" * 4000 + "..0}.hidden_states", f"stand for more than {MOST_NAMES:,} names"),
        ("layer{" + ",".join("1" * 2000) + "}.hidden_states", f"stand for more than {MOST_NAMES:,} names"),
    ],
)
def test_braces_that_stand_for_too_many_names(name: str, told: str) -> None:
    began = time.process_time()
    assert told in problems_of(teacher=name) and told in problems_of(student=[name])
    assert time.process_time() - began < 1


def test_braces_up_to_the_limit() -> None:
    assert len(expand_braces(f"layer{{1..{MOST_NAMES}}}.x")) == MOST_NAMES
    assert expand_braces("a{b,c{d,e}}") == ["ab", "acd", "ab", "ace"]


def test_no_more_entries_than_anybody_writes() -> None:
    with pytest.raises(ConfigError, match="distill_config has 1,001 entries: at most 1,000"):
        parse_config([ENTRY] * 1001)
    with pytest.raises(ConfigError, match="distill_config has more than 1,000 entries, braces expanded"):
        parse_config([{**ENTRY, "teacher": "a{1..600}.x"}] * 2)


@pytest.mark.case("F5")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"student": []}, "student as a list names from 1 to 1,000 features; found 0"),
        ({"teacher": ()}, "teacher as a list names from 1 to 1,000 features; found 0"),
        ({"weight": 10**400}, "weight has a whole number of more than 64 bits"),
        ({"args": {"a": {"b": [0, -(10**400)]}}}, "args.a.b[1] has a whole number of more than 64 bits"),
        ({"name": "a\0b"}, "name has a text with a NUL character: 'a\\x00b'"),
        ({"name": "a\ud800"}, r"name has a text that is no valid Unicode: 'a\ud800'"),
        ({"teacher": "x" * 5000}, "teacher has a text of 5,000 characters, 'xxxxxxxxxxxxxxxxxxxx'…: at most 4,096"),
        ({"args": in_itself()}, f"is nested too deep: at most {DEEPEST} levels"),
        ({"args": laughs()}, f"holds more than {MOST_VALUES:,} values"),
        ({"loss": {1: 2, "a": 3, None: 4}}, "the keys 'loss_function' and 'args'; found ['1', 'None', 'a']"),
        ({"type": np.ones(2)}, "type is 'hard_distill' or 'ts_distill'; found array([1., 1.])"),
        ({"type": ["ts_distill"]}, "found ['ts_distill']"),
        ({"x" * 5000: 1}, "it has a text of 5,000 characters"),
    ],
)
def test_an_odd_value_is_a_problem_of_its_entry(changes: dict[Any, Any], told: str) -> None:
    found = parse_config([ENTRY, {**ENTRY, **changes}]).problems
    assert {index for index, _ in found} == {1} and told in "\n".join(text for _, text in found)


@pytest.mark.case("F4")
@pytest.mark.parametrize(
    "text",
    [
        "2020-13-45",
        "0x_",
        "!!timestamp x",
        "!!float a",
        "!!int x",
        "!!bool x",
        "!!binary é",
        "? {a: b}\n: c",
        "a: b: c",
    ]
    + [
        "9" * 5000,
        "[" * 2000,
        "- " * 2000,
        "&a [*a]",
        '"\\ud800"',
        "a\0b",
        "=",
        "{a: 1, a: 2}",
        "!!python/name:os.system",
    ],
)
def test_yaml_that_says_nothing_is_one_error(text: str) -> None:
    with pytest.raises(ConfigError, match="^it (is not valid YAML|is nested too deep|: |it )|^it: "):
        parse_yaml(text, "it")


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- teacher: a.b\n  student: a.b\n  loss: mse\n  teacher: c.d\n")
    with pytest.raises(ConfigError, match="the key 'teacher' stands twice in one mapping\n.*line 4"):
        parse_config(path)


def test_aliases_that_multiply(tmp_path: Path) -> None:
    """Lists of lists, and mappings merged into mappings."""
    path = tmp_path / "config.yaml"
    lists = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    merges = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60))]
    for lines, told in ((lists, "nested too deep|more than 100,000 values"), (merges, "a mapping of too many keys")):
        path.write_text("\n".join(lines))
        began = time.process_time()
        with pytest.raises(ConfigError, match=told):
            parse_config(path)
        assert time.process_time() - began < 2


def test_a_merge_of_mappings_still_reads() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "it")["b"] == {"x": 3, "y": 2}


def test_a_file_that_is_too_large_or_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("#" * (MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="is larger than 200,000 bytes"):
        parse_config(path)
    for name in ("x" * 5000, "a\0b", str(tmp_path)):
        with pytest.raises(ConfigError, match="does not exist"):
            parse_config(name)


def test_values_within_the_limits_are_not_odd() -> None:
    assert oddity({"a": [1.5, "é", None, True, -(2**63)], 1: {"b": {"c"}}}) is None
    assert oddity(["x"] * (MOST_VALUES - 1)) is None and oddity([[]] * MOST_VALUES) is not None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rate": 10**400}, "learning_rate has a whole number of more than 64 bits"),
        ({"optim_args": "momentum=2020-13-45", "optim": "sgd"}, "optim_args"),
        ({"stages": [{"name": "a", 1: 2}]}, r"stages\[0\]: 1 is no setting of a stage"),
        ({"lr_scheduler_kwargs": laughs()}, "lr_scheduler_kwargs.* holds more than"),
        ({1: 2}, "unknown setting 1"),
    ],
)
def test_settings_of_odd_values_are_one_error(settings: dict[Any, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TrainingSettings.parse(settings)


@pytest.mark.case("F10")
def test_two_mistakes_in_one_entry_are_both_said() -> None:
    for wrong, told in (
        ({"wieght": 2, "teacher": "layer9.hidden_states", "student": "layer1.hidden_states"}, "unknown key 'wieght'"),
        (
            {"weight": 10**400, "teacher": "layer9.hidden_states", "student": "layer1.hidden_states"},
            "weight has a whole",
        ),
        ({"projection": "liner", "student": "layer9.hidden_states", "teacher": "layer1.hidden_states"}, "liner"),
    ):
        with pytest.raises(ConfigError) as raised:
            distiller([*SOFT, {"loss": "mse", **wrong}]).plan()
        assert told in str(raised.value) and "layer9.hidden_states: the " in str(raised.value)
        assert str(raised.value).count("\n  [1] ") == 2

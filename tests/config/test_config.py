"""The language of distill_config: two ways to write an entry, one frozen form, and every problem told at once."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch.nn.functional as F
from torch import nn

from knowledge_distillation import ConfigError, parse_config
from knowledge_distillation.config.entry import Entry, Feature, Projection
from knowledge_distillation.config.parse import expand_braces
from knowledge_distillation.config.schedules import Schedule

SHORT = {"teacher": "bert_layer4.hidden_states", "student": "bert_layer1.hidden_states", "loss": "mse"}
LONG = {
    "type": "ts_distill",
    "teacher_layer_name": "bert_layer4",
    "teacher_layer_output_name": "hidden_states",
    "student_layer_name": "bert_layer1",
    "student_layer_output_name": "hidden_states",
    "loss": {"loss_function": "mse", "args": {}},
    "weight": 1.0,
}
HARD_SHORT = {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5}
HARD_LONG = {
    "type": "hard_distill",
    "student_layer_name": "output",
    "student_layer_output_name": "logits",
    "loss": {"loss_function": "cross_entropy", "args": {}},
    "weight": 0.5,
}


def pairs(config) -> list[tuple[str, str]]:
    """Teacher and student of every entry, as text."""
    join = lambda features: "+".join(map(str, features))  # noqa: E731
    return [(join(entry.teacher), join(entry.student)) for entry in parse_config(config).check().entries]


def problems(*items) -> list[tuple[int, str]]:
    return list(parse_config(list(items)).problems)


# --- one frozen form -------------------------------------------------------------------------------


@pytest.mark.parametrize(("short", "long"), [(SHORT, LONG), (HARD_SHORT, HARD_LONG)], ids=["soft", "hard"])
def test_both_forms_give_the_same_entry(short, long):
    assert parse_config([short]) == parse_config([long])
    assert parse_config([short]).check().entries == parse_config([long]).check().entries


def test_an_entry_reads_as_data():
    (entry,) = parse_config([LONG]).entries
    assert entry == Entry(
        index=0,
        student=(Feature("bert_layer1", "hidden_states"),),
        teacher=(Feature("bert_layer4", "hidden_states"),),
        loss="mse",
        args={},
        weight=1.0,
        name="mse:bert_layer1_hidden_states",
        projection=Projection("auto"),
        many=False,
    )
    assert not entry.hard
    assert str(entry.student[0]) == "bert_layer1.hidden_states"


def test_an_entry_without_a_teacher_is_hard():
    hard = parse_config([HARD_SHORT]).check()
    assert hard.entries[0].hard
    assert not hard.needs_teacher
    assert parse_config([HARD_SHORT, SHORT]).needs_teacher


def test_entries_are_frozen():
    config = parse_config([SHORT])
    with pytest.raises(dataclasses.FrozenInstanceError, match="weight"):
        config.entries[0].weight = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError, match="entries"):
        config.entries = ()


def test_a_parsed_config_is_taken_as_it_is():
    config = parse_config([SHORT])
    assert parse_config(config) is config
    assert config.check() is config


def test_parsing_leaves_what_was_written_alone():
    args = {"temperature": 4}
    written = [{**SHORT, "args": args, "weight": 2}]
    (entry,) = parse_config(written).entries
    args["temperature"] = 8
    assert entry.args == {"temperature": 4}
    assert written == [{**SHORT, "args": {"temperature": 8}, "weight": 2}]


@pytest.mark.parametrize(
    ("loss", "args"),
    [
        ({"loss": "kl_divergence", "args": {"temperature": 4}}, {"temperature": 4}),
        ({"loss": {"loss_function": "kl_divergence", "args": {"temperature": 4}}}, {"temperature": 4}),
        ({"loss": {"loss_function": "kl_divergence"}, "args": {"temperature": 4}}, {"temperature": 4}),
        ({"loss": {"loss_function": "kl_divergence", "args": None}}, {}),
        ({"loss": {"loss_function": "kl_divergence"}}, {}),
        ({"loss": "kl_divergence", "args": None}, {}),
    ],
)
def test_a_loss_and_its_arguments(loss, args):
    (entry,) = parse_config([{**SHORT, **loss}]).check().entries
    assert (entry.loss, entry.args) == ("kl_divergence", args)


def test_a_loss_may_be_a_callable():
    module = nn.L1Loss()

    def own_loss(student, teacher):
        return (student - teacher).abs().mean(-1)

    losses = [own_loss, module, F.mse_loss, "mse"]
    entries = parse_config([{**SHORT, "loss": {"loss_function": loss}} for loss in losses]).check().entries
    assert [entry.loss for entry in entries] == losses
    assert [entry.loss_name for entry in entries] == ["own_loss", "L1Loss", "mse_loss", "mse"]
    assert parse_config([{**SHORT, "loss": own_loss}]).check().entries[0].loss is own_loss


@pytest.mark.parametrize(
    ("written", "projection"),
    [("auto", "auto"), ("linear", "linear"), ("none", "none"), (None, "none"), (False, "none"), (True, "auto")],
)
def test_projections(written, projection):
    assert parse_config([{**SHORT, "projection": written}]).check().entries[0].projection.type == projection


@pytest.mark.parametrize("weight", [0, 1, 2.5, 1e-9])
def test_weights(weight):
    (entry,) = parse_config([{**SHORT, "weight": weight}]).check().entries
    assert entry.weight == weight
    assert isinstance(entry.weight, float)


def test_a_module_path_is_a_layer():
    (entry,) = (
        parse_config([{**SHORT, "student": "encoder.layer.3.output[1]", "teacher": "a.b.c.input"}]).check().entries
    )
    assert entry.student == (Feature("encoder.layer.3", "output[1]"),)
    assert entry.teacher == (Feature("a.b.c", "input"),)


def test_a_module_path_in_the_long_form_keeps_its_dots():
    item = {**LONG, "student_layer_name": "encoder.layer.3", "student_layer_output_name": "output[1]"}
    assert parse_config([item]).check().entries[0].student == (Feature("encoder.layer.3", "output[1]"),)


# --- braces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", ["plain"]),
        ("a{1,2}", ["a1", "a2"]),
        ("a{ 1, 2 }", ["a1", "a2"]),
        ("a{3..5}", ["a3", "a4", "a5"]),
        ("a{5..3}", ["a5", "a4", "a3"]),
        ("a{-2..1}", ["a-2", "a-1", "a0", "a1"]),
        ("a{4..4}", ["a4"]),
        ("{x,y}_{1,2}", ["x_1", "x_2", "y_1", "y_2"]),
        ("a{4}", ["a4"]),
        ("a{1.b", ["a{1.b"]),
    ],
)
def test_braces_expand(text, expanded):
    assert expand_braces(text) == expanded


def test_braces_pair_up_one_to_one():
    item = {**SHORT, "teacher": "layer{4,8,12}.hidden_states", "student": "layer{1..3}.hidden_states"}
    assert pairs([item]) == [(f"layer{4 * n}.hidden_states", f"layer{n}.hidden_states") for n in (1, 2, 3)]


def test_one_feature_pairs_with_many():
    item = {**SHORT, "teacher": "layer12.hidden_states", "student": "layer{1,2}.hidden_states"}
    assert pairs([item]) == [("layer12.hidden_states", f"layer{n}.hidden_states") for n in (1, 2)]
    item = {**SHORT, "teacher": "layer{3,6}.hidden_states", "student": "layer1.hidden_states"}
    assert pairs([item]) == [(f"layer{n}.hidden_states", "layer1.hidden_states") for n in (3, 6)]


def test_braces_may_stand_in_the_output_as_well():
    item = {**SHORT, "teacher": "layer4.{query,key}", "student": "layer1.{query,key}"}
    assert pairs([item]) == [("layer4.query", "layer1.query"), ("layer4.key", "layer1.key")]


def test_braces_in_the_long_form():
    item = {**LONG, "teacher_layer_name": "layer{2,4}", "student_layer_name": "layer{1,2}"}
    assert pairs([item]) == [
        ("layer2.hidden_states", "layer1.hidden_states"),
        ("layer4.hidden_states", "layer2.hidden_states"),
    ]
    short = {**SHORT, "teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states"}
    assert parse_config([item]).entries == parse_config([short]).entries


def test_braces_of_a_hard_entry():
    item = {"student": "exit{1,2}.logits", "loss": "cross_entropy"}
    assert pairs([item]) == [("", "exit1.logits"), ("", "exit2.logits")]


def test_everything_else_is_said_of_each():
    item = {**SHORT, "teacher": "layer{2,4}.query", "student": "layer{1,2}.query", "weight": 0.5, "args": {"a": 1}}
    for entry in parse_config([item]).check().entries:
        assert (entry.weight, entry.args, entry.index) == (0.5, {"a": 1}, 0)


def test_unequal_counts_are_a_problem():
    item = {**SHORT, "teacher": "layer{4,8,12}.hidden_states", "student": "layer{1,2}.hidden_states"}
    ((index, text),) = problems(item)
    assert index == 0 and text.startswith("braces pair up one to one: 3 teacher features, 2 student features. A loss")


def test_entries_are_numbered_by_the_item_as_written():
    config = parse_config([{**SHORT, "teacher": "layer{2,4}.key", "student": "layer{1,2}.key"}, SHORT, HARD_SHORT])
    assert [entry.index for entry in config.entries] == [0, 0, 1, 2]


# --- lists of features -----------------------------------------------------------------------------


def test_a_list_of_features_is_one_entry():
    item = {**SHORT, "teacher": ["layer2.hidden_states", "layer4.hidden_states"], "student": ["layer1.hidden_states"]}
    (entry,) = parse_config([item]).check().entries
    assert entry.many
    assert pairs([item]) == [("layer2.hidden_states+layer4.hidden_states", "layer1.hidden_states")]


def test_braces_in_a_list_belong_to_the_list():
    item = {**SHORT, "teacher": ["layer{2,4}.query", "layer6.key"], "student": ["layer{1..3}.query"]}
    assert pairs([item]) == [("layer2.query+layer4.query+layer6.key", "layer1.query+layer2.query+layer3.query")]


def test_a_list_on_one_side_makes_the_other_one_of_many_as_well():
    (entry,) = parse_config(
        [{**SHORT, "student": ["layer1.query", "layer2.query"], "teacher": "layer4.query"}]
    ).entries
    assert entry.many
    assert len(entry.student) == 2
    assert len(entry.teacher) == 1


# --- names -----------------------------------------------------------------------------------------


def test_names_are_made_up_and_unique():
    names = [entry.name for entry in parse_config([SHORT, SHORT, HARD_SHORT, SHORT]).check().entries]
    assert names == [
        "mse:bert_layer1_hidden_states",
        "mse:bert_layer1_hidden_states#2",
        "cross_entropy:output_logits",
        "mse:bert_layer1_hidden_states#3",
    ]


def test_a_made_up_name_gives_way_to_a_given_one():
    items = [SHORT, {**SHORT, "name": "mse:bert_layer1_hidden_states"}]
    assert [entry.name for entry in parse_config(items).check().entries] == [
        "mse:bert_layer1_hidden_states#2",
        "mse:bert_layer1_hidden_states",
    ]


def test_a_given_name_is_numbered_where_braces_expand():
    item = {**SHORT, "teacher": "layer{2,4}.key", "student": "layer{1,2}.key", "name": "keys"}
    assert [entry.name for entry in parse_config([item]).check().entries] == ["keys[0]", "keys[1]"]


def test_names_can_be_names_of_torch_modules():
    module = nn.ModuleDict()
    for entry in parse_config([{**SHORT, "student": "encoder.layer.3.output[1]"}, {**SHORT, "name": "mine"}]).entries:
        module[entry.name] = nn.Identity()
    assert len(module) == 2


def test_a_name_used_twice():
    items = [{**SHORT, "name": "mine"}, HARD_SHORT, {**SHORT, "name": "mine"}]
    assert problems(*items) == [(2, "name 'mine' is used twice")]


# --- problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wieght": 2}, "unknown key 'wieght'. Nearest: weight. Keys: type, teacher_layer_name"),
        ({"teacher_layer": "x"}, "unknown key 'teacher_layer'. Nearest: teacher"),
        ({"weight": -1}, "weight is a finite number of 0 or more; found -1"),
        ({"weight": math.nan}, "weight is a finite number of 0 or more; found nan"),
        ({"weight": math.inf}, "weight is a finite number of 0 or more; found inf"),
        ({"weight": "one"}, "weight is a finite number of 0 or more; found 'one'"),
        ({"weight": True}, "weight is a finite number of 0 or more; found True"),
        ({"weight": None}, "weight is a finite number of 0 or more; found None"),
        ({"type": "ts_distil"}, "type is 'hard_distill' or 'ts_distill'; found 'ts_distil'. Nearest: ts_distill."),
        (
            {"type": "hard_distill"},
            "type hard_distill compares the student with the labels and takes no teacher feature",
        ),
        ({"loss": None}, "missing key 'loss'"),
        ({"loss": 3}, "loss is a name or a callable; found 3"),
        ({"loss": {"loss": "mse"}}, "loss as a mapping has the keys 'loss_function' and 'args'; found ['loss']"),
        ({"loss": {"loss_function": "mse", "kwargs": {}}}, "found ['kwargs', 'loss_function']"),
        (
            {"loss": {"loss_function": "mse", "args": {"a": 1}}, "args": {"b": 2}},
            "args are given twice: beside the loss and inside it",
        ),
        ({"args": [1]}, "args is a mapping of the loss's arguments; found [1]"),
        (
            {"projection": "liner"},
            "exit, none; found 'liner'. Nearest: linear.",
        ),
        ({"projection": {1: 2}}, "unknown key 1 in projection. Keys: type, shared, width, hidden_size, trainable"),
        (
            {"projection": {"type": "liner"}},
            "projection is one of auto, linear, mlp, conv1x1, ",
        ),
        ({"name": "a.b"}, "name is a text without '.' and '/', and not 'loss'; found 'a.b'"),
        ({"name": "a/b"}, "name is a text without '.' and '/', and not 'loss'; found 'a/b'"),
        ({"name": "loss"}, "name is a text without '.' and '/', and not 'loss'; found 'loss'"),
        ({"name": 3}, "name is a text without '.' and '/', and not 'loss'; found 3"),
        ({"teacher": "hidden_states"}, "teacher 'hidden_states' is not a feature name of the form 'layer.output'"),
        ({"student": ".logits"}, "student '.logits' is not a feature name of the form 'layer.output'"),
        ({"student": 4}, "student 4 is not a feature name of the form 'layer.output'"),
        ({"student": ["layer1.query", "key"]}, "student 'key' is not a feature name of the form 'layer.output'"),
        ({"student": None}, "missing key 'student' (or 'student_layer_name' and 'student_layer_output_name')"),
        (
            {"type": "ts_distill", "teacher": None},
            "type ts_distill is missing key 'teacher' (or 'teacher_layer_name' and its output name)",
        ),
        (
            {"teacher_layer_name": "x"},
            "give either 'teacher' or the two keys 'teacher_layer_name', 'teacher_layer_output_name'",
        ),
        ({"teacher": None, "teacher_layer_name": "x"}, "missing key 'teacher_layer_output_name'"),
        ({"student": None, "student_layer_output_name": "x"}, "missing key 'student_layer_name'"),
    ],
)
def test_a_wrong_entry_is_told_with_its_number(change, message):
    config = parse_config([HARD_SHORT, {**SHORT, **change}])
    assert len(config.problems) == 1
    assert config.flawed == {1} and config.entries[0].index == 0  # the right entry is there
    with pytest.raises(ConfigError, match=r"^1 problem in distill_config\n  \[1\] .*" + re.escape(message)):
        config.check()


def test_an_entry_that_is_no_mapping():
    assert problems(SHORT, "mse") == [(1, "an entry is a mapping; found str")]


def test_every_problem_is_told_at_once_in_the_order_of_the_items():
    config = parse_config([{**SHORT, "weight": -1}, SHORT, {**SHORT, "wieght": 1, "loss": 3}])
    with pytest.raises(ConfigError) as error:
        config.check()
    lines = str(error.value).splitlines()
    assert lines[0] == "3 problems in distill_config"
    assert [line[:5] for line in lines[1:]] == ["  [0]", "  [2]", "  [2]"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "distill_config is empty: a run needs at least one entry"),
        (SHORT, "distill_config is a list of entries; found dict"),
        (3, "distill_config is a list of entries; found int"),
        (None, "distill_config is a list of entries; found NoneType"),
    ],
)
def test_a_config_that_is_no_list(config, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(config)


def test_a_config_error_is_the_builtin_one_expects():
    with pytest.raises(ValueError, match="distill_config is empty"):
        parse_config([])


# --- what else an entry may say --------------------------------------------------------------------


def test_an_entry_with_everything():
    item = {
        **SHORT,
        "reduction": "sequence_mean",
        "stage": ["first", 2],
        "teacher_name": "large",
        "projection": {"type": "mlp", "shared": "maps", "width": 8, "hidden_size": 4, "trainable": False},
        "teacher_projection": "linear",
        "projection_checkpoint": "runs/earlier",
        "learning_rate": 1e-3,
        "schedule": {"weight": "warmup"},
    }
    config = parse_config([item]).check()
    (entry,) = config.entries
    assert (entry.reduction, entry.stage, entry.learning_rate) == ("sequence_mean", ("first", "2"), 1e-3)
    assert entry.projection == Projection("mlp", "maps", 8, 4, False)
    assert (entry.teacher_projection, entry.projection_checkpoint) == (Projection("linear"), "runs/earlier")
    assert entry.schedule == {"weight": Schedule("warmup", end=1.0)}
    assert entry.teacher == (Feature("bert_layer4", "hidden_states", "large"),)
    assert str(entry.teacher[0]) == "large:bert_layer4.hidden_states"
    assert config.stages == ("first", "2")


def test_braces_repeat_what_else_is_said():
    item = {**SHORT, "student": "layer{1,2}.hidden_states", "stage": "a", "teacher_name": "self", "reduction": "sum"}
    entries = parse_config([item]).check().entries
    assert [(e.stage, e.teacher[0].model, e.reduction) for e in entries] == [(("a",), "self", "sum")] * 2


def test_several_teachers_of_one_entry():
    item = {**SHORT, "loss": F.mse_loss, "teacher_name": ["a", "b"]}
    (entry,) = parse_config([item]).check().entries
    assert [feature.model for feature in entry.teacher] == ["a", "b"] and entry.many


@pytest.mark.parametrize(
    ("name", "needed"), [("self", False), ("peer", False), ("large", True), (["self", "a"], True)]
)
def test_a_teacher_model_is_needed_where_an_entry_asks_for_one(name, needed):
    assert parse_config([{**SHORT, "teacher_name": name}]).needs_teacher is needed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "avg"}, "reduction is one of mean, sequence_mean, batch_mean, sum; found 'avg'."),
        ({"reduction": None}, "reduction is one of mean, sequence_mean, batch_mean, sum; found None."),
        ({"stage": ""}, "stage is a name or a number, or a list of them; found ''"),
        ({"stage": True}, "stage is a name or a number, or a list of them; found True"),
        ({"stage": {"a": 1}}, "stage is a name or a number, or a list of them; found {'a': 1}"),
        ({"stage": ["a", 1.5]}, "stage is a name or a number, or a list of them; found ['a', 1.5]"),
        ({"teacher_name": ""}, "teacher_name is the name of a teacher, or a list of names; found ''"),
        ({"teacher_name": []}, "teacher_name is the name of a teacher, or a list of names; found []"),
        ({"teacher_name": 1}, "teacher_name is the name of a teacher, or a list of names; found 1"),
        (
            {"teacher_name": ["a", None]},
            "teacher_name is the name of a teacher, or a list of names; found ['a', None]",
        ),
        ({"teacher_name": "a", "teacher": None}, "teacher_name 'a' is given, and no teacher feature"),
        ({"teacher_nam": "a"}, "unknown key 'teacher_nam'. Nearest: teacher_name."),
        ({"shedule": {}}, "unknown key 'shedule'. Nearest: schedule."),
    ],
)
def test_what_else_may_be_wrong(change, message):
    ((index, text),) = parse_config([{**SHORT, **change}]).problems
    assert index == 0 and text.startswith(message)


# --- YAML ------------------------------------------------------------------------------------------

YAML = """
- {teacher: "bert_layer{4,8,12}.hidden_states", student: "bert_layer{1,2,3}.hidden_states", loss: mse}
- {teacher: output.logits, student: output.logits, loss: kl_divergence, args: {temperature: 4}, weight: 0.5}
- {student: output.logits, loss: cross_entropy}            # no teacher: a hard entry
"""
AS_LIST = [
    {"teacher": "bert_layer{4,8,12}.hidden_states", "student": "bert_layer{1,2,3}.hidden_states", "loss": "mse"},
    {
        "teacher": "output.logits",
        "student": "output.logits",
        "loss": "kl_divergence",
        "args": {"temperature": 4},
        "weight": 0.5,
    },
    {"student": "output.logits", "loss": "cross_entropy"},
]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_yaml_file_says_the_same_as_a_list(tmp_path, as_text):
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    config = parse_config(str(path) if as_text else path)
    assert config == parse_config(AS_LIST)
    assert len(config.check().entries) == 5


def test_a_yaml_file_may_hold_the_list_under_its_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: somewhere\ndistill_config:" + YAML.replace("\n-", "\n  -"))
    assert parse_config(path) == parse_config(AS_LIST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: somewhere", "distill_config is a list of entries; found dict"),
        ("", "distill_config is a list of entries; found NoneType"),
        ("- {teacher: [", "config.yaml is not valid YAML: .*line 1"),
        ("- !!python/object/apply:os.getcwd []", "config.yaml is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_wrong_yaml_file(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse_config(path)


def test_a_yaml_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="distill_config file .*missing.yaml does not exist"):
        parse_config(tmp_path / "missing.yaml")

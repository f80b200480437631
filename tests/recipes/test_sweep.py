"""A grid of runs: what its keys name, what its runs share, how it goes on, and what it says in the end."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from processes import Forked
from runs import HARD, SOFT, batches, bert, distill, same, weights, written
from torch import nn
from transformers import BertForSequenceClassification
from watching import KillAt, Killed

from knowledge_distillation import Callback, ConfigError, DistillationError, KnowledgeDistiller
from knowledge_distillation.cli import commands as command_line
from knowledge_distillation.recipes.load import load_recipe
from knowledge_distillation.recipes.sweep import Row, Sweep, sweep
from knowledge_distillation.recipes.sweep_grid import RecipeRuns, parse_grid, points, resolved
from knowledge_distillation.recipes.sweep_report import axes_of, heat_of, heat_table, picture_of, table_of

LOGITS = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "weight": 0.5}
LABELS = {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5}
LONG = {
    **{"type": "ts_distill", "teacher_layer_name": "output", "teacher_layer_output_name": "logits"},
    **{"student_layer_name": "output", "student_layer_output_name": "logits"},
    "loss": {"loss_function": "kl_divergence", "args": {"temperature": 2}},
}
HIDDEN = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}


def recipe_of(tmp_path: Path, **content) -> object:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(path)


# --- what a key names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "key", "names"),
    [
        ({"distill_config": [HIDDEN, LOGITS, LABELS]}, "weight", {"distill_config.1.weight": 0.3}),
        ({"distill_config": [HIDDEN, LOGITS]}, "temperature", {"distill_config.1.args.temperature": 0.3}),
        ({"distill_config": [LONG]}, "temperature", {"distill_config.0.loss.args.temperature": 0.3}),
        (
            {"distill_config": [LABELS, LOGITS]},
            "alpha",
            {"distill_config.1.weight": 0.3, "distill_config.0.weight": 0.7},
        ),
        (
            {"distill_config": [HIDDEN], "stages": [{"name": "a"}, {"name": "b", "distill_config": [HIDDEN, LOGITS]}]},
            "weight",
            {"stages.1.distill_config.1.weight": 0.3},
        ),
        ({"method": "hinton"}, "alpha", {"alpha": 0.3}),
        ({"method": "hinton"}, "weight", {"alpha": 0.3}),
        ({}, "temperature", {"temperature": 0.3}),
        ({"method": "attention_transfer"}, "weight", {"method_args.weight": 0.3}),
        ({"distill_config": [LOGITS]}, "training.learning_rate", {"training.learning_rate": 0.3}),
    ],
)
def test_a_key_names_one_thing_in_the_recipe(content, key, names, tmp_path):
    assert resolved(recipe_of(tmp_path, **content), key, 0.3) == pytest.approx(names)


@pytest.mark.parametrize(
    ("content", "key", "told"),
    [
        (
            {},
            "temprature",
            "--grid temprature: a recipe has no key 'temprature'. Nearest: temperature. Keys: teacher,",
        ),
        ({}, "trainig.seed", "--grid trainig.seed: a recipe has no key 'trainig'. Nearest: training."),
        ({}, "training.seed", "--grid training.seed: give seeds as --seeds 1,2,3"),
        ({}, "output_dir", "--grid output_dir: the sweep gives each run a directory"),
        ({"method": "born_again"}, "temperature", "--grid temperature: method born_again takes no temperature."),
        (
            {"distill_config": [LOGITS, LOGITS]},
            "weight",
            "--grid weight: it speaks of the one entry with a teacher on logits, and there are 2. Name one: "
            "distill_config.0.weight, distill_config.1.weight",
        ),
        ({"distill_config": [HIDDEN]}, "temperature", "the one entry with a teacher on logits, and there are 0"),
        ({"distill_config": [LOGITS]}, "alpha", "--grid alpha: it speaks of the one entry of labels, and there are 0"),
        (
            {"distill_config": [{**LOGITS, "loss": "mse"}]},
            "temperature",
            "--grid temperature: loss mse of distill_config.0 takes no temperature",
        ),
    ],
)
def test_a_key_that_is_unknown_or_names_nothing_is_an_error(content, key, told, tmp_path):
    with pytest.raises(ConfigError) as error:
        resolved(recipe_of(tmp_path, **content), key, 0.3)
    assert told in str(error.value)


def test_a_grid_is_read_as_yaml():
    assert parse_grid(["weight=0.2,1", "student.layers=[1,2],[2]"]) == {
        "weight": [0.2, 1],
        "student.layers": [[1, 2], [2]],
    }


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "a sweep needs a grid: --grid temperature=2,4,8"),
        (["weight"], "--grid takes key=value,value as in temperature=2,4,8; found 'weight'"),
        (["weight="], "--grid weight has no value"),
        (["weight=1,2,1"], "--grid weight has 1 twice"),
        (["weight=1", "weight=2"], "--grid weight is given twice"),
        (["weight=[1"], "--grid weight=[1: the list of values is not valid YAML"),
    ],
)
def test_a_grid_that_cannot_be_read_is_an_error(texts, told):
    with pytest.raises(ConfigError) as error:
        parse_grid(texts)
    assert told in str(error.value)


def test_every_combination_comes_with_every_seed():
    made = points({"a": [1, 2], "b": ["x"]}, [3, 4])
    assert [point.name for point in made] == ["a=1,b=x,seed=3", "a=2,b=x,seed=3", "a=1,b=x,seed=4", "a=2,b=x,seed=4"]
    with pytest.raises(ConfigError, match=re.escape("seeds are different whole numbers, one or more; found [1, 1]")):
        points({"a": [1]}, [1, 1])


# --- from Python -----------------------------------------------------------------------------------------------------

ROWS = 12


class Counted:
    """Makes the runs of a sweep over one teacher, and counts the rows that go through it."""

    def __init__(self, teacher: nn.Module | None = None, **options) -> None:
        self.counted, self.made, self.options = [], [], options
        self.teacher = teacher or bert(layers=2)
        counted = self.counted  # copies of the model keep the hook, and it this list
        self.teacher.register_forward_pre_hook(
            lambda module, args, kwargs: counted.append(len(kwargs["input_ids"])), with_kwargs=True
        )

    @property
    def rows(self) -> int:
        return sum(self.counted)

    def __call__(self, values, seed, output_dir, teacher_cache) -> KnowledgeDistiller:
        self.made.append((dict(values), seed))
        config = [{**SOFT[0], "weight": values["weight"], "args": {"temperature": values["temperature"]}}, *HARD]
        options = {"mixed_precision": "no", "device": "cpu", "disable_tqdm": True, "learning_rate": 1e-2}
        options |= {"num_train_epochs": 3, "metric_for_best_model": "score", "evaluator": self.score, **self.options}
        return KnowledgeDistiller(
            self.teacher,
            bert(layers=1, seed=seed),
            config,
            train_dataloader=batches(3),
            dev_dataloader=batches(1),
            output_dir=output_dir,
            teacher_cache=teacher_cache,
            teacher_cache_dtype="float32",
            seed=seed,
            **options,
        )

    def score(self, student, teacher, dataloader, accelerator) -> dict[str, float]:
        values, seed = self.made[-1]
        return {"score": values["weight"] * 10 + values["temperature"] + seed / 10}


GRID = {"weight": [0.2, 0.8], "temperature": [1, 4]}


def test_the_teacher_runs_once_on_every_sample_in_all_runs_of_a_sweep(tmp_path):
    alone = Counted()
    alone(dict(weight=0.2, temperature=1), 1, tmp_path / "alone", None).plan()
    probe = alone.rows  # what it takes to bind one run
    make = Counted()
    result = sweep(make, GRID, [1, 2], output_dir=tmp_path / "sweep")
    assert len(make.made) == 8 and not result.missing
    assert make.rows - 8 * probe == ROWS

    apart = Counted()
    sweep(apart, GRID, [1], output_dir=tmp_path / "apart", share_teacher=False)
    assert apart.rows - 4 * probe == 4 * 3 * ROWS


def test_rows_are_ranked_by_their_mean_with_the_spread_over_seeds(tmp_path):
    result = sweep(Counted(), GRID, [1, 3], output_dir=tmp_path)
    assert [tuple(row.values.values()) for row in result.rows] == [(0.8, 4), (0.8, 1), (0.2, 4), (0.2, 1)]
    assert result.rows[0].scores == pytest.approx({1: 12.1, 3: 12.3})
    assert result.rows[0].mean == pytest.approx(12.2) and result.rows[0].spread == pytest.approx(0.02**0.5)
    assert result.best == tmp_path / "runs" / "weight=0.8,temperature=4,seed=3" / "student"
    assert BertForSequenceClassification.from_pretrained(result.best).config.num_hidden_layers == 1


def test_where_less_is_better_the_smallest_is_first(tmp_path):
    make = Counted(greater_is_better=False)
    result = sweep(make, {"weight": [0.2, 0.8], "temperature": [1]}, [1], output_dir=tmp_path, greater_is_better=False)
    assert [row.values["weight"] for row in result.rows] == [0.2, 0.8] and "weight=0.2" in str(result.best)
    with pytest.raises(ConfigError, match="the runs have greater_is_better False, and the sweep the opposite"):
        sweep(make, {"weight": [0.5], "temperature": [1]}, [1], output_dir=tmp_path)


def test_a_sweep_that_was_broken_off_goes_on_with_what_is_not_done(tmp_path):
    whole = sweep(Counted(), GRID, [1], output_dir=tmp_path / "whole")

    class Breaks(Counted):
        def __call__(self, *given):
            distiller = super().__call__(*given)
            if len(self.made) == 3:
                distiller.callbacks.append(KillAt(5))
            return distiller

    first, second = Breaks(), Counted()
    with pytest.raises(Killed):
        sweep(first, GRID, [1], output_dir=tmp_path / "broken")
    seen: list[int] = []

    class Begins(Callback):
        def on_train_begin(self, distiller) -> None:
            seen.append(distiller.progress.step)

    second.options["callbacks"] = [Begins()]
    again = sweep(second, GRID, [1], output_dir=tmp_path / "broken")
    assert first.made[2] in second.made and len(second.made) == 2
    assert sorted(seen) == [0, 3]  # the third run from its first epoch's checkpoint, the fourth from the beginning
    assert [row.scores for row in again.rows] == [row.scores for row in whole.rows]
    for folder in (tmp_path / "whole" / "runs").glob("*/student"):
        other = tmp_path / "broken" / folder.relative_to(tmp_path / "whole")
        students = [BertForSequenceClassification.from_pretrained(path) for path in (folder, other)]
        assert same(*map(weights, students))
    last = Counted()
    assert sweep(last, GRID, [1], output_dir=tmp_path / "broken").rows == again.rows and last.made == []


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    make = Counted()
    with FileLock(runs / "weight=0.8,temperature=4,seed=1.lock"):
        result = sweep(make, GRID, [1], output_dir=tmp_path)
        assert result.missing == ["runs/weight=0.8,temperature=4,seed=1"]
    assert len(make.made) == 3
    assert not sweep(make, GRID, [1], output_dir=tmp_path).missing and len(make.made) == 4


def test_a_wider_grid_keeps_the_runs_that_are_there(tmp_path):
    sweep(Counted(), {"weight": [0.2], "temperature": [1]}, [1], output_dir=tmp_path)
    trained: list[int] = []

    class Steps(Callback):
        def on_step_end(self, distiller) -> None:
            trained.append(1)

    result = sweep(Counted(callbacks=[Steps()]), {"weight": [0.2, 0.8], "temperature": [1]}, [1], output_dir=tmp_path)
    assert not result.missing and len(trained) == 9


def test_a_run_whose_loss_is_no_number_has_no_score_and_the_others_go_on(tmp_path):
    class Fails(Callback):
        def on_step_end(self, distiller) -> None:
            if distiller.loss_model.config.entries[0].weight == 0.2:
                raise DistillationError("the loss is not finite")

    told: list[str] = []
    result = sweep(Counted(callbacks=[Fails()]), GRID, [1], output_dir=tmp_path, say=told.append)
    assert [row.mean is None for row in result.rows] == [False, False, True, True]
    assert sum("no score: the loss is not finite" in text for text in told) == 2
    assert result.missing == [f"runs/weight=0.2,temperature={t},seed=1" for t in (1, 4)]


def test_a_score_that_is_no_number_ranks_nowhere(tmp_path):
    class Collapsed(Counted):
        def score(self, student, teacher, dataloader, accelerator):
            scores = super().score(student, teacher, dataloader, accelerator)
            return {"score": math.nan} if self.made[-1][0]["temperature"] == 4 else scores

    texts: list[str] = []
    result = sweep(Collapsed(), GRID, [1], output_dir=tmp_path, say=texts.append)
    assert [row.values for row in result.rows[:2]] == [{"weight": w, "temperature": 1} for w in (0.8, 0.2)]
    assert [row.mean is None for row in result.rows] == [False, False, True, True]
    assert sum("no score: best score is nan" in text for text in texts) == len(result.missing) == 2


def test_a_sweep_needs_a_metric(tmp_path):
    class Unscored(Counted):
        def __call__(self, values, seed, output_dir, teacher_cache):
            distiller = super().__call__(values, seed, output_dir, teacher_cache)
            distiller.dev_dataloader = None
            return distiller

    with pytest.raises(ConfigError, match="a sweep ranks its runs by a metric: give evaluation data"):
        sweep(Unscored(), GRID, [1], output_dir=tmp_path)


# --- what it says ----------------------------------------------------------------------------------------------------


def told(grid: dict, scores: list[float | None], seeds: list[int] | None = None) -> Sweep:
    seeds = seeds or [1]
    values = [point.values for point in points(grid, [1])]
    rows = [
        Row(v, {} if one is None else {seed: one for seed in seeds}, {seed: "r" for seed in seeds})
        for v, one in zip(values, scores, strict=True)
    ]
    rows.sort(key=lambda row: -(row.mean or -1))
    return Sweep(Path("s"), grid, seeds, "accuracy", True, rows)


def printed(table: object) -> str:
    from rich.console import Console

    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_heat_map_has_temperature_across_and_the_best_of_further_keys():
    result = told({"temperature": [2, 4], "weight": [0.1, 0.9], "lr": [1, 2]}, [1, 2, 3, 4, 5, 6, 7, None])
    assert axes_of(result) == ("weight", "temperature")
    assert heat_of(result) == [[2, 6], [4, 7]]
    assert axes_of(told({"weight": [1, 2]}, [1, 2])) == ("weight", "")


def test_the_text_heat_map_shades_from_the_worst_to_the_best():
    text = printed(heat_table(told({"weight": [0.1, 0.9], "temperature": [2, 4]}, [0.5, 0.75, None, 1.0])))
    lines = [line.split() for line in text.splitlines() if re.match(r"\s+0\.\d", line)]
    assert lines == [["0.1", "0.5000", "0.7500", "▒"], ["0.9", "-", "1.0000", "█"]]


def test_the_table_has_a_column_for_each_seed():
    text = printed(table_of(told({"weight": [0.1, 0.9]}, [0.5, 0.75], [1, 2])))
    lines = [line.split() for line in text.splitlines() if re.match(r"\s+0\.\d", line)]
    assert lines == [["0.9", "0.7500", "0.0000", "0.7500", "0.7500"], ["0.1", "0.5000", "0.0000", "0.5000", "0.5000"]]


def test_the_heat_map_is_a_picture_as_well():
    drawn = picture_of(told({"weight": [0.1, 0.9], "temperature": [2, 4]}, [0.5, 0.75, None, 1.0]))
    assert (
        drawn.count("<svg") == 1
        and "temperature" in drawn
        and "1.0000" in drawn
        and "0.7500" in drawn
        and "nan" not in drawn
    )
    assert "<dc:date>" not in drawn


# --- by command ------------------------------------------------------------------------------------------------------

TAUGHT = [{**LOGITS, "args": {"temperature": 2}}, LABELS]
SWEEP = ("--grid", "weight=0.2,0.8", "--grid", "temperature=2,4")


def test_the_command_prints_a_table_and_a_heat_map_and_names_the_best_student(tmp_path):
    path = written(tmp_path, distill_config=TAUGHT)
    done = distill("sweep", path, *SWEEP, "--seeds", "1,2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metric"] == "accuracy" and results["seeds"] == [1, 2] and len(results["rows"]) == 4
    assert all(set(row["scores"]) == {"1", "2"} and row["spread"] is not None for row in results["rows"])
    means = [row["mean"] for row in results["rows"]]
    assert means == sorted(means, reverse=True)
    best = tmp_path / "out" / results["best_student"]
    assert BertForSequenceClassification.from_pretrained(best) and f"best student: {best}" in done.output
    assert "weight \\ temperature" in done.output and (tmp_path / "out" / "heatmap.svg").exists()
    assert (tmp_path / "out" / "results.md").read_text().count("\n| 0.") == 4
    entries = [
        json.loads((run / "run.json").read_text()) for run in (tmp_path / "out" / "runs").glob("*") if run.is_dir()
    ]
    found = {(e["distill_config"][0]["weight"], e["distill_config"][0]["args"]["temperature"]) for e in entries}
    assert found == {(0.2, 2), (0.2, 4), (0.8, 2), (0.8, 4)} and {e["settings"]["seed"] for e in entries} == {1, 2}
    assert len(list((tmp_path / "out" / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--grid", "tempature=2,4"), "--grid tempature: a recipe has no key 'tempature'. Nearest: temperature."),
        (("--grid", "training.lerning_rate=1"), "training: unknown setting 'lerning_rate'. Nearest: learning_rate."),
        (
            ("--grid", "distill_config.7.weight=1"),
            "--grid distill_config.7.weight: distill_config is a list of 2 items",
        ),
        (("--grid", "distill_config.0.wieght=1"), "[0] unknown key 'wieght'."),
        (
            ("--grid", "student.hiden_size=16"),
            "recipe: student: a bert config has no field 'hiden_size'. Nearest: hidden_size.",
        ),
        (("--grid", "temperature=2,-1"), "temperature"),
        (("--grid", "weight=1", "--seeds", "a"), "--seeds takes whole numbers, as in 1,2,3; found 'a'"),
        ((), "a sweep needs a grid: --grid temperature=2,4,8"),
    ],
)
def test_what_does_not_fit_is_one_error_before_anything_runs(arguments, told, tmp_path):
    path = written(tmp_path, distill_config=TAUGHT)
    done = distill("sweep", path, *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 2 and told in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_sweep_may_get_more_epochs_and_no_other_recipe(tmp_path):
    path = written(tmp_path, distill_config=TAUGHT)
    call = ("sweep", path, "--grid", "weight=0.2", "-o", tmp_path / "out")
    assert distill(*call).exit_code == 0
    refused = distill(*call, "--set", "training.learning_rate=0.1")
    assert refused.exit_code == 2
    assert "settings.learning_rate: it has 5e-05, asked is 0.1" in " ".join(refused.stderr.split())
    refused = distill(*call, "--set", "max_length=9", "--set", "student.hidden_dropout_prob=0.5")
    told = " ".join(refused.stderr.split())
    assert "recipe.max_length: it has 16, asked is 9" in told
    assert "recipe.student.hidden_dropout_prob: it has null, asked is 0.5" in told
    assert distill(*call, "--epochs", "2").exit_code == 0
    lines = (tmp_path / "out" / "runs" / "weight=0.2,seed=1" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "eval_accuracy" in line] == [3, 6]


def test_every_value_of_a_grid_is_bound_before_anything_runs(tmp_path, monkeypatch):
    bound: list[float] = []
    monkeypatch.setattr(RecipeRuns, "__call__", lambda self, values, *_: bound.append(dict(values)) or _Plan())
    runs = RecipeRuns(written(tmp_path, distill_config=TAUGHT))
    runs.check({"weight": [0.1, 0.2, 0.3], "temperature": [2, 4]}, [1])
    assert bound == [
        {"weight": 0.1, "temperature": 2},
        {"weight": 0.2, "temperature": 4},
        {"weight": 0.3, "temperature": 4},
    ]


class _Plan:
    """As much of a distiller as `check` looks at."""

    evaluator, dev_dataloader = staticmethod(max), ()
    settings = type("Settings", (), {"greater_is_better": True})

    def plan(self) -> None: ...

    def close(self) -> None: ...


def test_runs_over_one_teacher_load_it_once_and_others_anew(tmp_path):
    path = written(tmp_path, distill_config=TAUGHT)
    runs = RecipeRuns(path)
    made = [runs({"weight": w}, seed, None, None) for w, seed in ((0.2, 1), (0.8, 2))]
    one, other = (weights(distiller.teacher.model) for distiller in made)
    assert same(one, other) and made[0].evaluator is made[1].evaluator
    assert not same(weights(made[0].student), weights(made[1].student))  # its own seed
    longer = runs({"max_length": 8}, 1, None, None)
    assert longer.evaluator is not made[0].evaluator
    assert [d.settings.seed for d in made] == [1, 2]


def sweep_in_a_process(*arguments: str) -> None:
    command_line.app([*arguments], standalone_mode=False)


@pytest.mark.parametrize("processes", [2])
def test_several_processes_share_a_sweep(processes, tmp_path):
    path = written(tmp_path, distill_config=TAUGHT)
    call = ("sweep", str(path), *SWEEP, "-o", str(tmp_path / "out"))
    started = [Forked(sweep_in_a_process, *call, log=tmp_path / f"{n}.log") for n in range(processes)]
    assert [process.wait() for process in started] == [0] * processes
    said = "".join((tmp_path / f"{n}.log").read_text() for n in range(processes))
    begun = re.findall(r"^(\S+) begins$", said, re.MULTILINE)
    assert len(begun) == len(set(begun)) == 4 == len(list((tmp_path / "out" / "runs").glob("*/score.json")))

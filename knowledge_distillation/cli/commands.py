"""The command `distill`. Each command is a few lines over the library; heavy imports wait until a command runs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(
    help="Make small transformers out of big ones: a list says which teacher layer teaches which student layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    Optional[Path], typer.Argument(help="A recipe (YAML); none: options alone.", metavar="RECIPE")
]
Override = Annotated[list[str], typer.Option("--set", help="Override any key: --set training.learning_rate=1e-4")]
TaskOption = Annotated[Optional[str], typer.Option("--task", help="A GLUE task, an image task, or 'embedded'.")]
DataDir = Annotated[
    Optional[str],
    typer.Option("--data-dir", help="Folder in GLUE's TSV layout, or of pictures. [GLUE_DATA_DIR, IMAGE_DATA_DIR]"),
]
Teacher = Annotated[Optional[str], typer.Option("--teacher", help="Directory or hub name.")]
Student = Annotated[
    Optional[str], typer.Option("--student", help="Directory, hub name, or layers of the teacher to keep: 4,8,12")
]
OutputDir = Annotated[Optional[str], typer.Option("--output-dir", "-o", help="Where the run goes.")]
Epochs = Annotated[Optional[int], typer.Option("--epochs", help="training.num_train_epochs")]
Seed = Annotated[Optional[int], typer.Option("--seed", help="training.seed")]
Cache = Annotated[
    Optional[str], typer.Option("--teacher-cache", help="Folder for the teacher's features: each sample runs once.")
]
Method = Annotated[Optional[str], typer.Option("--method", help="A preset: see `distill presets`.")]
MaxTrain = Annotated[Optional[int], typer.Option("--max-train-samples", help="A fixed random part of the train set.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the output directory.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in the output directory.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Log to TensorBoard in the output directory.")]

_WIDTH = 120  # of a table, where nobody looks at it in a terminal


@app.command()
def run(
    recipe: RecipeArgument = None,
    overrides: Override = [],  # noqa: B006 (typer copies it)
    teacher: Teacher = None,
    student: Student = None,
    task: TaskOption = None,
    data_dir: DataDir = None,
    method: Method = None,
    alpha: Annotated[Optional[float], typer.Option("--alpha", help="Weight of the soft part, 0 to 1.")] = None,
    temperature: Annotated[Optional[float], typer.Option("--temperature", help="Of the soft part.")] = None,
    epochs: Epochs = None,
    seed: Seed = None,
    max_train_samples: MaxTrain = None,
    teacher_cache: Cache = None,
    output_dir: OutputDir = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the same student without the teacher, for the table.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: Tensorboard = False,
) -> None:
    """Distil a student; print what teacher, student with and student without distillation score."""
    from ..errors import ConfigError
    from ..recipes.build import Ingredients
    from ..recipes.recipe import load_recipe

    given = _given(
        teacher,
        student,
        task,
        data_dir,
        epochs=epochs,
        seed=seed,
        max_train_samples=max_train_samples,
        output_dir=output_dir,
        overwrite=overwrite,
        tensorboard=tensorboard,
    )
    given |= {"alpha": alpha, "temperature": temperature, "method": method, "training.teacher_cache": teacher_cache}
    with _errors(), _quiet():
        read = load_recipe(recipe, overrides, given)
        if read.own_entries() is not None and (alpha is not None or temperature is not None):
            raise ConfigError("--alpha and --temperature belong to a method, and this recipe has a distill_config")
        ready = Ingredients.of(read)
        small = ready.student()
        distiller = ready.distiller(small, ready.entries(small), read.output_dir)
        if baseline and not distiller.is_taught:
            raise ConfigError("--baseline is the student on labels alone, and this recipe has no other entries")
        _say(ready.why)
        _print(distiller.plan())
        metrics = distiller.train(resume_from_checkpoint=resume)
        without = None
        if baseline:
            _say("student without distillation: the same student and settings, labels only")
            folder = None if read.output_dir is None else Path(read.output_dir) / "baseline"
            plain = ready.distiller(ready.student(), read.hard_entries(), folder)
            without = plain.train(resume_from_checkpoint=resume and folder is not None and folder.exists())
        _final(ready, distiller, metrics, small, without)
        if read.output_dir:
            _say(f"student: {Path(read.output_dir) / 'student'}")


@app.command()
def finetune(
    recipe: RecipeArgument = None,
    overrides: Override = [],  # noqa: B006
    model: Annotated[Optional[str], typer.Option("--model", "--teacher", help="Directory or hub name.")] = None,
    task: TaskOption = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    seed: Seed = None,
    max_train_samples: MaxTrain = None,
    output_dir: OutputDir = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: Tensorboard = False,
) -> None:
    """Fine-tune a teacher on a task: the same loop, with labels only. Its directory is OUTPUT_DIR/student."""
    from ..recipes.build import Ingredients
    from ..recipes.recipe import load_recipe

    given = _given(
        model,
        None,
        task,
        data_dir,
        epochs=epochs,
        seed=seed,
        max_train_samples=max_train_samples,
        output_dir=output_dir,
        overwrite=overwrite,
        tensorboard=tensorboard,
    )
    with _errors(), _quiet():
        read = load_recipe(recipe, overrides, given)
        ready = Ingredients.of(read)
        distiller = ready.distiller(ready.teacher, read.hard_entries(), read.output_dir, finetune=True)
        _print(distiller.plan())
        _metrics(
            {
                k: v
                for k, v in distiller.train(resume_from_checkpoint=resume).items()
                if k.startswith(("eval_", "best_"))
            }
        )
        if read.output_dir:
            _say(f"model: {Path(read.output_dir) / 'student'}")


@app.command()
def check(
    recipe: RecipeArgument = None,
    overrides: Override = [],  # noqa: B006
    teacher: Teacher = None,
    student: Student = None,
    task: TaskOption = None,
    data_dir: DataDir = None,
    method: Method = None,
) -> None:
    """Bind a recipe to its models on one batch, report every problem, print the plan. Trains and writes nothing."""
    from ..recipes.build import Ingredients
    from ..recipes.recipe import load_recipe

    given = _given(teacher, student, task, data_dir) | {"method": method}
    with _errors(), _quiet():
        ready = Ingredients.of(load_recipe(recipe, overrides, given))
        student = ready.student()
        distiller = ready.distiller(student, ready.entries(student), None)
        _say(ready.why)
        _print(distiller.plan())


@app.command()
def cache(
    recipe: RecipeArgument = None,
    overrides: Override = [],  # noqa: B006
    teacher: Teacher = None,
    student: Student = None,
    task: TaskOption = None,
    data_dir: DataDir = None,
    method: Method = None,
    seed: Seed = None,
    max_train_samples: MaxTrain = None,
    teacher_cache: Cache = None,
) -> None:
    """Fill a recipe's teacher cache ahead of time, or go on with one: the teacher runs once over the training data."""
    from ..recipes.build import Ingredients
    from ..recipes.recipe import load_recipe
    from ..teachers.cache_store import shown

    given = _given(teacher, student, task, data_dir, seed=seed, max_train_samples=max_train_samples)
    given |= {"method": method, "training.teacher_cache": teacher_cache}
    with _errors(), _quiet():
        ready = Ingredients.of(load_recipe(recipe, overrides, given))
        small = ready.student()
        distiller = ready.distiller(small, ready.entries(small), None)
        for note in distiller.plan().notes:
            if note.startswith("teacher cache"):
                _say(note)
        for folder, samples in distiller.cache_teachers().items():
            _say(f"{folder}: {samples:,} samples, {shown(_size(folder))}")


@app.command()
def sweep(
    recipe: RecipeArgument = None,
    grid: Annotated[
        list[str], typer.Option("--grid", help="Values of a key: --grid temperature=2,4,8. Once for each key.")
    ] = [],  # noqa: B006
    seeds: Annotated[Optional[str], typer.Option("--seeds", help="1,2,3: train every combination with each.")] = None,
    overrides: Override = [],  # noqa: B006
    teacher: Teacher = None,
    student: Student = None,
    task: TaskOption = None,
    data_dir: DataDir = None,
    method: Method = None,
    epochs: Epochs = None,
    max_train_samples: MaxTrain = None,
    output_dir: OutputDir = None,
    share_teacher: Annotated[
        bool, typer.Option("--share-teacher/--no-share-teacher", help="Keep the teacher's outputs for all runs.")
    ] = True,
) -> None:
    """Train every combination of a grid, rank them, and draw a heat map. The same command again goes on."""
    from ..recipes import sweep_report
    from ..recipes.sweep import sweep as run_sweep
    from ..recipes.sweep import write_results
    from ..recipes.sweep_grid import RecipeRuns, parse_grid, parse_seeds, points

    given = _given(teacher, student, task, data_dir, epochs=epochs, max_train_samples=max_train_samples)
    with _errors(), _quiet():
        runs = RecipeRuns(recipe, overrides, given | {"method": method})
        axes, numbers = parse_grid(grid), parse_seeds(seeds, runs.base)
        every = points(axes, numbers)
        greater = runs.check(axes, numbers)
        folder = Path(output_dir or runs.base.output_dir or "runs/sweep")
        _say(f"{len(every)} runs in {folder}")
        result = run_sweep(
            runs,
            axes,
            numbers,
            output_dir=folder,
            greater_is_better=greater,
            share_teacher=share_teacher,
            identity=runs.identity,
            say=_say,
        )
        picture = sweep_report.picture_of(result)
        write_results(result, sweep_report.markdown_of(result), picture)
        _print_table(sweep_report.table_of(result))
        _print_table(sweep_report.heat_table(result))
        for run in result.missing:
            _say(f"no score: {run}")
        _say(f"heat map: {folder / 'heatmap.svg'}" if picture else "heat map as a picture: pip install matplotlib")
        if result.best is not None:
            _say(f"best student: {result.best}")


@app.command()
def presets(
    name: Annotated[Optional[str], typer.Argument(help="One preset; none: all of them.")] = None,
    teacher: Annotated[Optional[str], typer.Option("--teacher", help="Directory, hub name or model_type.")] = None,
    student: Annotated[Optional[str], typer.Option("--student", help="The same; none: a quarter of it.")] = None,
) -> None:
    """List the presets, or show the distill_config that one expands to for two models."""
    with _errors(), _quiet():
        from .listing import list_presets, show_preset

        if name is None:
            _print_table(list_presets())
        else:
            _say(show_preset(name, teacher, student))


@app.command()
def layers(model: Annotated[str, typer.Argument(help="Directory, hub name, or a model_type such as bert.")]) -> None:
    """List every name a model offers to a distill_config."""
    with _errors(), _quiet():
        from .listing import list_features

        _print_table(list_features(model))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a student or teacher.")],
    task: Annotated[str, typer.Option("--task", help="A GLUE task, an image task, or 'embedded'.")],
    data_dir: DataDir = None,
    teacher: Teacher = None,
    overrides: Override = [],  # noqa: B006
) -> None:
    """Score a model on a task's evaluation data, and how often it agrees with a teacher."""
    from ..data.images import IMAGE_TASKS
    from ..recipes.build import Ingredients, build_model
    from ..recipes.recipe import load_recipe

    given = {"teacher": teacher or model, "task": task, "data_dir": data_dir}
    if teacher is not None and task not in IMAGE_TASKS:  # each reads its own tokens
        given["student_tokenizer"] = model
    with _errors(), _quiet():
        read = load_recipe(None, overrides, given)
        ready = Ingredients.of(read, splits=["validation"])
        if teacher is None:
            distiller = ready.distiller(ready.teacher, read.hard_entries(), None, finetune=True)
        else:
            from ..teachers.frozen import FrozenTeacher

            student = build_model(model, read, ready.student_tokenizer or ready.tokenizer, ready.seed)
            distiller = ready.distiller(student, read.hard_entries(), None)
            distiller.teachers = {"": FrozenTeacher(ready.teacher)}
        _say(f"{task}: {len(ready.data['validation'])} rows")
        _metrics(distiller.evaluate())


@app.command()
def demo(
    output_dir: Annotated[str, typer.Option("--output-dir", "-o")] = "runs/demo",
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps only, to see that all works.")] = False,
) -> None:
    """Train a 12-layer teacher on embedded sentences, distil it into 3 layers, print the table. Needs no network."""
    from .demo import run_demo

    with _errors(), _quiet():
        run_demo(Path(output_dir), smoke, _say, _print, _final)


def _given(
    teacher: str | None,
    student: str | None,
    task: str | None,
    data_dir: str | None,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    max_train_samples: int | None = None,
    output_dir: str | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> dict[str, Any]:
    numbers = re.fullmatch(r"-?\d+(,-?\d+)*", (student or "").replace(" ", ""))
    cut = {"layers": [int(n) for n in numbers[0].split(",")]} if numbers else student
    return {
        "teacher": teacher,
        "student": cut,
        "task": task,
        "data_dir": data_dir,
        "max_train_samples": max_train_samples,
        "output_dir": output_dir,
        "training.num_train_epochs": epochs,
        "training.seed": seed,
        "training.overwrite_output_dir": overwrite or None,
        "training.report_to": ["tensorboard"] if tensorboard else None,
    }


def _final(
    ready: Any, distiller: Any, metrics: dict[str, float], student: Any, without: dict[str, float] | None
) -> None:
    from dataclasses import replace

    from ..evaluation.report import final_table, measure
    from ..features.inputs import adapt_batch

    metric = ready.recipe.primary_metric
    batch = next(iter(distiller.dev_dataloader))
    for_teacher, for_student = adapt_batch(distiller.dev_data_adaptor, distiller.accelerator.device, batch)
    teacher = distiller.teacher if distiller.teacher is None else ready.teacher.to(distiller.accelerator.device)
    scores = metrics.get(f"eval_teacher_{metric}"), metrics.get(f"best_{metric}")
    rows = [measure("teacher", teacher, scores[0], for_teacher)] if teacher is not None else []
    name = "student with distillation" if distiller.is_taught else "student"
    small = measure(name, student, scores[1], for_student)
    if without is not None:  # the same architecture: one measurement of its latency serves both lines
        rows.append(replace(small, name="student without distillation", score=without.get(f"best_{metric}")))
    rows.append(small)
    _print_table(final_table(rows, metric, len(next(iter(batch.values())))))
    if "eval_agreement" in metrics:
        _say(f"the last student and its teacher agree on {metrics['eval_agreement']:.1%} of the rows")


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def _print(plan: Any) -> None:
    _print_table(plan.rich_table())
    for note in plan.notes:
        _say(note)


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    console.print(table)


def _metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        _say(f"{name}: {value:.4f}")


def _say(text: str) -> None:
    if text:
        typer.echo(text)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """One clear error, no traceback, exit status 2."""
    from ..errors import DistillationError

    try:
        yield
    except DistillationError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(2) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave the terminal to our own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    yield


def main() -> None:
    app()


if __name__ == "__main__":
    main()

"""The command `distill`. Each command is a few lines over the library; heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .console import print_metrics, print_plan, print_scores, print_table, rows_of, say, say_all, terminal
from .options import RecipeOptions, switch, takes

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Keys of a recipe that say how a teacher teaches. Those of the student, one `--set` gives to both of its commands.
OF_DISTILLATION = ("method", "method_args", "alpha", "temperature", "mapping", "distill_config", "stages")
DATA = ("task", "data", "eval", "text", "label", "columns", "data_dir")
RECIPE = ("recipe", "overrides", "teacher", "student", *DATA, "method")


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"knowledge_distillation {__version__}")
        raise typer.Exit


@app.callback()
def distill(
    version: Annotated[bool, switch("--version", "Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Make small transformers out of big ones: a list says which teacher layer teaches which student layer."""


@app.command()
@takes(
    *RECIPE,
    *("alpha", "temperature", "epochs", "seed", "max_train_samples", "teacher_cache", "output_dir"),
    *("baseline", "resume", "overwrite", "tensorboard"),
)
def run(
    options: RecipeOptions,
    resume: bool,
    baseline: Annotated[
        bool, switch("--baseline", "Also train the same student without the teacher, for the table.")
    ] = False,
) -> None:
    """Distil a student; print what teacher, student with and student without distillation score."""
    from ..errors import ConfigError

    recipe = options.recipe()
    loaded, student, distiller = _distillation(recipe, recipe.output_dir)
    say_all(loaded.notes)
    if baseline and not distiller.is_taught:
        raise ConfigError("--baseline is the student on labels alone, and this recipe has no other entries")
    say(loaded.why)
    print_plan(distiller.plan())
    metrics = distiller.train(resume_from_checkpoint=resume)
    without = None
    if baseline:
        say("student without distillation: the same student and settings, labels only")
        folder = None if recipe.output_dir is None else Path(recipe.output_dir) / "baseline"
        plain = loaded.distiller(loaded.student(), None, folder)
        without = plain.train(resume_from_checkpoint=resume and folder is not None and folder.exists())
    print_scores(loaded, distiller, metrics, student, without)
    if recipe.output_dir:
        recipe, student_folder = loaded.recipe, Path(recipe.output_dir) / "student"
        say(f"student: {student_folder}\nnext: distill evaluate {student_folder} {rows_of(recipe)}")


@app.command()
@takes(
    *("recipe", "overrides", "model", *DATA, "epochs", "seed", "max_train_samples", "output_dir"),
    *("resume", "overwrite", "tensorboard"),
)
def finetune(options: RecipeOptions, resume: bool) -> None:
    """Fine-tune a teacher on a task: the same loop, with labels only. Its directory is OUTPUT_DIR/student."""
    from ..recipes.build import LoadedRecipe

    options.leaves_unread("finetune trains on labels alone", *OF_DISTILLATION)
    recipe = options.recipe()
    loaded = LoadedRecipe.of(recipe)
    say_all(loaded.notes)
    distiller = loaded.distiller(loaded.teacher, None, recipe.output_dir, finetune=True)
    print_plan(distiller.plan())
    metrics = distiller.train(resume_from_checkpoint=resume)
    print_metrics({name: value for name, value in metrics.items() if name.startswith(("eval_", "best_"))})
    if recipe.output_dir:
        folder, rows = Path(recipe.output_dir) / "student", options.file or rows_of(loaded.recipe)
        say(f"model: {folder}\nnext: distill run {rows} --teacher {folder} --student LAYERS -o FOLDER")


@app.command()
@takes(*RECIPE)
def check(options: RecipeOptions) -> None:
    """Bind a recipe to its models on one batch, report every problem, print the plan. Trains and writes nothing."""
    loaded, _, distiller = _distillation(options.recipe())
    say_all(loaded.notes)
    say(loaded.why)
    print_plan(distiller.plan())


@app.command()
@takes(*RECIPE, "seed", "max_train_samples", "teacher_cache")
def cache(options: RecipeOptions) -> None:
    """Fill a recipe's teacher cache ahead of time, or go on with one: the teacher runs once over the training data."""
    from ..teachers.cache_store import format_bytes

    _, _, distiller = _distillation(options.recipe())
    for note in distiller.plan().notes:
        if note.startswith("teacher cache"):
            say(note)
    for folder, samples in distiller.cache_teachers().items():
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        say(f"{folder}: {samples:,} samples, {format_bytes(size)}")


@app.command()
@takes(
    *("recipe", "grid", "seeds", "overrides", "teacher", "student", *DATA, "method"),
    *("epochs", "max_train_samples", "output_dir", "share_teacher"),
)
def sweep(
    options: RecipeOptions,
    output_dir: str | None,
    grid: Annotated[
        list[str], typer.Option("--grid", help="Values of a key: --grid temperature=2,4,8. Once for each key.")
    ] = [],  # noqa: B006 (typer copies it)
    seeds: Annotated[Optional[str], typer.Option("--seeds", help="1,2,3: train every combination with each.")] = None,
    share_teacher: Annotated[
        bool, switch("--share-teacher/--no-share-teacher", "Keep the teacher's outputs for all runs.")
    ] = True,
) -> None:
    """Train every combination of a grid, rank them, and draw a heat map. The same command again goes on."""
    from ..recipes import sweep_report
    from ..recipes.sweep import sweep as run_sweep
    from ..recipes.sweep import write_results
    from ..recipes.sweep_grid import RecipeRuns, parse_grid, parse_seeds, points

    runs = RecipeRuns(options.file, options.overrides, options.values)
    axes, numbers = parse_grid(grid), parse_seeds(seeds, runs.base)
    every = points(axes, numbers)
    greater = runs.check(axes, numbers)
    folder = Path(output_dir or runs.base.output_dir or "runs/sweep")
    say(f"{len(every)} runs in {folder}")
    result = run_sweep(
        runs,
        axes,
        numbers,
        output_dir=folder,
        greater_is_better=greater,
        share_teacher=share_teacher,
        identity=runs.identity,
        say=say,
    )
    picture = sweep_report.picture_of(result)
    write_results(result, sweep_report.markdown_of(result), picture)
    print_table(sweep_report.table_of(result))
    print_table(sweep_report.heat_table(result))
    for run in result.missing:
        say(f"no score: {run}")
    say(f"heat map: {folder / 'heatmap.svg'}" if picture else "heat map as a picture: pip install matplotlib")
    if result.best is not None:
        say(f"best student: {result.best}")


@app.command()
@terminal()
def presets(
    name: Annotated[Optional[str], typer.Argument(help="One preset; none: all of them.")] = None,
    teacher: Annotated[Optional[str], typer.Option("--teacher", help="Directory, hub name or model_type.")] = None,
    student: Annotated[Optional[str], typer.Option("--student", help="The same; none: a quarter of it.")] = None,
) -> None:
    """List the presets, or show the distill_config that one expands to for two models."""
    from ..errors import ConfigError
    from .listing import list_presets, show_preset

    if name is None and (teacher or student):
        raise ConfigError("--teacher and --student are of one preset: distill presets NAME --teacher ...")
    if name is None:
        print_table(list_presets())
    else:
        say(show_preset(name, teacher, student))


@app.command()
@terminal()
def layers(model: Annotated[str, typer.Argument(help="Directory, hub name, or a model_type such as bert.")]) -> None:
    """List every name a model offers to a distill_config."""
    from .listing import list_features

    print_table(list_features(model))


@app.command()
@takes("model", *DATA, "teacher", "overrides")
def evaluate(
    options: RecipeOptions,
    model: Annotated[str, typer.Argument(help="Directory or hub name of a student or teacher.")],
) -> None:
    """Score a model on a task's evaluation data, and how often it agrees with a teacher."""
    from ..data.images import IMAGE_TASKS
    from ..errors import ConfigError
    from ..recipes.build import LoadedRecipe
    from ..teachers.frozen import FrozenTeacher

    options.leaves_unread("evaluate trains nothing", *OF_DISTILLATION, "finetune", "output_dir", "max_train_samples")
    teacher = options.values["teacher"]
    if options.values["task"] is None and options.values["data"] is None:
        raise ConfigError("evaluate needs rows: --data FILE, or the --task that they are of, such as sst2")
    options.values["teacher"] = teacher or model
    if teacher is not None and options.values["task"] not in IMAGE_TASKS:  # each reads its own tokens
        options.values["student_tokenizer"] = model
    recipe = options.recipe()
    loaded = LoadedRecipe.of(recipe, splits=["validation"])
    if teacher is None:
        distiller = loaded.distiller(loaded.teacher, None, None, finetune=True)
    else:
        tokenizer = loaded.student_tokenizer or loaded.tokenizer
        student = loaded.model(model, "student", tokenizer=tokenizer)
        distiller = loaded.distiller(student, None, None)
        distiller.teachers = {"": FrozenTeacher(loaded.teacher)}
    say_all(loaded.notes)
    say(f"{loaded.recipe.task}: {len(loaded.data['validation'])} rows")
    print_metrics(distiller.evaluate())


@app.command()
@terminal()
def demo(
    output_dir: Annotated[str, typer.Option("--output-dir", "-o")] = "runs/demo",
    smoke: Annotated[bool, switch("--smoke", "A few steps only, to see that all works.")] = False,
) -> None:
    """Train a 12-layer teacher on embedded sentences, distil it into 3 layers, print the table. Needs no network."""
    from .demo import run_demo

    run_demo(Path(output_dir), smoke)


@app.command()
@terminal()
def export(
    student: Annotated[str, typer.Argument(help="Directory or hub name of a model.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, the one format there is; may be left out.")] = True,
    output_dir: Annotated[Optional[str], typer.Option("--output-dir", "-o", help="None: STUDENT/onnx.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also with weights in 8 bits: model_int8.onnx.")] = False,
    opset: Annotated[Optional[int], typer.Option("--opset", help="Of ONNX, 14 to 20; none: 17.")] = None,
    data: Annotated[Optional[str], typer.Option("--data", help="Evaluation rows: every file is scored.")] = None,
    text: Annotated[Optional[str], typer.Option("--text", help="Their column of text, or FIRST,SECOND.")] = None,
    label: Annotated[Optional[str], typer.Option("--label", help="Their column of labels.")] = None,
) -> None:
    """Write a model as ONNX, compared with the model itself on batches of several sizes before it is kept."""
    from ..exporting import describe, export_saved

    for line in describe(export_saved(student, output_dir, opset=opset, int8=int8, data=data, text=text, label=label)):
        say(line)


@app.command()
@terminal()
def predict(
    student: Annotated[str, typer.Argument(help="Directory or hub name of a model.")],
    data: Annotated[Path, typer.Option("--data", help="A file of rows: CSV, TSV, JSON lines, parquet, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Ends in .csv, .tsv, .jsonl or .parquet.")],
    text: Annotated[Optional[str], typer.Option("--text", help="The column of text, or FIRST,SECOND.")] = None,
    task: Annotated[Optional[str], typer.Option("--task", help="None: told from the model's config.")] = None,
    max_length: Annotated[Optional[int], typer.Option("--max-length", help="Tokens; None: the task's.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows that run together.")] = 32,
) -> None:
    """Write a file's rows with what a model says of each: its class, number, labels, tags or answer."""
    from ..tasks.predict_file import predict_file

    told: dict[str, Any] = {"text": text, "task": task, "max_length": max_length, "batch_size": batch_size}
    predicted = predict_file(student, data, output, **told)
    say_all(predicted.notes)
    say(f"{predicted.path}: {predicted.rows:,} rows, with {', '.join(predicted.columns)}")


def _distillation(recipe: Any, output_dir: str | Path | None = None) -> tuple[Any, Any, Any]:
    """A recipe as objects, a student of it, and the distiller that trains this one."""
    from ..recipes.build import LoadedRecipe

    loaded = LoadedRecipe.of(recipe)
    student = loaded.student()
    return loaded, student, loaded.distiller(student, loaded.config(student), output_dir)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

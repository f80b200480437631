"""The command-line options that several commands share, each defined once, and what they say about a recipe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_origin

import typer

from .console import terminal


class Shared(NamedTuple):
    """An option with its default, the recipe's key that it sets, and what it makes of its value; None sets nothing."""

    annotation: Any
    default: Any = None
    key: str = ""
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class RecipeOptions:
    """A recipe as the command line says it: its file, the overrides of `--set`, and values by the recipe's keys."""

    file: Path | None
    overrides: Sequence[str]
    values: dict[str, Any]

    def leaves_unread(self, why: str, *keys: str) -> None:
        """Refuse a `--set` that the command would not look at. A file may have such keys, for other commands.

        Raises:
            ConfigError: a key among these is set.
        """
        from ..errors import ConfigError

        for override in self.overrides:
            key = override.partition("=")[0]
            if key.partition(".")[0] in keys:
                raise ConfigError(f"--set {key}: distill {why}, and does not read it")

    def recipe(self) -> Any:
        from ..recipes.load import load_recipe

        return load_recipe(self.file, self.overrides, self.values)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options, in this order: shared ones, and those that its own signature annotates.

    The command is called with the options that its signature names; what all others say comes first, as
    `RecipeOptions`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = dict(list(inspect.signature(command, eval_str=True).parameters.items())[1:])
        own = {
            name: Shared(parameter.annotation, parameter.default)
            for name, parameter in parameters.items()
            if get_origin(parameter.annotation) is Annotated
        }

        @terminal()
        def with_options(recipe: Path | None = None, overrides: Sequence[str] = (), **options: Any) -> None:
            arguments = {name: options.pop(name) for name in parameters}
            values = {SHARED[name].key: SHARED[name].convert(value) for name, value in options.items()}
            command(RecipeOptions(recipe, overrides, values), **arguments)

        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option[0])
                for name, option in ((name, own.get(name) or SHARED[name]) for name in names)
            ]
        )
        return with_options

    return decorate


def _option(flags: str, help: str, key: str, kind: Any = str, **convert: Any) -> Shared:
    return Shared(Annotated[kind | None, typer.Option(*flags.split(), help=help)], None, key, **convert)


def switch(flag: str, help: str, **options: Any) -> Any:
    """An option that takes no value, and is shown without one."""
    return typer.Option(flag, help=help, metavar="", **options)


def _flag(flag: str, help: str, key: str = "", value: Any = True) -> Shared:
    """An option that is on or off; where it is on, the key becomes `value`."""
    return Shared(Annotated[bool, switch(flag, help)], False, key, lambda on: value if on else None)


def _layers_or_name(student: str | None) -> dict[str, list[int]] | str | None:
    """A cut-out student for `4,8,12`, else what was written: a directory or a hub name."""
    numbers = (student or "").replace(" ", "")
    if re.fullmatch(r"-?\d+(,-?\d+)*", numbers):
        return {"layers": [int(number) for number in numbers.split(",")]}
    return student


_MODEL = "Directory or hub name."
_STUDENT = "Directory, hub name, or layers of the teacher to keep: 4,8,12"
_TASK = "A GLUE task, an image task, or of --data its kind, such as text-classification."
_DATA = "Your rows: a CSV, TSV, JSON lines, parquet, CoNLL or text file, a folder, a hub name."
_EVAL = "The same, to evaluate on; none: a fixed tenth of --data is held out."
_TEXT = "The column of text, or two for pairs: question1,question2. None: where there is one way only."
_LABEL = "The column of the label. None: where there is one way only."
_COLUMNS = "Names for the columns of a table without a header, in their order: text,labels,id."
_DATA_DIR = "Folder in GLUE's TSV layout, or of pictures. [GLUE_DATA_DIR, IMAGE_DATA_DIR]"
_PART = "A fixed random part of the train set."
_CACHE = "Folder for the teacher's features: each sample runs once."
_RECIPE = typer.Argument(help="A recipe (YAML); none: options alone.", metavar="RECIPE")
_SET = typer.Option("--set", help="Override any key: --set training.learning_rate=1e-4")

SHARED = {
    "recipe": Shared(Annotated[Path | None, _RECIPE]),
    "overrides": Shared(Annotated[list[str], _SET], []),
    "teacher": _option("--teacher", _MODEL, "teacher"),
    "model": _option("--model --teacher", _MODEL, "teacher"),
    "student": _option("--student", _STUDENT, "student", convert=_layers_or_name),
    "task": _option("--task", _TASK, "task"),
    "data": _option("--data", _DATA, "data"),
    "eval": _option("--eval", _EVAL, "eval"),
    "text": _option("--text", _TEXT, "text"),
    "label": _option("--label", _LABEL, "label"),
    "columns": _option("--columns", _COLUMNS, "columns"),
    "data_dir": _option("--data-dir", _DATA_DIR, "data_dir"),
    "method": _option("--method", "A preset: see `distill presets`.", "method"),
    "alpha": _option("--alpha", "Weight of the soft part, 0 to 1.", "alpha", float),
    "temperature": _option("--temperature", "Of the soft part.", "temperature", float),
    "epochs": _option("--epochs", "training.num_train_epochs", "training.num_train_epochs", int),
    "seed": _option("--seed", "training.seed", "training.seed", int),
    "max_train_samples": _option("--max-train-samples", _PART, "max_train_samples", int),
    "teacher_cache": _option("--teacher-cache", _CACHE, "training.teacher_cache"),
    "output_dir": _option("--output-dir -o", "Where the run goes.", "output_dir"),
    "resume": _flag("--resume", "Go on from the last checkpoint of the output directory."),
    "overwrite": _flag(
        "--overwrite", "Replace a run that is in the output directory.", "training.overwrite_output_dir"
    ),
    "tensorboard": _flag(
        "--tensorboard", "Log to TensorBoard in the output directory.", "training.report_to", ["tensorboard"]
    ),
}

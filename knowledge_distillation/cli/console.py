"""What commands print: lines, tables, plans, scores; and errors as one line."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import typer

WIDTH = 120  # of a table, where nobody looks at it in a terminal


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Leave the terminal to our own lines; an error is one clear line, no traceback, exit status 2."""
    from ..errors import DistillationError

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    except DistillationError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(2) from error


def is_main_process() -> bool:
    """Whether this is the one of several processes that speaks for all."""
    return int(os.environ.get("RANK") or 0) == 0


def say(text: str) -> None:
    if text and is_main_process():
        typer.echo(text)


def say_all(texts: Iterable[str]) -> None:
    for text in texts:
        say(text)


def rows_of(recipe: Any) -> str:
    """The options that name the rows of a recipe."""
    options = ("task", "data", "eval", "text", "label", "columns", "data_dir")
    named = {name: getattr(recipe, name) for name in options}
    named["task"] = None if recipe.data is not None else recipe.task or "embedded"  # of data it is told again
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in named.items()}
    return " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(str(text))}" for name, text in texts.items() if text is not None
    )


def print_table(table: Any) -> None:
    if not is_main_process():
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    console.print(table)


def print_plan(plan: Any) -> None:
    print_table(plan.rich_table())
    for note in plan.notes:
        say(note)


def print_metrics(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        say(f"{name}: {value:.4f}")


def print_scores(
    loaded: Any,
    distiller: Any,
    metrics: Mapping[str, float],
    student: Any,
    without: Mapping[str, float] | None,
) -> None:
    """The table of a run: teacher, student without distillation where it was trained, student.

    Args:
        metrics: of the run.
        without: those of the same student on labels alone.
    """
    from ..evaluation.report import final_table, measure
    from ..features.inputs import adapt_batch

    metric, device = loaded.recipe.primary_metric, distiller.accelerator.device
    batch = next(iter(distiller.dev_dataloader))
    teacher_inputs, student_inputs = adapt_batch(distiller.dev_data_adaptor, device, batch)
    rows = []
    if distiller.teacher is not None:
        score = metrics.get(f"eval_teacher_{metric}")
        rows.append(measure("teacher", loaded.teacher.to(device), score, teacher_inputs))
    name = "student with distillation" if distiller.is_taught else "student"
    row = measure(name, student, metrics.get(f"best_{metric}"), student_inputs)
    if without is not None:  # the same architecture: one measurement of its latency serves both lines
        rows.append(replace(row, name="student without distillation", score=without.get(f"best_{metric}")))
    print_table(final_table([*rows, row], metric, len(next(iter(batch.values())))))
    if "eval_agreement" in metrics:
        say(f"the last student and its teacher agree on {metrics['eval_agreement']:.1%} of the rows")

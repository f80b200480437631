"""The student is measured, and the best one so far is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..data.train_batches import TrainBatches
from ..errors import ConfigError, DataError, nearest
from ..evaluation.evaluators import TaskEvaluator, as_metrics
from ..features.preserve import modes_kept, preserved, resting
from .checkpoints import save_students
from .class_order import settle_classes
from .run import Run


def decides_itself(run: Run) -> bool:
    """Whether the evaluator is of the long-known form, which is asked after every step."""
    return hasattr(run.evaluator, "evaluate")


def evaluate(run: Run) -> dict[str, float]:
    """The evaluator's metrics of the student as it is now."""
    if run.evaluator is None or decides_itself(run):
        raise ConfigError("evaluate() needs dev_dataloader or eval_dataset, and an evaluator that is a callable")
    settle_classes(run)
    with resting(run.student), torch.no_grad():
        metrics = run.evaluator(run.student, run.teacher, run.dev_dataloader, run.accelerator)
    return as_metrics(metrics, "the evaluator")


def evaluate_and_keep_best(run: Run) -> None:
    """Measure the student, once at a step; write it where it is the best so far."""
    if run.evaluator is None or decides_itself(run) or run.progress.evaluated == run.progress.step:
        return
    run.stop_if_not_finite()
    run.progress.evaluated = run.progress.step
    metrics = evaluate(run)
    run.metrics = {f"eval_{name}": value for name, value in metrics.items()}
    run.accelerator.log(run.metrics, step=run.progress.step)
    if keeps_best(run):
        name = keep_if_best(run, metrics)
        run.metrics[f"best_{name}"] = run.progress.best  # type: ignore[assignment]
    run.call("on_evaluate", metrics)
    run.agree_to_stop()


def keeps_best(run: Run) -> bool:
    """Whether there is a metric to go by: a `TaskEvaluator` names its own at its first evaluation."""
    has_metric = run.settings.metric_for_best_model or getattr(run.evaluator, "primary_metric", None) is not None
    return run.evaluator is not None and not decides_itself(run) and bool(has_metric)


def keep_if_best(run: Run, metrics: Mapping[str, float]) -> str:
    """Write the student where its metric is the best so far. Returns the metric's name."""
    asked = run.settings.metric_for_best_model
    name = (
        metric_named(asked, metrics)
        if asked
        else metric_named(run.evaluator.primary_metric, metrics, "primary_metric")
    )
    greater = run.settings.greater_is_better
    if greater is None:
        greater = getattr(run.evaluator, "greater_is_better", True) and not name.endswith("perplexity")
    best, value = run.progress.best, metrics[name]
    if best is None or math.isnan(best) or (value > best if greater else value < best):
        run.progress.best = value
        if run.output_dir is not None:
            save_students(run, run.output_dir, peers=False)
    return name


def ask_evaluator(run: Run, loss: Tensor) -> None:
    """The long-known form of evaluator: asked after every step, with the loss as a detached 0-d tensor."""
    if not decides_itself(run):
        return
    loss = run.accelerator.reduce(loss, "sum")
    if run.accelerator.is_main_process:
        with modes_kept(run.student):
            run.evaluator.evaluate(
                teacher_model=run.teacher,
                student_model=run.student,
                dev_data=run.dev_dataloader,
                dev_data_adaptor=run.dev_data_adaptor,
                epoch=run.progress.epoch + 1,
                step=run.progress.step,
                loss_value=loss,
            )


def check_evaluation(run: Run) -> None:
    """See before the first step that there is something to evaluate, and the metric to keep the best by."""
    data, metric = run.dev_dataloader, run.settings.metric_for_best_model
    if data is None or run.evaluator is None or decides_itself(run) or isinstance(data, Iterator):
        return
    batches = TrainBatches(data, run.settings.seed, run.accelerator, "evaluation")
    first = batches.first()
    if not batches.max_over_processes(len(first)):
        raise DataError("the evaluation data is empty: it has no batch")
    if isinstance(run.evaluator, TaskEvaluator):
        with preserved(run.student):
            names = run.evaluator.names(run.student, run.teacher, first, run.accelerator)
        if metric and names:
            metric_named(metric, names)


def metric_named(name: str, metrics: Iterable[str], asked_by: str = "metric_for_best_model") -> str:
    """The metric of this name, which may have `eval_` in front, as transformers has it.

    Raises:
        ConfigError: there is none.
    """
    names = list(metrics)
    for one in (name, name.removeprefix("eval_")):
        if one in names:
            return one
    raise ConfigError(
        f"{asked_by} {name!r} is not among the evaluator's metrics: {', '.join(names) or 'none'}."
        f"{nearest(name, names)}"
    )

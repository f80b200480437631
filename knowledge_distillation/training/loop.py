"""The loop: stages, epochs, windows; after a step what is due: a line of the history, an evaluation, a checkpoint."""

from __future__ import annotations

from torch import Tensor

from . import checkpoints
from .batch import adapt, make_batch
from .best_student import ask_evaluator, evaluate_and_keep_best, keeps_best
from .diagnosis import check_on_host, naming_batches
from .prepare import enter_stage
from .progress import RunningMean
from .run import Run
from .step import step


def train(run: Run) -> None:
    """From where the run is to its end."""
    try:
        run.call("on_train_begin")
        for stage_number in range(run.progress.stage, len(run.stages)):
            enter_stage(run, stage_number)
            while not run.stage_is_over:
                run.losses = train_epoch(run)
                if run.stage_is_over or not run.settings.eval_steps:
                    evaluate_and_keep_best(run)
                if run.stage_is_over or not run.settings.save_steps:
                    checkpoints.save(run)
            if run.progress.stopped:
                break
        if run.output_dir is not None:
            checkpoints.save_students(run, run.output_dir, student=not keeps_best(run))
    finally:
        try:
            run.call("on_train_end")
        finally:
            for tracker in run.accelerator.trackers:  # end_training() would part the processes as well
                tracker.finish()


def train_epoch(run: Run, managed: bool = True) -> dict[str, float]:
    """The rest of the present epoch. `managed`: evaluate and save as the settings say."""
    run.module.train()
    run.stage_teachers.begin_epoch()
    progress, whole = run.progress, run.progress.batches == 0
    mean = run.of_epoch = run.of_epoch if progress.batches else RunningMean()
    windows = run.batches.windows(progress.epoch, run.settings.gradient_accumulation_steps, skip=progress.batches)
    for window in windows:
        with naming_batches(run, window):
            for raw in window:
                check_on_host(run, raw)
            values = step(run, [make_batch(run, adapt(run, raw)) for raw in window])
        mean.add(values)
        run.advance(len(window))
        after_step(run, values, managed)
        if run.out_of_steps:
            break
    else:
        progress.epoch, progress.batches = progress.epoch + 1, 0
        progress.fraction = float(progress.epoch)
        run.stage_teachers.end_epoch(run.accelerator, whole=whole)
        run.agree_to_stop()
    if run.out_of_steps and not progress.stopped and run.has_next_stage:
        progress.close_broken_epoch()
    run.log_means()
    return mean.read(run.accelerator)


def after_step(run: Run, values: dict[str, Tensor], managed: bool) -> None:
    """What is due after a step."""
    step_number, settings = run.progress.step, run.settings
    run.since_log.add(values)
    run.call("on_step_end")
    if step_number % settings.logging_steps == 0:
        run.log_means()
    ask_evaluator(run, values["loss"])
    if managed and settings.eval_steps and step_number % settings.eval_steps == 0:
        evaluate_and_keep_best(run)
    if managed and settings.save_steps and step_number % settings.save_steps == 0 and not run.out_of_steps:
        checkpoints.save(run)

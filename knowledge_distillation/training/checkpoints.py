"""What of a run goes to its output directory, and how it comes back from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import CheckpointError
from ..storage import checkpoint, run_directory
from . import run_state
from .roles import labelled

if TYPE_CHECKING:
    from .distiller import KnowledgeDistiller


def save_students(run: KnowledgeDistiller, directory: Path, peers: bool = True, student: bool = True) -> None:
    """The student as a directory of its own, and the peers beside it."""
    models: dict[str, nn.Module] = {"student": run.student} if student else {}
    if peers:
        models |= {f"peers/{name}": model for name, model in run.students.items() if name}
    for name, model in models.items():
        if run.accelerator.is_main_process:
            checkpoint.save_student(directory / name, model, run.processing_class)
        run.accelerator.wait_for_everyone()


def save_checkpoint(run: KnowledgeDistiller, directory: Path) -> Path | None:
    """All it takes to go on exactly. Returns the checkpoint on the main process."""
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    writer = checkpoint.Writer(directory, run.progress.step)
    if main:
        writer.begin()
    accelerator.wait_for_everyone()
    run_state.write_random(writer, accelerator.process_index, run.batches.states(run.progress.batches))
    if main:
        writer.module("student", run.student)
        for name, peer in _peers(run).items():
            writer.module(f"peer-{name}", peer)
        writer.module("projections", run.loss_model)
        run_state.write_optimizer(writer, _stateful(run))
        run_state.write_progress(writer, run.progress, run.metrics, run.callbacks)
    accelerator.wait_for_everyone()
    return writer.commit(run.settings.save_total_limit) if main else None


def stage_in(folder: Path, stages: int) -> int:
    """The stage in which a checkpoint was made.

    Raises:
        CheckpointError: a run of so many stages has none of that number.
    """
    stage = run_state.read_progress(folder, ())[0].stage
    if stage >= stages:
        raise CheckpointError(f"{folder} is of stage {stage + 1}, and this run has {stages}")
    return stage


def load(
    run: KnowledgeDistiller,
    student: Path | None = None,
    projections: Path | None = None,
    optimizer: Path | None = None,
    progress: Path | None = None,
) -> None:
    """Load parts of an earlier run into a prepared one; what is None stays as it is."""
    if student is not None:
        checkpoint.read_student(student, run.student)
        for name, peer in _peers(run).items():
            checkpoint.read_module(checkpoint.latest(student), f"peer-{name}", peer)
    if projections is not None:
        checkpoint.read_module(checkpoint.latest(projections), "projections", run.loss_model)
    if optimizer is not None:
        run_state.read_optimizer(checkpoint.latest(optimizer), _stateful(run))
    if progress is not None:
        folder = checkpoint.latest(progress)
        run.progress, run.metrics = run_state.read_progress(folder, run.callbacks)
        generators = run_state.read_random(folder, run.accelerator.process_index)
        run.batches.restore(generators, run.progress.batches)


def open_output(run: KnowledgeDistiller, directory: Path, resume: bool | str | Path, shape: dict[str, Any]) -> None:
    """Make a directory this run's own, or go on from what it holds.

    Args:
        shape: of the run, beside its settings, config and models: what a continuation has to agree in.

    Raises:
        CheckpointError: it holds another run, or the checkpoint named is of another.
    """
    models = {"student": run.student, "teacher": None, **labelled(run.students, "peer")}
    models |= labelled({name: teacher.model for name, teacher in run.teachers.items()}, "teacher")
    identity = run_state.identity(run.loss_model, models, run.settings, shape)
    identity |= {} if run.recipe is None else {"recipe": dict(run.recipe)}
    if run.accelerator.is_main_process:
        run_directory.check_free(directory, identity, bool(resume), run.settings.overwrite_output_dir)
    folder = Path(resume) if isinstance(resume, (str, Path)) else directory
    if resume and (checkpoint.checkpoints(folder) or folder != directory):
        run.load_state(student=folder, projections=folder, optimizer=folder, progress=folder)
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        run_directory.claim(directory, identity, bool(resume))
    run.accelerator.wait_for_everyone()


def _peers(run: KnowledgeDistiller) -> dict[str, nn.Module]:
    return {name: model for name, model in run.students.items() if name}


def _stateful(run: KnowledgeDistiller) -> dict[str, Any]:
    return {"optimizer": run.optimizer, "scheduler": run.scheduler, "scaler": run.accelerator.scaler}

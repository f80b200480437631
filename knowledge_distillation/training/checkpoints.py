"""What of a run goes to its output directory, and how it comes back from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

from ..config.entry import Projection
from ..config.schedules import Schedule
from ..errors import CheckpointError
from ..storage import checkpoint_files, run_directory
from ..storage.random_state import random_state, set_random_state
from .card import card_of
from .progress import Progress
from .roles import titled
from .run import Run


def save_students(run: Run, directory: Path, peers: bool = True, student: bool = True) -> None:
    """The student as a directory of its own, and the peers beside it."""
    models: dict[str, nn.Module] = {"student": run.student} if student else {}
    if peers:
        models |= {f"peers/{name}": model for name, model in run.peers.items()}
    for name, model in models.items():
        if run.accelerator.is_main_process:
            card = card_of(run, model)
            checkpoint_files.save_student(directory / name, model, run.processing_class, card)
        run.accelerator.wait_for_everyone()


def save(run: Run, directory: Path | None = None) -> None:
    """A checkpoint, in the output directory where none is named; nothing where there is neither."""
    directory = directory or run.output_dir
    if directory is None:
        return
    run.stop_if_not_finite()
    run.stage_teachers.flush()
    run.call("on_save", write(run, directory))
    run.accelerator.wait_for_everyone()


def write(run: Run, directory: Path) -> Path | None:
    """All it takes to go on exactly. Returns the checkpoint on the main process.

    Raises:
        WriteError: the disk does not take it.
    """
    with checkpoint_files.writing(directory / "checkpoints"):
        return _write(run, directory)


def _write(run: Run, directory: Path) -> Path | None:
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    writer = checkpoint_files.Writer(directory, run.progress.step)
    if main:
        writer.begin()
    accelerator.wait_for_everyone()
    generators = run.batches.states(run.progress.batches)
    own: dict[str, Any] = {"random": random_state(), "generators": generators}
    own |= {"since_log": run.since_log.state_dict(), "of_epoch": run.of_epoch.state_dict()}
    writer.tree(f"random-{accelerator.process_index}", own)
    if main:
        for name, module in modules_of(run).items():
            writer.module(name, module)
        states = {name: None if part is None else part.state_dict() for name, part in stateful_parts(run).items()}
        writer.tree("optimizer", states)
        callbacks = [[type(callback).__name__, callback.state_dict()] for callback in run.callbacks]
        progress = {"progress": asdict(run.progress), "metrics": run.metrics, "callbacks": callbacks}
        writer.tree("progress", progress)
    accelerator.wait_for_everyone()
    return writer.commit(run.settings.save_total_limit) if main else None


def read_stage(run: Run, folder: Path) -> int:
    """The stage in which a checkpoint was made.

    Raises:
        CheckpointError: the run has none of that number.
    """
    with checkpoint_files.checkpoint_errors(folder, "progress"):
        stage = Progress(**checkpoint_files.read_tree(folder, "progress")["progress"]).stage
    if stage >= len(run.stages):
        raise CheckpointError(f"{folder} is of stage {stage + 1}, and this run has {len(run.stages)}")
    return stage


def read(
    run: Run,
    student: Path | None = None,
    projections: Path | None = None,
    optimizer: Path | None = None,
    progress: Path | None = None,
) -> None:
    """Read parts of an earlier run into a prepared one; what is None stays as it is."""
    if student is not None:
        checkpoint_files.read_student(student, run.student)
        for name, peer in run.peers.items():
            checkpoint_files.read_module(checkpoint_files.latest(student), f"peer-{name}", peer)
    if projections is not None:
        checkpoint_files.read_module(checkpoint_files.latest(projections), "projections", run.loss_model)
    if optimizer is not None:
        folder = checkpoint_files.latest(optimizer)
        states = checkpoint_files.read_tree(folder, "optimizer")
        with checkpoint_files.checkpoint_errors(folder, "optimizer"):
            for name, part in stateful_parts(run).items():
                if part is not None and states[name] is not None:
                    part.load_state_dict(states[name])
    if progress is not None:
        read_progress(run, checkpoint_files.latest(progress))


def read_progress(run: Run, folder: Path) -> None:
    """The place in the training, what callbacks know of it, and this process's random states."""
    state = checkpoint_files.read_tree(folder, "progress")
    with checkpoint_files.checkpoint_errors(folder, "progress"):
        for callback in run.callbacks:
            known = next((state for name, state in state["callbacks"] if name == type(callback).__name__), None)
            if known:
                callback.load_state_dict(known)
        run.progress, run.metrics = Progress(**state["progress"]), state["metrics"]
    part = f"random-{run.accelerator.process_index}"
    own = checkpoint_files.read_tree(folder, part)
    with checkpoint_files.checkpoint_errors(folder, part):
        set_random_state(own["random"])
        for name in ("since_log", "of_epoch"):
            if name in own:  # a checkpoint of an older version has none
                getattr(run, name).load_state_dict(own[name], run.accelerator.device)
    run.batches.restore(own["generators"], run.progress.batches)


def modules_of(run: Run) -> dict[str, nn.Module]:
    peers = {f"peer-{name}": peer for name, peer in run.peers.items()}
    return {"student": run.student, **peers, "projections": run.loss_model}


def stateful_parts(run: Run) -> dict[str, Any]:
    """Optimizer, schedule and gradient scaler, each None where the run has none."""
    return {"optimizer": run.optimizer, "scheduler": run.scheduler, "scaler": run.accelerator.scaler}


# --- whose directory it is


def check_directory(run: Run, resume: bool) -> dict[str, Any]:
    """See that the output directory is free for this run, or holds what it goes on from. Returns the run's identity.

    Raises:
        CheckpointError: it holds another run.
    """
    assert run.output_dir is not None
    run_identity = identity(run)
    with _told_to_all(run):
        if run.accelerator.is_main_process:
            run.release = run_directory.take(run.output_dir)
            run_directory.check_free(run.output_dir, run_identity, resume, run.settings.overwrite_output_dir)
    return run_identity


@contextmanager
def _told_to_all(run: Run) -> Iterator[None]:
    """An error of the main process within the context is raised by all processes: none goes on, to fail elsewhere."""
    found: list[CheckpointError | None] = [None]
    try:
        yield
    except CheckpointError as error:
        found = [error]
    told = broadcast_object_list([None if found[0] is None else str(found[0])])[0]
    if told is not None:
        raise found[0] or CheckpointError(told)


def mark(run: Run, directory: Path) -> None:
    """Say in a directory that this run wrote it: it may be resumed there, or overwritten."""
    if run.accelerator.is_main_process:
        run_directory.mark(directory, identity(run))


def claim_directory(run: Run, run_identity: Mapping[str, Any], resume: bool) -> None:
    """Make the output directory this run's own."""
    assert run.output_dir is not None
    run.accelerator.wait_for_everyone()
    with _told_to_all(run):
        if run.accelerator.is_main_process:
            held = run_directory.claim(run.output_dir, run_identity, resume, run.settings.overwrite_output_dir)
            run.release = held or run.release


def identity(run: Run) -> dict[str, Any]:
    """What is written to `run.json`: a run that differs in it is not a continuation."""
    entries = [
        {
            **{f.name: plain(getattr(entry, f.name)) for f in fields(entry)},
            "loss": entry.loss_name,
            "args": {key: described(value) for key, value in entry.args.items()},
        }
        for entry in run.loss_model.config.entries
    ]
    models: dict[str, Any] = {"student": run.student, "teacher": None, **titled(run.students, "peer")}
    models |= titled({name: teacher.model for name, teacher in run.teachers.items()}, "teacher")
    written: dict[str, Any] = {
        "distill_config": entries,
        # Where a cache lies does not matter to what is learnt; that its values are the stored ones does.
        "settings": run.settings.to_dict() | {"teacher_cache": run.settings.teacher_cache is not None},
        "models": {name: None if model is None else model_identity(model) for name, model in models.items()},
        "run": {
            "batches": run.steps_per_epoch,
            "processes": run.accelerator.num_processes,
            "mixed_precision": run.accelerator.mixed_precision,
            "teacher_dtype": None if run.teacher is None else str(run.teacher.dtype).removeprefix("torch."),
        },
    }
    return written if run.recipe is None else written | {"recipe": dict(run.recipe)}


def model_identity(model: nn.Module) -> dict[str, Any]:
    return {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}


def plain(value: Any) -> Any:
    """Dataclasses within an entry as mappings, features as their names."""
    if isinstance(value, tuple):
        return [str(one) for one in value]
    if isinstance(value, (Projection, Schedule)):
        return asdict(value)
    return {key: plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def described(value: Any) -> Any:
    """Plain arguments as they are, others by their type: an address in memory is no property of a run."""
    return value if isinstance(value, (bool, int, float, str, list, tuple, type(None))) else type(value).__name__

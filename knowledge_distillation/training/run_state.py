"""What of a run goes into a checkpoint beside the student, and what makes a run this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.entry import Projection
from ..config.schedules import Schedule
from ..config.settings import TrainingSettings
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..storage.checkpoint import Writer, fitting, read_tree
from ..storage.random_state import random_state, set_random_state
from .callbacks import Callback
from .progress import Progress


def write_optimizer(writer: Writer, parts: Mapping[str, Any]) -> None:
    """Optimizer, schedule and gradient scaler, each None where the run has none."""
    writer.tree("optimizer", {name: None if part is None else part.state_dict() for name, part in parts.items()})


def read_optimizer(folder: Path, parts: Mapping[str, Any]) -> None:
    state = read_tree(folder, "optimizer")
    with fitting(folder, "optimizer"):
        for name, part in parts.items():
            if part is not None and state[name] is not None:
                part.load_state_dict(state[name])


def write_progress(
    writer: Writer, progress: Progress, metrics: Mapping[str, float], callbacks: Sequence[Callback]
) -> None:
    states = [[type(callback).__name__, callback.state_dict()] for callback in callbacks]
    writer.tree("progress", {"progress": asdict(progress), "metrics": metrics, "callbacks": states})


def read_progress(folder: Path, callbacks: Sequence[Callback]) -> tuple[Progress, dict[str, float]]:
    state = read_tree(folder, "progress")
    with fitting(folder, "progress"):
        for callback in callbacks:
            mine = next((s for name, s in state["callbacks"] if name == type(callback).__name__), None)
            if mine:
                callback.load_state_dict(mine)
        return Progress(**state["progress"]), state["metrics"]


def write_random(writer: Writer, process: int, generators: list[torch.Tensor]) -> None:
    """One process's random state, and that of its data loader's own generators at the start of the epoch."""
    writer.tree(f"random-{process}", {"random": random_state(), "generators": generators})


def read_random(folder: Path, process: int) -> list[torch.Tensor]:
    state = read_tree(folder, f"random-{process}")
    with fitting(folder, f"random-{process}"):
        set_random_state(state["random"])
        return state["generators"]


def identity(
    loss_model: MultiLayerBasedDistillationLoss,
    models: Mapping[str, nn.Module | None],
    settings: TrainingSettings,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """What is written to `run.json`: a run that differs in it is not a continuation."""
    entries = [
        {
            **{f.name: _plain(getattr(e, f.name)) for f in fields(e)},
            "loss": e.loss_name,
            "args": {k: _described(v) for k, v in e.args.items()},
        }
        for e in loss_model.config.entries
    ]
    return {
        "distill_config": entries,
        # Where a cache lies does not matter to what is learnt; that its values are the stored ones does.
        "settings": settings.to_dict() | {"teacher_cache": settings.teacher_cache is not None},
        "models": {
            who: None
            if model is None
            else {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
            for who, model in models.items()
        },
        "run": dict(run),
    }


def _plain(value: Any) -> Any:
    """Dataclasses within an entry as mappings, features as their names."""
    if isinstance(value, tuple):
        return [str(one) for one in value]
    if isinstance(value, (Projection, Schedule)):
        return asdict(value)
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def _described(value: Any) -> Any:
    """Plain arguments as they are, others by their type: an address in memory is no property of a run."""
    return value if isinstance(value, (bool, int, float, str, list, tuple, type(None))) else type(value).__name__

"""Optimizers and learning-rate schedules, made from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, get_scheduler

from ..config.settings import TrainingSettings
from ..errors import ConfigError, nearest

MULTISTEP = "multistep"
_STEPPED_BY_METRICS = ("reduce_lr_on_plateau", "greedy")


def make_optimizer(
    settings: TrainingSettings, module: nn.Module, rates: Mapping[int, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `optim`, fused where it can be; biases and norms do not decay.

    Args:
        rates: id of a parameter -> its learning rate, where it has one of its own.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in trained:
        decay = settings.weight_decay if p.dim() > 1 else 0.0
        groups.setdefault(((rates or {}).get(id(p), settings.learning_rate), decay), []).append(p)
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    listed = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    if settings.optim == "sgd":
        arguments: dict[str, Any] = {"momentum": 0.9, **(settings.optim_args or {})}
        try:
            return torch.optim.SGD(listed, lr=settings.learning_rate, fused=fused, **arguments)
        except ValueError as error:
            raise ConfigError(f"optim sgd: {error}") from error
    return torch.optim.AdamW(listed, lr=settings.learning_rate, fused=fused)


def make_scheduler(settings: TrainingSettings, optimizer: torch.optim.Optimizer, total_steps: int | None) -> Any:
    """The schedule `lr_scheduler_type`; constant after warm-up where the number of steps is not known."""
    names = [one.value for one in SchedulerType if one.value not in _STEPPED_BY_METRICS] + [MULTISTEP]
    name = settings.lr_scheduler_type
    if name not in names:
        raise ConfigError(f"lr_scheduler_type {name!r} is unknown.{nearest(name, names)} Known: {', '.join(names)}")
    name = name if total_steps else "constant"
    warmup = int(settings.warmup_ratio * (total_steps or 0))
    arguments = dict(settings.lr_scheduler_kwargs or {}) if total_steps else {}
    try:
        if name == MULTISTEP:
            return _multistep(optimizer, warmup, total_steps or 0, **arguments)
        return get_scheduler(name, optimizer, warmup, total_steps, scheduler_specific_kwargs=arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"lr_scheduler_type {name!r}: {error}") from error


def _multistep(
    optimizer: torch.optim.Optimizer,
    warmup: int,
    total_steps: int,
    milestones: Sequence[float] = (0.3, 0.6, 0.8),
    gamma: float = 0.2,
) -> Any:
    """The rate times `gamma` from each milestone on, which is a part of the run."""
    if not all(isinstance(part, (int, float)) and 0 < part < 1 for part in milestones):
        raise ValueError(f"milestones are parts of the run, between 0 and 1; found {list(milestones)}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is in (0, 1]; found {gamma}")

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return gamma ** sum(step >= part * total_steps for part in milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def check_scheduler(settings: TrainingSettings) -> None:
    """Raise a ConfigError where `make_scheduler` would."""
    make_scheduler(settings, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 1)


def constant_rate(optimizer: torch.optim.Optimizer) -> Any:
    return get_scheduler("constant", optimizer)

"""Where a run computes and in which precision: Accelerate, set up from the settings."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from transformers import SchedulerType, get_scheduler

from .errors import ConfigError, nearest
from .settings import TrainingSettings, machine_precision

MULTISTEP = "multistep"
_STEPPED_BY_METRICS = ("reduce_lr_on_plateau", "greedy")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_accelerator(
    settings: TrainingSettings, device: torch.device | str | None, output_dir: Path | None
) -> Accelerator:
    """An Accelerator for one run; a run before it in the same process may have had another precision or device."""
    wanted = _existing(device)
    _forget_previous(wanted)
    if wanted is not None and wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    on_cpu = wanted is not None and wanted.type == "cpu"
    precision = settings.mixed_precision
    if precision == "auto":
        precision = machine_precision(wanted or PartialState().device)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=on_cpu,
            step_scheduler_with_optimizer=False,
            log_with=list(settings.report_to) or None,
            project_dir=None if output_dir is None else str(output_dir),
        )
    except (ValueError, ImportError) as error:  # a tracker, a precision or a device that is not there
        raise ConfigError(f"Accelerate cannot be set up: {error}") from error
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"Accelerate is set up for {accelerator.distributed_type}; one process or data-parallel processes are "
            "supported, since exact averages over accumulated batches need every gradient in place"
        )
    if accelerator.num_processes > 1:  # torch's threads would abort an interpreter that ends before them
        atexit.unregister(_leave_the_others)
        atexit.register(_leave_the_others)
    return accelerator


def _leave_the_others() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _existing(device: torch.device | str | None) -> torch.device | None:
    """The device asked for; Accelerate would quietly take another one where it is missing."""
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not one torch knows, such as 'cpu' or 'cuda:0'") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {str(wanted)!r} is not there: torch finds {torch.cuda.device_count()} CUDA devices")
    return wanted


def _forget_previous(wanted: torch.device | None) -> None:
    if PartialState._shared_state and wanted is not None and PartialState().device.type != wanted.type:
        if PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


def teacher_dtype(settings: TrainingSettings, accelerator: Accelerator) -> torch.dtype | None:
    """The type of the teacher's weights; None keeps their own."""
    if settings.teacher_dtype == "auto":
        return half_precision(accelerator)
    return _DTYPES[settings.teacher_dtype]


def half_precision(accelerator: Accelerator) -> torch.dtype | None:
    """The type in which students compute under mixed precision; None without."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


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
        given: dict[str, Any] = {"momentum": 0.9, **(settings.optim_args or {})}
        try:
            return torch.optim.SGD(listed, lr=settings.learning_rate, fused=fused, **given)
        except ValueError as error:
            raise ConfigError(f"optim sgd: {error}") from error
    return torch.optim.AdamW(listed, lr=settings.learning_rate, fused=fused)


def make_scheduler(settings: TrainingSettings, optimizer: torch.optim.Optimizer, total_steps: int | None) -> Any:
    """The schedule `lr_scheduler_type`; constant after warm-up where the number of steps is not known."""
    known = [one.value for one in SchedulerType if one.value not in _STEPPED_BY_METRICS] + [MULTISTEP]
    name = settings.lr_scheduler_type
    if name not in known:
        raise ConfigError(f"lr_scheduler_type {name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}")
    name = name if total_steps else "constant"
    warmup = int(settings.warmup_ratio * (total_steps or 0))
    given = dict(settings.lr_scheduler_kwargs or {}) if total_steps else {}
    try:
        if name == MULTISTEP:
            return _multistep(optimizer, warmup, total_steps or 0, **given)
        return get_scheduler(name, optimizer, warmup, total_steps, scheduler_specific_kwargs=given)
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

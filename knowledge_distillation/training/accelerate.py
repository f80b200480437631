"""Where a run computes, alone or as one of several processes: Accelerate, set up from the settings."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, LoggerType
from accelerate.utils.environment import get_cpu_distributed_information

from ..config.settings import TrainingSettings
from ..errors import ConfigError, DistillationError, nearest

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # of torchrun and of MPI's launchers


def join_processes(device: torch.device | str | None) -> PartialState:
    """This process's place among those that were started together, and where it computes.

    Without a GPU Accelerate sees the others only when told to use the processor, so it is told.

    Raises:
        ConfigError: the device is not there; or several processes were asked for, and each would run alone.
    """
    device = _existing(device)
    _forget_previous(device)
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    asked = _processes_asked()
    on_cpu = device.type == "cpu" if device is not None else asked > 1 and not _has_gpu()
    state = PartialState(cpu=on_cpu)
    if asked > 1 and state.num_processes == 1:
        raise ConfigError(
            f"WORLD_SIZE is {asked}, and Accelerate was set up for 1 process before: each would train alone. Make the "
            "KnowledgeDistiller first, or your own Accelerator with cpu=True"
        )
    if state.num_processes > 1:  # torch's threads would abort an interpreter that ends before them
        atexit.unregister(_leave_the_others)
        atexit.register(_leave_the_others)
    return state


def _processes_asked() -> int:
    """How many processes were started together, by what a launcher tells each of them."""
    asked = get_cpu_distributed_information().world_size
    if asked > 1 and not _has_rank():
        raise ConfigError(
            f"WORLD_SIZE is {asked}, and no RANK says which of them this process is: start them with "
            f"torchrun --nproc_per_node {asked}, or unset WORLD_SIZE"
        )
    # `accelerate launch` without a GPU starts one process, however many were asked for, and leaves this trace.
    if asked == 1 and "MASTER_PORT" in os.environ and "ACCELERATE_USE_CPU" in os.environ and not _has_rank():
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does without a GPU: start them "
            "with torchrun --nproc_per_node N, or accelerate launch --multi_gpu --num_processes N, without --cpu"
        )
    return asked


def _has_rank() -> bool:
    return any(name in os.environ for name in _RANKS)


def _has_gpu() -> bool:
    """Whether there is a device on which Accelerate runs several processes."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "mps"


def make_accelerator(
    settings: TrainingSettings, state: PartialState, precision: str, output_dir: Path | None
) -> Accelerator:
    """An Accelerator for one run; a run before it in the same process may have had another precision or device.

    Args:
        state: what `join_processes` gave.
        precision: `no`, `bf16` or `fp16`.
    """
    _check_trackers(settings.report_to, output_dir)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=state.device.type == "cpu",
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
    return accelerator


def _check_trackers(names: Sequence[str], output_dir: Path | None) -> None:
    """See that every tracker is there: Accelerate would leave out one that is not installed, and say nothing."""
    known, installed = [*LOGGER_TYPE_TO_CLASS, "all"], [one.value for one in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"report_to {name!r} is no tracker of Accelerate.{nearest(name, known)} Known: {', '.join(known)}"
            )
        if name in {one.value for one in LoggerType} - {"all", *installed}:
            raise ConfigError(
                f"report_to {name!r}: it is not installed, so nothing would be tracked. Install it, or choose among "
                f"what is there: {', '.join(installed) or 'none'}"
            )
    for name in installed if "all" in names else names:
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory is True and output_dir is None:
            raise ConfigError(f"report_to {name!r} writes files: set an output_dir")


def _leave_the_others() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def comes_of_others(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that another process cannot be reached."""
    while error is not None:
        if isinstance(error, torch.distributed.DistError) or (type(error) is RuntimeError and "gloo" in str(error)):
            return True
        error = error.__cause__
    return False


@contextmanager
def others_may_end(state: PartialState | Accelerator) -> Iterator[None]:
    """Say so where it fails within the context because another process of the run is gone."""
    try:
        yield
    except Exception as error:
        if state.num_processes == 1 or not comes_of_others(error):
            raise
        raise DistillationError(
            f"process {state.process_index} of {state.num_processes} ends: another process of this run has ended, "
            "and the run cannot go on without it. What it wrote says why; the last checkpoint is whole"
        ) from error


def _existing(device: torch.device | str | None) -> torch.device | None:
    """The device asked for; Accelerate would quietly take another one where it is missing."""
    if device is None:
        return None
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not one torch knows, such as 'cpu' or 'cuda:0'") from error
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {str(named)!r} is not there: torch finds {torch.cuda.device_count()} CUDA devices")
    return named


def _forget_previous(device: torch.device | None) -> None:
    if PartialState._shared_state and device is not None and PartialState().device.type != device.type:
        if PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


def half_precision(accelerator: Accelerator) -> torch.dtype | None:
    """The type in which students compute under mixed precision; None without."""
    return HALF_PRECISION.get(accelerator.mixed_precision)

"""Where a run computes and in which precision: Accelerate, set up from the settings."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, LoggerType

from ..config.settings import TrainingSettings
from ..errors import ConfigError, nearest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_accelerator(
    settings: TrainingSettings, device: torch.device | str | None, output_dir: Path | None
) -> Accelerator:
    """An Accelerator for one run; a run before it in the same process may have had another precision or device."""
    _check_trackers(settings.report_to, output_dir)
    device = _existing(device)
    _forget_previous(device)
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    precision: str = settings.mixed_precision
    if precision == "auto":
        precision = machine_precision(device or PartialState().device)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=device is not None and device.type == "cpu",
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


def teacher_dtype(settings: TrainingSettings, accelerator: Accelerator) -> torch.dtype | None:
    """The type of the teacher's weights; None keeps their own."""
    if settings.teacher_dtype == "auto":
        return half_precision(accelerator)
    return _DTYPES[settings.teacher_dtype]


def half_precision(accelerator: Accelerator) -> torch.dtype | None:
    """The type in which students compute under mixed precision; None without."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def machine_precision(device: torch.device) -> str:
    """`bf16` where the device computes in it natively, else `no`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        # oneDNN may be absent, or told by ONEDNN_MAX_CPU_ISA to leave these instructions alone.
        usable = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bf16" if native and usable else "no"
    return "no"

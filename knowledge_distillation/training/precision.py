"""Which precision a run computes in: what is asked for, or what is measured to be faster here."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..config.settings import TrainingSettings
from ..data.train_batches import TrainBatches
from ..errors import CheckpointError, ConfigError
from ..storage.checkpoint_files import read_json
from .accelerate import HALF_PRECISION
from .callbacks import Callback

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}
FASTER = 0.95  # of float32's time; nearer to it float32 stays, which is exact
ROWS, MOST_ROWS = 512, 2048  # where nobody knows a batch; beyond them the ratio stays
_WIDEST, _MOST_PRODUCTS = 1024, 1 << 27
_ENOUGH = 0.15  # seconds for one measurement
_SMALL, _HOPELESS = 256, 3  # what is as slow as that on small products need not be tried on large ones


@dataclass(frozen=True)
class Precision:
    """Of the student's computation (`no`, `bf16` or `fp16`), of the teacher's weights (None: their own), and why."""

    mixed_precision: str
    teacher: torch.dtype | None
    why: str = ""


def choose(
    settings: TrainingSettings,
    state: PartialState,
    student: nn.Module,
    teachers: Iterable[nn.Module],
    rows: Callable[[], int],
    kept: tuple[str | None, str | None] = (None, None),
) -> Precision:
    """What the settings say; for `auto` what a run that goes on was begun in, else what is measured, by one process.

    Args:
        rows: how many vectors of one batch a product has.
        kept: precision and type of the teacher's weights of the run that goes on; None where there is none.
    """
    if "auto" not in (settings.mixed_precision, settings.teacher_dtype):
        return Precision(settings.mixed_precision, _DTYPES[settings.teacher_dtype])
    chosen = [_choose(settings, state.device, student, list(teachers), rows, kept) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(chosen)
    assert chosen[0] is not None
    return chosen[0]


def _choose(
    settings: TrainingSettings,
    device: torch.device,
    student: nn.Module,
    teachers: list[nn.Module],
    rows: Callable[[], int],
    kept: tuple[str | None, str | None],
) -> Precision:
    precision: str = settings.mixed_precision
    why = "as asked"
    if precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION")  # `no` where accelerate launch was asked for nothing
        if kept[0] is not None:
            precision, why = kept[0], "as the run was begun"
        elif launched in HALF_PRECISION:
            precision, why = str(launched), "as accelerate launch was asked"
        else:
            precision, why = faster(device, student, rows)
    said = f"precision: {_NAMES.get(precision, precision)} ({why})"
    if settings.teacher_dtype != "auto":
        return Precision(precision, _DTYPES[settings.teacher_dtype], said)
    if kept[1] is not None and settings.mixed_precision == "auto":
        return Precision(precision, _DTYPES.get(kept[1]), f"{said}; the teacher {kept[1]} (as begun)")
    dtype = HALF_PRECISION.get(precision)
    if settings.mixed_precision == "auto" and teachers:
        largest = max(teachers, key=lambda model: sum(p.numel() for p in model.parameters()))
        name, why = faster(device, largest, rows, trains=False)
        dtype, said = HALF_PRECISION.get(name), f"{said}; the teacher {_NAMES[name]} ({why})"
    return Precision(precision, dtype, said if settings.mixed_precision == "auto" else "")


def kept_precision(settings: TrainingSettings, output_dir: Path | None) -> tuple[str | None, str | None]:
    """The precision, and the type of the teacher's weights, in which a run in the folder, or a cache, was begun."""
    run: Any = None
    cached = None
    if output_dir is not None and not settings.overwrite_output_dir:
        run = _read(output_dir / "run.json").get("run")
    if settings.teacher_cache is not None:
        folder = Path(settings.teacher_cache)
        caches = [folder / "cache.json", *sorted(folder.glob("*/cache.json")), *sorted(folder.glob("*/*/cache.json"))]
        cached = next(filter(None, (_read(path).get("computed_in") for path in caches)), None)
    known = run if isinstance(run, dict) else {}
    precision, of_teacher = known.get("mixed_precision"), known.get("teacher_dtype")
    return precision if precision in _NAMES else None, of_teacher if of_teacher in _DTYPES else cached


def _read(path: Path) -> dict[str, Any]:
    """A file of plain values; of one that is not there or cannot be read, nothing: who needs it says so."""
    try:
        content = read_json(path)
    except (OSError, CheckpointError):
        return {}
    return content if isinstance(content, dict) else {}


def to_float32(students: Mapping[str, nn.Module], settings: TrainingSettings) -> list[str]:
    """Raise the weights of students that come in half precision to float32, in place; in words, what was done.

    A model whose trained weights are float32 beside frozen ones in half precision (LoRA) stays as it is.

    Raises:
        ConfigError: gradients in float16 would be scaled, which needs float32 weights.
    """
    notes = []
    for name, model in students.items():
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        half = next((dtype for dtype in (torch.float16, torch.bfloat16) if dtype in trained), None)
        if half is None:
            continue
        who, type_name = f"peer_model {name}" if name else "student_model", str(half).removeprefix("torch.")
        lost = f"an update below 1/{round(2 / torch.finfo(half).eps)} of a weight is lost"
        if settings.student_dtype == "float32":
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()
            notes.append(
                f"warning: {who} came in {type_name}, where {lost}; it is trained and saved in float32 (student_dtype)"
            )
        elif settings.mixed_precision == "fp16":
            raise ConfigError(
                f"mixed_precision fp16 needs float32 weights, and {who} is {type_name}: leave student_dtype out"
            )
        else:
            notes.append(f"warning: {who} is trained in {type_name} (student_dtype: own): {lost}")
    return notes


def faster(device: torch.device, model: nn.Module, rows: Callable[[], int], trains: bool = True) -> tuple[str, str]:
    """`bf16` or `no`, and why. On a processor both are tried on products of the model's own sizes."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU has it") if has else ("no", "this GPU has no bf16")
    if device.type != "cpu":
        return "no", f"bf16 is not tried on {device.type}"
    out, into = main_matrix(model)
    out, into = min(out, _WIDEST), min(into, _WIDEST)
    number = max(1, min(rows(), MOST_ROWS, _MOST_PRODUCTS // (out * into)))
    number = 1 << round(math.log2(number))
    ratio = bf16_ratio(number, out, into, trains, torch.get_num_threads())
    why = f"bf16 takes {ratio:.2f} of float32's time here, on {number} rows by {into} and {out}"
    return "bf16" if ratio < FASTER else "no", why


def main_matrix(model: nn.Module) -> tuple[int, int]:
    """The size of the matrices that hold most of a model's weights, the longer side first; looked-up tables aside."""
    weights: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        for p in () if isinstance(module, nn.Embedding) else module.parameters(recurse=False):
            if p.dim() > 1 and p.numel():
                sizes = (p.shape[0], p.numel() // p.shape[0])
                weights[max(sizes), min(sizes)] += p.numel()
    return max(weights, key=lambda size: weights[size], default=(64, 64))


def rows_of(loader: Any, seed: int, state: PartialState) -> int:
    """About how many vectors a batch is to a model: its tokens; of pictures and sound a vector of 16 values each.

    The batch is the first, which stays in its place. What cannot be had before the run begins, as of a source that
    makes its batches, or is an iterator, is guessed.
    """
    ids, values = [0], [0]
    try:
        batch = None if isinstance(loader, (Callback, Iterator)) else TrainBatches(loader, seed, state).first()
    except Exception:  # the run says it, when it comes to it
        batch = None
    for tensor in _tensors(batch):
        if tensor.dim() > 1:
            (values if tensor.is_floating_point() else ids).append(tensor.numel())
    return max(max(ids), max(values) // 16) or ROWS


def _tensors(batch: Any) -> Iterable[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping) or hasattr(batch, "values"):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


@lru_cache(maxsize=64)
def bf16_ratio(rows: int, out: int, into: int, trains: bool, threads: int) -> float:
    """The time in bf16 by that in float32, remembered for the process: see `_measured`.

    `threads` is how many torch has now: with another number the ratio is another.
    """
    if rows * out * into > _SMALL**3:
        small = bf16_ratio(_SMALL, _SMALL, _SMALL, trains, threads)
        if small > _HOPELESS:
            return small
    return _measured(rows, out, into, trains)


def _measured(rows: int, out: int, into: int, trains: bool) -> float:
    """The time of a pair of products in bf16, by that in float32: measured in turns, the best of each.

    A layer there and back, as in a transformer: with the gradient under autocast, or (`trains` False) alone, with
    weights in bf16. It is the time of this thread, so that others on the machine count for little.
    """
    with torch.random.fork_rng(devices=[]):
        tensors = [torch.randn(size) for size in ((rows, into), (out, into), (into, out))]
    sides: list[Callable[[], object]]
    if trains:
        leaves = [tensor.requires_grad_() for tensor in tensors]
        sides = [partial(_trained, bf16, *leaves) for bf16 in (False, True)]
    else:
        sides = [partial(_alone, *tensors), partial(_alone, *(t.bfloat16() for t in tensors))]
    for work in sides:  # the first time each finds its way
        work()
    best, spent = [math.inf, math.inf], 0.0
    for _ in range(20):
        for side, work in enumerate(sides):
            start = time.thread_time()
            work()
            took = time.thread_time() - start
            best[side], spent = min(best[side], took), spent + took
        if spent > _ENOUGH:
            break
    return best[1] / max(best[0], 1e-9)


def _there_and_back(x: Tensor, there: Tensor, back: Tensor) -> Tensor:
    return F.layer_norm(x + F.linear(F.gelu(F.linear(x, there)), back), x.shape[-1:])


def _alone(*tensors: Tensor) -> Tensor:
    with torch.no_grad():
        return _there_and_back(*tensors)


def _trained(bf16: bool, x: Tensor, there: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = _there_and_back(x, there, back)
    return torch.autograd.grad(y, (x, there, back), torch.ones_like(y))

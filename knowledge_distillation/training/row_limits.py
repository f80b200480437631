"""What of a batch a model cannot take, found by running it: the rows to blame, and how long a row may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import listed
from ..features.inputs import forward_inputs
from ..features.preserve import preserved, resting
from .batch import Inputs, on_device
from .run import Run

Forward = Callable[[Mapping[str, Any]], Any]


def failures(run: Run, inputs: tuple[Inputs, Inputs], title: Callable[[int], str] = "row {}".format) -> Iterator[str]:
    """For each model that cannot run on a batch, why: the rows it fails on, or those that are too long for it.

    Args:
        inputs: what `adapt` returned.
        title: how a row is called.
    """
    for who, model, forward, values in _models(run, inputs):
        error = attempt(model, forward, values)
        if error is None:
            continue
        length, limit = longest_taken(model, forward, values)
        if limit:
            lengths = row_lengths(values, length)
            rows = [f"{title(row)} has {size} tokens" for row, size in enumerate(lengths) if size > limit]
            yield f"{listed(rows) or f'its rows are padded to {length} tokens'}, and the {who} takes {limit} at most"
            continue
        number = len(row_lengths(values, length))
        bad = [row for row in range(number) if attempt(model, forward, _row(values, row, number)) is not None]
        which = listed([title(row) for row in bad]) if bad and (number == 1 or len(bad) < number) else "the batch"
        yield f"the {who} fails on {which}: {type(error).__name__}: {error}"


def _models(run: Run, inputs: tuple[Inputs, Inputs]) -> Iterator[tuple[str, nn.Module, Forward, dict[str, Any]]]:
    """Every model that an entry reads: how it is called in messages, itself, its call, what it takes."""
    students, teachers = on_device(run, inputs)
    read = {feature.model for entry in run.loss_model.config.entries for feature in entry.teacher}
    for name, values in students.items():
        student = run.students[name]
        taken = forward_inputs(values, student, run.loss_model.reads_own_loss)
        yield name or "student", student, _calling(student), taken
    for name, values in teachers.items():
        if name in read:
            teacher = run.teachers[name]
            taken = forward_inputs(values, teacher.model)
            yield f"teacher {name}".strip(), teacher.model, _calling(teacher), taken


def _calling(model: nn.Module) -> Forward:
    return lambda values: model(**values)


def attempt(model: nn.Module, forward: Forward, values: Mapping[str, Any]) -> Exception | None:
    """The error of a pass, which changes nothing in the model; None where it goes through."""
    with resting(model), preserved(model), _indices_checked(model):
        try:
            forward(values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return error
    return None


def longest_taken(model: nn.Module, forward: Forward, values: Mapping[str, Any]) -> tuple[int, int]:
    """The padded length of a batch that fails, and how long it may be; 0 where its length is not what is wrong."""
    ids = next((values[key] for key in ("input_ids", "inputs_embeds") if isinstance(values.get(key), Tensor)), None)
    if ids is None or ids.dim() < 2:
        return 0, 0
    length = ids.shape[1]
    good, bad = 0, length
    while bad - good > 1:
        middle = (good + bad) // 2
        cut = {
            k: v[:, :middle] if isinstance(v, Tensor) and v.shape[1:2] == (length,) else v for k, v in values.items()
        }
        good, bad = (good, middle) if attempt(model, forward, cut) else (middle, bad)
    return length, good if good > 1 else 0  # a model that fails on every length has another reason


def row_lengths(values: Mapping[str, Any], length: int) -> list[int]:
    """The tokens of each row that count."""
    mask = values.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape[1:] == (length,):
        return mask.bool().sum(-1).tolist()
    rows = next((len(v) for v in values.values() if isinstance(v, Tensor) and v.dim()), 0)
    return [length] * rows


def _row(values: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    return {k: v[row : row + 1] if isinstance(v, Tensor) and v.shape[:1] == (rows,) else v for k, v in values.items()}


@contextmanager
def _indices_checked(model: nn.Module) -> Iterator[None]:
    """An index that an embedding does not have is an error here: on a GPU it would end the process's use of it."""

    def check(module: Any, args: tuple[Any, ...]) -> None:
        rows = module.num_embeddings
        if args and isinstance(args[0], Tensor) and args[0].numel() and int(args[0].max()) >= rows:
            raise IndexError(f"index {int(args[0].max())} of an embedding that has {rows} rows")

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_pre_hook(check).remove)
        yield

"""What a model says of each row of an evaluation, by the row's own number, of all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..features.inputs import forward_inputs, named_inputs, same_inputs
from ..features.preserve import resting

ROW = "idx"  # the column of a row's number


def by_row(
    model: nn.Module, dataloader: Iterable[Any], accelerator: Any, take: Callable[[Any, dict[str, Any]], Tensor]
) -> NDArray[Any]:
    """(rows, …) what `take(output, inputs)` gives for each row of a batch, in the order of the rows' numbers.

    Args:
        model: a student, or a frozen teacher.
        dataloader: batches that have the number of each row as `idx`.
    """
    from accelerate.utils import gather_object

    inner = getattr(model, "model", model)
    cast: Any = getattr(model, "cast", dict)
    found: list[tuple[Any, Any]] = []
    with resting(model), torch.no_grad():
        for batch in dataloader:
            moved, _ = same_inputs(accelerator.device, batch)
            inputs = forward_inputs(named_inputs(moved, inner), inner)
            with accelerator.autocast():
                values = take(model(**cast(inputs)), inputs)
            found.append((moved[ROW].cpu().numpy(), values.detach().float().cpu().numpy()))
    parts = gather_object(found)
    numbers, said = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, first = np.unique(numbers, return_index=True)
    return said[first]

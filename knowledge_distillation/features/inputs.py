"""What of a batch a model takes, and whether it can take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError, DistillationError
from .adaptors import Inputs, accepted
from .capture import forward_parameters


def shape_of(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def check_vocabulary(model: nn.Module, inputs: Inputs, who: str) -> None:
    """Raise where a batch holds token ids that the model's embedding does not have."""
    ids = inputs.get("input_ids")
    get = getattr(model, "get_input_embeddings", None)
    try:
        rows = getattr(get() if get else None, "num_embeddings", None)
    except NotImplementedError:
        rows = None
    if not rows or not isinstance(ids, Tensor) or not ids.numel() or ids.is_floating_point():
        return
    if int(ids.max()) >= rows:
        raise ConfigError(
            f"input_ids hold id {int(ids.max())}, and the {who}'s vocabulary has {rows} entries. The text was "
            f"tokenized for another model: use the {who}'s own tokenizer, or a student with the teacher's vocabulary"
        )


def inputs_for(inputs: Inputs, model: nn.Module, who: str, labels_too: bool = False) -> dict[str, Any]:
    """The inputs that a model takes; a DataError where it takes none of what the batch has."""
    taken = accepted(inputs, model, labels_too)
    if not taken:
        takes = ", ".join(forward_parameters(model)[0])
        raise DataError(
            f"the {who} takes nothing of what the batch has ({', '.join(inputs) or 'nothing'}). It takes: {takes}"
        )
    return taken


@contextmanager
def on_first_batch(who: str, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Say which model failed and on what inputs."""
    try:
        yield
    except (DistillationError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = {k: shape_of(v) if isinstance(v, Tensor) else type(v).__name__ for k, v in inputs.items()}
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DataError(f"the {who} fails on the first batch ({shown}): {type(error).__name__}: {error}") from error

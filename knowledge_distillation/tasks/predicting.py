"""A model's outputs over encoded rows, batch by batch, in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..data.collating import default_collator
from ..features.inputs import forward_inputs
from ..features.preserve import resting

if TYPE_CHECKING:
    from datasets import Dataset


def outputs(
    model: Any,
    encoded: Dataset,
    tokenizer: Any,
    batch_size: int = 32,
    collator: Callable[[list[Any]], Any] | None = None,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What a model says of each batch, and the batch, both on the model's device."""
    device = next(model.parameters()).device
    collator = collator or default_collator(tokenizer, encoded[0])
    with resting(model), torch.no_grad():
        for start in range(0, len(encoded), batch_size):
            rows = [encoded[place] for place in range(start, min(start + batch_size, len(encoded)))]
            batch = {key: value.to(device) for key, value in collator(rows).items()}
            yield model(**forward_inputs(batch, model)), batch

"""Write the entries of a mapping from layers to layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Entries = list[dict[str, Any]]


def layer_entries(
    pairs: Sequence[Sequence[int]],
    outputs: Sequence[str] = ("hidden_states",),
    stack: str = "layer",
    **entry: Any,
) -> Entries:
    """One entry for each output, its braces holding (teacher layer, student layer) pairs.

    Args:
        stack: what the names of the layers begin with; `encoder_layer` and `decoder_layer` where there are two.
        **entry: further keys of the entries, such as `loss` (`mse` where left out) or `weight`.
    """
    teacher, student = (stack + _braced([pair[side] for pair in pairs]) for side in (0, 1))
    return [
        {"teacher": f"{teacher}.{output}", "student": f"{student}.{output}", "loss": "mse", **entry}
        for output in outputs
    ]


def _braced(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{{{','.join(map(str, numbers))}}}"

"""A batch's inputs with another length, or another number of rows: what a kind is seen from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGER = 3  # tokens
LARGER = 32  # pixels in each direction: the usual stride of all of an image model


@dataclass(frozen=True)
class Varied:
    """Inputs of another length.

    Args:
        by: how much the length of the encoder's input, or of the only one, has changed; `decoder_by` the decoder's.
        images: it is height and width that have changed.
    """

    inputs: dict[str, Any]
    by: int
    decoder_by: int = 0
    images: bool = False


def another_row(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with their first row once more at the end."""
    size = next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 0)
    return {key: _with_first(value) if rows_in(value) == size else value for key, value in inputs.items()}


def other_lengths(inputs: Mapping[str, Any], longest: int | None = None) -> Iterator[Varied]:
    """The same rows at other lengths, in the order in which to try whether a model takes them.

    Shorter ones come first, since no model refuses them for its positions; then such as have a token in the middle
    several times, which keeps the first and the last. Nothing comes where no input has a length.

    Args:
        longest: the length that is safe; None for any.
    """
    tokens = {k: v for k, v in inputs.items() if _is_tokens(k, v)}
    if not tokens:
        yield from _other_sizes(inputs)
        return
    own = [value.shape[1] for key, value in tokens.items() if not _is_decoders(key, tokens)]
    of_decoder = [value.shape[1] for key, value in tokens.items() if _is_decoders(key, tokens)]
    length, decoder_length = own[0] if own else 0, of_decoder[0] if of_decoder else 0
    sizes = {"": length, "decoder": decoder_length}
    cut = max(LONGER, length // 2)
    less = max(LONGER - 1, decoder_length // 2)
    less -= less == cut
    ways: list[tuple[Callable[[Tensor, int, int, str], Tensor], int, int]] = []
    if all(size > removed + 1 or not size for size, removed in ((length, cut), (decoder_length, less))):
        ways.append((_shortened, -cut, -less))
    if longest is None or max(length, decoder_length) + LONGER <= longest:
        ways += [(_stretched, LONGER, LONGER - 1), (_lengthened, LONGER, LONGER - 1)]
    for (way, by, decoder_by), only_tokens in itertools.product(ways, (False, True)):
        changed: dict[str, Tensor] = {}
        for key, value in tokens.items() if only_tokens else inputs.items():
            decoders = _is_decoders(key, tokens)
            change, size = (decoder_by, sizes["decoder"]) if decoders else (by, sizes[""])
            for dim in _lengths_of(key, value, size, only_tokens):
                changed[key] = way(changed.get(key, value), dim, change, key)
        yield Varied({**inputs, **changed}, by if own else 0, decoder_by if of_decoder else 0)


def _is_tokens(key: str, value: Any) -> bool:
    """Whether an input has something for each token: its rows are longer than 1, or it is what is read."""
    if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
        return False
    return value.shape[1] > 1 or key.endswith("input_ids")


def _is_decoders(key: str, tokens: Mapping[str, Any]) -> bool:
    return key.startswith("decoder_") or (key == "labels" and "decoder_input_ids" in tokens)


def _lengths_of(key: str, value: Any, size: int, only_tokens: bool) -> list[int]:
    """The dimensions of an input that are its length."""
    if _is_tokens(key, value):
        return [1] if value.shape[1] == size or not only_tokens else []
    if not isinstance(value, Tensor) or not size:
        return []
    return [dim for dim in range(1, value.dim()) if value.shape[dim] == size]


def _shortened(value: Tensor, dim: int, by: int, key: str) -> Tensor:
    return value.narrow(dim, 0, max(1, value.shape[dim] + by))


def _stretched(value: Tensor, dim: int, by: int, key: str) -> Tensor:
    """The second place several times."""
    place = min(1, value.shape[dim] - 1)
    again = [value.narrow(dim, place, 1)] * by
    return torch.cat(
        [value.narrow(dim, 0, place), *again, value.narrow(dim, place, value.shape[dim] - place)], dim=dim
    )


def _lengthened(value: Tensor, dim: int, by: int, key: str) -> Tensor:
    """The last place several times more, not attended to."""
    last = value.narrow(dim, value.shape[dim] - 1, 1)
    last = torch.zeros_like(last) if "mask" in key else last
    return torch.cat([value, *[last] * by], dim=dim)


def _other_sizes(inputs: Mapping[str, Any]) -> Iterator[Varied]:
    """Of inputs without tokens: images that are larger, and sounds or rows of vectors that are twice as long."""
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    images = [value for value in tensors.values() if value.dim() >= 4 and value.is_floating_point()]
    if images:
        size = images[0].shape[-2:]
        larger = {k: F.pad(v, (0, LARGER, 0, LARGER)) for k, v in tensors.items() if v.shape[-2:] == size}
        yield Varied({**inputs, **larger}, LARGER, images=True)
        return
    first = next((v for v in tensors.values() if v.dim() in (2, 3) and v.is_floating_point()), None)
    for dim, length in enumerate(first.shape[1:] if first is not None else (), start=1):
        doubled = {
            key: torch.cat([value, value], dim=min(dim, value.dim() - 1))
            for key, value in tensors.items()
            if value.dim() > 1 and value.shape[min(dim, value.dim() - 1)] == length
        }
        yield Varied({**inputs, **doubled}, length)


def rows_in(value: Any) -> int:
    """How many rows an input has; -1 of what has none."""
    return len(value) if isinstance(value, list) or (isinstance(value, Tensor) and value.dim()) else -1


def _with_first(value: Any) -> Any:
    return value + value[:1] if isinstance(value, list) else torch.cat([value, value[:1]])

"""How the tokens of a text become one vector, and the names of features that say so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ConfigError, nearest

PoolingMode = Literal["mean", "cls", "last", "weighted_mean"]
POOLINGS: tuple[str, ...] = get_args(PoolingMode)
SENTENCE = "sentence_embedding"
NORMALIZED, UNNORMALIZED = "normalized", "unnormalized"
_NAME = re.compile(rf"{SENTENCE}(?:\[([^\]]*)\])?")


@dataclass(frozen=True)
class Pooling:
    """How the last hidden states of a text become its embedding.

    Args:
        mode: `mean` of the tokens that count; `cls`, the first of them; `last`, the last; `weighted_mean`, where the
            first counts once, the second twice, and so on.
        normalize: whether the embedding is divided by its length.
    """

    mode: str = "mean"
    normalize: bool = False

    def __str__(self) -> str:
        return f"{self.mode},{NORMALIZED if self.normalize else UNNORMALIZED}"


@dataclass(frozen=True)
class PoolingAsked:
    """What a name says of the pooling; None where that is the model's own affair."""

    mode: str | None = None
    normalize: bool | None = None

    def of(self, own: Pooling) -> Pooling:
        """What is not said is what the model has of its own."""
        return Pooling(self.mode or own.mode, own.normalize if self.normalize is None else self.normalize)


def pooling_in(output: str) -> PoolingAsked | None:
    """What `sentence_embedding[mean,normalized]` says; None of the name of any other output.

    Raises:
        ConfigError: a word in the brackets is none.
    """
    match = _NAME.fullmatch(output)
    if match is None:
        return None
    mode: str | None = None
    normalize: bool | None = None
    for word in filter(None, (match[1] or "").replace(" ", "").split(",")):
        if word in POOLINGS and mode is None:
            mode = word
        elif word in (NORMALIZED, UNNORMALIZED) and normalize is None:
            normalize = word == NORMALIZED
        else:
            words = (*POOLINGS, NORMALIZED, UNNORMALIZED)
            raise ConfigError(
                f"{output}: in the brackets stands one of {', '.join(POOLINGS)}, and {NORMALIZED} or {UNNORMALIZED}; "
                f"found {word!r}.{nearest(word, words) if word not in words else ''}"
            )
    return PoolingAsked(mode, normalize)


def with_pooling(output: str, mode: str | None, normalize: bool | None) -> str:
    """The name of an output with what an entry says of its pooling."""
    words = [mode, None if normalize is None else NORMALIZED if normalize else UNNORMALIZED]
    said = ",".join(word for word in words if word)
    return f"{output}[{said}]" if output == SENTENCE and said else output

"""Which tokens of a batch are marked: by labels, or by a mask of the batch that an entry names.

Labels and marks belong to tokens. Where position i of a model is for token i + 1, a position counts if the token that
it is for is marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Entry
from ..errors import ConfigError, nearest
from ..features.batch_context import of_next
from ..features.inputs import shape_of
from ..features.label_shift import marks_tokens
from ..losses.labels import IGNORED_LABEL
from .loss import Loss

LABELS, ATTENTION = "labels", "attention"
WHERE_LABELS_MARK = "labels where they mark tokens"  # the default of soft losses on logits


def marks_of(loss: Loss, kind: str, feature: Tensor, context: Mapping[str, Any]) -> tuple[str, ...]:
    """What a token has to be marked by to count for an entry, beside not being padding.

    Args:
        kind: of the feature as the loss gets it.
        feature: the student's.

    Raises:
        ConfigError: the entry names a mask that the batch does not have, or its feature has no tokens.
    """
    entry, name = loss.entry, None if kind == "positions" else loss.entry.mask
    by_labels = (LABELS,) if loss.labelled else ()
    length = {"tokens": 1, "attention": 2, "heads": 2}.get(kind)
    if name is None:
        of_logits = not entry.hard and (entry.student[0].output == "logits" or loss.spec.logits)
        labels = context.get("labels")
        if of_logits and kind == "tokens" and marks_tokens(labels) and labels.shape == feature.shape[:2]:  # type: ignore[union-attr]
            return by_labels or (WHERE_LABELS_MARK,)
        return by_labels
    if length is None:
        raise ConfigError(f"mask {name!r} says which tokens count, and {entry.student[0]} is a {kind}: it has none")
    key = _key_of(name, torch.Size((feature.shape[0], feature.shape[length])), str(entry.student[0]), context)
    return tuple(dict.fromkeys((*by_labels, *([key] if key else []))))


def marked_positions(entry: Entry, feature: Tensor, context: Mapping[str, Any], key: str | None) -> str | None:
    """The key of what says which tokens of a row are its classes: the mask that an entry names, else `key`.

    Raises:
        ConfigError: the batch does not have the mask.
    """
    named = None if entry.mask is None else _key_of(entry.mask, feature.shape, str(entry.student[0]), context)
    return named or key


def marks_by_name(entry: Entry) -> bool:
    """Whether an entry names a mask of tokens other than labels."""
    return entry.mask not in (None, LABELS) and not _says_padding(str(entry.mask))


def marked(context: Mapping[str, Any], mark: str, rows: Tensor | None) -> Tensor | None:
    """The positions that one of `marks_of` marks in a batch, (batch, length), or (batch,) for labels of samples.

    Args:
        rows: (batch, length) what is no padding; None for all.
    """
    shifted = getattr(context, "shifted", False)
    if mark not in (LABELS, WHERE_LABELS_MARK):
        mask = context[mark].bool()
        return of_next(mask, False) if shifted else mask
    labels = context.get(LABELS) if mark == WHERE_LABELS_MARK else context[LABELS]
    if labels is None or labels.is_floating_point():
        return None
    labelled = labels != IGNORED_LABEL
    if mark == LABELS or rows is not None and rows.shape != labels.shape:
        return labelled
    attended = torch.ones_like(labelled) if rows is None else rows.bool()
    left_out = ~labelled & (of_next(attended, False) if shifted else attended)
    return labelled | ~left_out.any(-1, keepdim=True)


def _key_of(name: str, shape: torch.Size, feature: str, context: Mapping[str, Any]) -> str | None:
    """The key of the batch that a name of a mask stands for; None for that of padding."""
    if _says_padding(name):
        return None
    if name == LABELS:
        labels = context.get(LABELS)
        if marks_tokens(labels) and labels.shape == shape:  # type: ignore[union-attr]
            return LABELS
        found = f"labels {shape_of(labels)}" if isinstance(labels, Tensor) else "no labels"
        raise ConfigError(f"mask 'labels': {feature} has {shape_of(shape)} tokens, and the batch has {found}")
    masks = {key: tensor for key, tensor in context.items() if _is_mask(key, tensor, shape)}
    key = next((key for key in (name, f"{name}_mask", f"{name}_masks") if key in masks), None)
    if key is None:
        names = [ATTENTION, *([LABELS] if LABELS in context else []), *masks]
        short = [one.removesuffix("_mask") for one in names]
        raise ConfigError(
            f"mask {name!r}: the batch has no such mask for the tokens of {feature}.{nearest(name, [*names, *short])} "
            f"It has: {', '.join(names)}"
        )
    return key


def _says_padding(name: str) -> bool:
    return name.removesuffix("_mask").removeprefix("decoder_") == ATTENTION


def _is_mask(key: str, tensor: Any, shape: torch.Size) -> bool:
    """Whether an input says yes or no for each token, and is not one of those that say what is padding."""
    if not isinstance(tensor, Tensor) or tensor.shape != shape or "attention" in key:
        return False
    return tensor.dtype == torch.bool or "mask" in key and bool(((tensor == 0) | (tensor == 1)).all())

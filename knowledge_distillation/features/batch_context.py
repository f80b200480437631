"""All that losses may ask for beside their two features: masks, labels, keys of the batch; and which mask is whose."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Feature
from ..losses.labels import IGNORED_LABEL
from .inputs import Inputs
from .label_shift import marks_tokens

PER_TOKEN = ("tokens", "attention", "heads")  # kinds of features that have values for each token
_STACK = re.compile(r"(?:^|[._])(encoder|decoder)")  # the first in a path: `decoder.layers.0.encoder_attn` decodes


class Context(dict[str, Any]):
    """What losses may ask for in one batch, and what was worked out of it, so that no two entries do so again.

    `whole` names the masks that keep everything, because the batch has none: they need not be applied. `shifted` says
    that position i is for label i + 1: `labels` then hold at position i what that is for, -100 in the last.
    """

    def __init__(self, values: Mapping[str, Any], whole: frozenset[str] = frozenset(), shifted: bool = False) -> None:
        super().__init__(values)
        self.whole, self.shifted = whole, shifted
        self.memo: dict[Hashable, Any] = {}


def once(context: Mapping[str, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make()` gives for this batch, made once; for a plain mapping, each time."""
    if not isinstance(context, Context):
        return make()
    if key not in context.memo:
        context.memo[key] = make()
    return context.memo[key]


def keeps_all(context: Mapping[str, Any], key: str | None) -> bool:
    """Whether the mask under this key is known to keep everything."""
    return isinstance(context, Context) and key in context.whole


def make_context(student: Inputs, teacher: Inputs | None = None, shift_labels: bool = False) -> Context:
    """All that losses may ask for: every key of both models' inputs, masks that hold on both sides, labels.

    Token inputs without a mask get one of ones; a decoder without one is masked where labels are -100.
    """
    teacher = teacher if teacher is not None else student
    context = {**teacher, **student}
    labels, whole = context.get("labels"), set()
    for ids, key in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        mask, other = student.get(key), teacher.get(key)
        if mask is None and isinstance(context.get(ids), Tensor):
            tokens = context[ids]
            labelled = key.startswith("decoder") and isinstance(labels, Tensor) and labels.shape == tokens.shape
            mask = (labels != IGNORED_LABEL) if labelled else torch.ones_like(tokens, dtype=torch.bool)
            if not labelled and other is None:
                whole.add(key)
        if other is not None and mask is not None and other is not mask:
            context[f"teacher_{key}"] = other
            if other.shape == mask.shape:
                mask = mask.bool() & other.bool()
        if mask is not None:
            context[key] = mask
    if shift_labels and marks_tokens(labels):
        context["labels"] = of_next(context["labels"], IGNORED_LABEL)
    return Context(context, frozenset(whole), shift_labels)


def of_next(tokens: Tensor, last: int) -> Tensor:
    """At each position what the next token has, (…, length); `last` in the last."""
    return torch.cat([tokens[..., 1:], torch.full_like(tokens[..., :1], last)], dim=-1)


def mask_keys(
    feature: Feature, kind: str, tensor: Tensor, context: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """The context keys that tell how long a feature's rows and keys are: masks, else any input as long, else None."""
    if kind not in (*PER_TOKEN, "positions"):
        return None, None
    encoder, decoder = "attention_mask", "decoder_attention_mask"
    stack = _STACK.search(f"{feature.layer}.{feature.output}")
    ours = [decoder] if decoder in context and not (stack and stack[1] == "encoder") else [encoder]
    others = [k for k, v in context.items() if isinstance(v, Tensor) and "mask" not in k and k != "labels"]

    def fitting(length: int, candidates: list[str]) -> str | None:
        fits = (
            c
            for c in candidates
            if isinstance(context.get(c), Tensor) and context[c].shape[:2] == (tensor.shape[0], length)
        )
        return next(fits, None)

    if kind == "positions":
        return None, fitting(tensor.shape[1], ours + others)
    rows = fitting(tensor.shape[1 if kind == "tokens" else 2], ours + others)
    cross = feature.output.startswith("cross_")
    keys = fitting(tensor.shape[-1], [encoder] if cross else ours + others) if kind == "attention" else None
    return rows, keys


def mask_of(context: Mapping[str, Any], key: str | None) -> Tensor | None:
    """The mask a key of `mask_keys` stands for: an input that is no mask says only how long the rows are."""
    if key is None:
        return None
    tensor = context[key]
    if "mask" in key:
        return once(context, key, tensor.bool)
    return once(context, key, lambda: torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device))


def batch_size(context: Mapping[str, Any], values: Tensor | None = None) -> int:
    if values is not None and values.dim():
        return values.shape[0]
    rows = {key: len(v) for key, v in context.items() if isinstance(v, Tensor) and v.dim()}
    lengths = (rows[key] for key in ("labels", "input_ids", "pixel_values", "attention_mask") if key in rows)
    return next(lengths, max(rows.values(), default=1))

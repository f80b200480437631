"""Whether position i of a model's logits is for label i, or for label i + 1: measured, whatever its name.

A model that computes a loss of its own says so itself: it is given labels for which the two readings lie far apart.
One that computes none is asked whether it sees the next token; if it does not, and the labels repeat the tokens that
it reads, then it predicts the next of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.labels import IGNORED_LABEL
from .capture import accepted_flags
from .inputs import Inputs, first_rows, forward_inputs
from .preserve import preserved, resting
from .signature import forward_parameters

LENGTH = 64  # tokens of one row are enough, where a model takes nothing but tokens
_NEAR = 0.02  # of the way from one reading of the loss to the other
_TOUCHES = 0.1  # of the change of a reading that the loss has to follow, whatever else is added to it
_MOST = 0.9  # of the labels
_TOKENS = 4  # made of one that is alone
_OTHERS = (2, 3, -1)  # shifts of losses that are for neither: of models that look further ahead, or backwards
_EXACT = 1e-4


class LabelShift(NamedTuple):
    """Whether position i is for label i + 1 (None where nothing tells), how that is known, and whether by its loss."""

    shifted: bool | None
    known_by: str
    by_loss: bool = False

    def __str__(self) -> str:
        return f"position i of the logits is for label {'i + 1' if self.shifted else 'i'}, {self.known_by}"


def marks_tokens(labels: Any) -> bool:
    """Whether labels are class numbers, one for each token."""
    return isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point()


def label_shift(model: nn.Module, inputs: Inputs, labels: Any) -> LabelShift | None:
    """Measure the shift of a model on a batch; None where it gives no logits for each label.

    At most four passes over a few tokens. Weights, buffers, modes and the random state stay as they are.

    Args:
        inputs: `named_inputs` of the batch.
        labels: (batch, length) class numbers, -100 where there is none.
    """
    if not marks_tokens(labels):
        return None
    if labels.shape[-1] < 2:  # no token follows
        if not all(value.shape == labels.shape for value in inputs.values() if isinstance(value, Tensor)):
            return None
        inputs, labels = {k: _several(k, v) for k, v in inputs.items()}, _several("labels", labels)
    failure = ""
    with resting(model), preserved(model):
        for probe, shape in _probes({k: v for k, v in inputs.items() if k != "labels"}, labels):
            accepted = forward_inputs(probe, model)
            try:
                logits = logits_of(model(**accepted, **accepted_flags(model)), shape)
            except Exception as error:  # a model may want more rows or tokens than these
                failure = f"{type(error).__name__}: {error}"
                continue
            if logits is None:
                return None
            own = _by_own_loss(model, accepted, logits, probe.get("attention_mask"))
            return own or _by_tokens(model, accepted, logits, inputs, labels)
    return LabelShift(None, f"it fails on a few tokens of the batch ({failure})")


def shift_of_outputs(output: Any, inputs: Inputs, labels: Any) -> LabelShift | None:
    """The shift where there is no model to ask: from the loss in its output, or from the tokens that it read."""
    logits = logits_of(output, labels.shape) if marks_tokens(labels) else None
    if logits is None:
        return None
    loss = _loss_of(output)
    if loss is not None:
        same, after = _readings(logits.detach(), labels)
        near = [abs(float(loss) - one) < _NEAR * abs(same - after) for one in (same, after)]
        if near[0] != near[1]:
            return LabelShift(near[1], "as in the loss of its output", by_loss=True)
    return _from_labels(inputs, labels)


def logits_of(output: Any, shape: torch.Size) -> Tensor | None:
    """The tensor of an output that has classes for each label, one named logits first."""
    if isinstance(output, Tensor):
        output = (output,)
    named = output.items() if isinstance(output, Mapping) else enumerate(output if isinstance(output, tuple) else ())
    fits = {
        str(name): value
        for name, value in named
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == len(shape) + 1
        if value.shape[:-1] == shape and value.shape[-1] > 1
    }
    first = sorted(fits, key=lambda name: (name != "logits", not name.endswith("logits")))
    return fits[first[0]] if first else None


# --- by the model's own loss -----------------------------------------------------------------------------------------


def _by_own_loss(model: nn.Module, inputs: dict[str, Any], logits: Tensor, mask: Any) -> LabelShift | None:
    """By the loss that the model computes of labels for which the two readings differ most, this way and the other."""
    named, any_keyword = forward_parameters(model)
    if "labels" not in named and not any_keyword:
        return None
    before = logits.roll(1, -2)
    changes: list[tuple[float, float, float]] = []
    others = list(_OTHERS)
    for favoured in (logits.float() - before.float(), before.float() - logits.float()):
        labels = favoured.argmax(-1)
        if isinstance(mask, Tensor) and mask.shape == labels.shape:
            labels = labels.masked_fill(~mask.bool(), IGNORED_LABEL)
        try:
            loss = _loss_of(model(**inputs, labels=labels, **accepted_flags(model)))
        except Exception:  # a loss that wants something else
            return None
        if loss is None or not torch.isfinite(loss):
            return None
        same, after = _readings(logits, labels)
        if not same < after if not changes else not after < same:  # logits that are alike everywhere
            return None
        changes.append((float(loss), same, after))
        for number, one in enumerate((same, after)):
            if abs(float(loss) - one) < _NEAR * abs(same - after):
                return LabelShift(bool(number), "as in its own loss", by_loss=True)
        others = [n for n in others if abs(float(loss) - _reading(logits, labels, n)) < _EXACT * abs(float(loss))]
    if others:
        return LabelShift(None, f"by its own loss it is for label i {others[0]:+d}, which is neither")
    # Something is added to the loss, or it is no mean: which of the readings does it follow?
    loss, same, after = (first - second for first, second in zip(*changes, strict=True))
    for number, one in enumerate((same, after)):
        if loss * one > 0 and abs(loss) > _TOUCHES * abs(one):
            return LabelShift(bool(number), "as in its own loss, which is more than cross-entropy", by_loss=True)
    return None


def _readings(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy where position i is for label i, and where it is for label i + 1."""
    return _reading(logits, labels, 0), _reading(logits, labels, 1)


def _reading(logits: Tensor, labels: Tensor, shift: int) -> float:
    """Cross-entropy where position i is for label i + shift; not a number where there is none."""
    length = labels.shape[-1]
    ours, theirs = logits[..., max(0, -shift) : length - max(0, shift), :], labels[..., max(0, shift) :]
    theirs = theirs[..., : ours.shape[-2]]
    return F.cross_entropy(ours.flatten(0, -2).float(), theirs.flatten(), ignore_index=IGNORED_LABEL).item()


def _loss_of(output: Any) -> Tensor | None:
    """The loss in a model's output: the field of that name, or the first number of a tuple."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        values = output if isinstance(output, tuple) else ()
        loss = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel() == 1), None)
    return loss.detach().mean() if isinstance(loss, Tensor) and loss.numel() == 1 else None


# --- by the tokens that it reads -------------------------------------------------------------------------------------


def _by_tokens(
    model: nn.Module, accepted: dict[str, Any], logits: Tensor, inputs: Inputs, labels: Tensor
) -> LabelShift:
    key = "decoder_input_ids" if "decoder_input_ids" in accepted else "input_ids"
    ids = accepted.get(key)
    if not isinstance(ids, Tensor) or ids.shape != logits.shape[:-1]:
        return LabelShift(False, "since no token is read for each label")
    half = ids.shape[-1] // 2
    low, high = ids.min(), ids.max()
    low = torch.where(low == high, torch.where(low > 0, low - 1, low + 1), low)
    later = torch.where(ids == low, high, low)
    changed = torch.cat([ids[..., :half], later[..., half:]], dim=-1)
    again = logits_of(model(**{**accepted, key: changed}, **accepted_flags(model)), ids.shape)
    assert again is not None
    here, again = logits[..., :half, :], again[..., :half, :]
    if not torch.allclose(again, here, rtol=1e-3, atol=1e-4 * float(here.abs().max())):  # more than rounding
        return LabelShift(False, "since its logits look at later tokens")
    return _from_labels(inputs, labels)


def _from_labels(inputs: Inputs, labels: Tensor) -> LabelShift:
    """Labels that repeat the tokens read are for the position before."""
    ids = next((inputs[k] for k in ("decoder_input_ids", "input_ids") if isinstance(inputs.get(k), Tensor)), None)
    counted = labels != IGNORED_LABEL
    if ids is None or ids.shape != labels.shape:
        return LabelShift(False, "since no token is read for each label")
    if not counted.any():
        return LabelShift(None, "it computes no loss of its own, and no token of the batch has a label")
    if float((labels == ids)[counted].float().mean()) > _MOST:
        return LabelShift(True, "since the labels repeat the tokens that it reads")
    if float((labels[..., :-1] == ids[..., 1:])[counted[..., :-1]].float().mean()) > _MOST:
        return LabelShift(False, "since the labels are the next tokens already")
    return LabelShift(False, "since the labels are not the tokens that it reads")


# --- a few tokens of a batch -----------------------------------------------------------------------------------------


def _several(key: str, value: Any) -> Any:
    """Several tokens in place of one, all of them other ones."""
    if not isinstance(value, Tensor):
        return value
    value = value.repeat(1, _TOKENS)
    if key != "labels" and not key.endswith("input_ids"):
        return value
    others = (value - torch.arange(_TOKENS, device=value.device)).abs()
    return torch.where(value == IGNORED_LABEL, value, others)


def _probes(inputs: dict[str, Any], labels: Tensor) -> Iterator[tuple[dict[str, Any], torch.Size]]:
    """Some tokens of one row where there is nothing but tokens; two rows, whole; each with the shape of its labels."""
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    if labels.dim() == 2 and tensors and all(value.shape == labels.shape for value in tensors):
        mask = inputs.get("attention_mask")
        row, start = 0, 0
        if isinstance(mask, Tensor):
            row = int(mask.bool().sum(-1).argmax())
            start = int(mask[row].bool().int().argmax())
        span = slice(start, start + LENGTH)
        probe = {k: v[row : row + 1, span] if isinstance(v, Tensor) else v for k, v in inputs.items()}
        yield probe, labels[row : row + 1, span].shape
    probe = first_rows({**inputs, "labels": labels})
    yield {k: v for k, v in probe.items() if k != "labels"}, probe["labels"].shape

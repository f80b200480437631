"""What each model takes of a batch, and whether it can take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError, DistillationError, shown
from .decoder_inputs import decoder_inputs
from .signature import forward_parameters, inner_model, positional

LABELS = ("labels", "start_positions", "end_positions")  # what only a loss reads

Inputs = Mapping[str, Any]
DataAdaptor = Callable[[torch.device, Any], tuple[Any, Any]]


def same_inputs(device: torch.device, batch: Any) -> tuple[Any, Any]:
    """The ready-made data adaptor: both models get the batch, each the keys its `forward` accepts."""
    from accelerate.utils import send_to_device

    if not isinstance(batch, (Mapping, Sequence, Tensor)) or isinstance(batch, (str, bytes)):
        raise DataError(
            f"a batch is a {type(batch).__name__}; a dict or a tuple of tensors is needed, or a data adaptor that "
            "makes them of it"
        )
    moved = send_to_device(_as_tensors(batch), device, non_blocking=device.type == "cuda")
    return moved, moved


def _as_tensors(batch: Any) -> Any:
    """A batch whose arrays and lists of numbers are tensors; what else it holds stays as it is."""
    if isinstance(batch, Mapping) and any(isinstance(value, (np.ndarray, list)) for value in batch.values()):
        return {key: _as_tensor(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and any(isinstance(value, np.ndarray) for value in batch):
        return [_as_tensor(value) if isinstance(value, np.ndarray) else value for value in batch]
    return batch


def _as_tensor(value: Any) -> Any:
    """An array of numbers, or lists of them of one length, as a tensor; everything else as it is."""
    if isinstance(value, list) and value and _is_of_numbers(value):
        try:
            return torch.tensor(value)
        except (ValueError, TypeError, RuntimeError):  # rows of several lengths, a number too large
            return value
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value


def _is_of_numbers(values: Any) -> bool:
    """Whether the first of lists of lists of values is a number."""
    while isinstance(values, list) and values:
        values = values[0]
    return isinstance(values, (bool, int, float))


def adapt_batch(adaptor: DataAdaptor, device: torch.device, batch: Any) -> tuple[Any, Any]:
    """What a data adaptor makes of a batch: the teacher's inputs and the student's.

    Raises:
        DataError: it returned something other than a pair.
    """
    pair = adaptor(device, batch)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        size = f" of {len(pair)}" if isinstance(pair, (tuple, list)) else ""
        raise DataError(
            f"the data adaptor returned a {type(pair).__name__}{size}; (teacher_inputs, student_inputs) is needed"
        )
    return pair[0], pair[1]


def named_inputs(values: Any, model: nn.Module, who: str = "model") -> dict[str, Any]:
    """All that a batch has for one model: what its `forward` takes, and what only losses ask for.

    A tuple is named by the order of `forward`'s parameters that can be tensors. One value more than there are such
    parameters is the labels: `(x, y)` for a model that takes `x`. An encoder-decoder makes its decoder's input of the
    labels where the batch has none.
    """
    if isinstance(values, Tensor):
        values = (values,)
    if isinstance(values, Mapping):
        inputs = dict(values)
    elif isinstance(values, Sequence) and not isinstance(values, str):
        names = positional(model)
        if len(values) == len(names) + 1 and "labels" not in names and isinstance(values[-1], Tensor):
            names.append("labels")
        if len(values) > len(names):
            raise DataError(
                f"the data adaptor returned {len(values)} inputs for the {who}, whose forward takes {len(names)}"
            )
        inputs = dict(zip(names, values, strict=False))
    else:
        raise DataError(
            f"the data adaptor returned {type(values).__name__} for the {who}; a dict or a tuple is needed"
        )
    if inputs.get("labels") is not None:
        inputs["labels"] = _as_numbers(inputs["labels"], inputs)
    made = decoder_inputs(model, inputs)
    if made is not None:
        inputs["decoder_input_ids"] = made
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        tokens = (inputs.get(key) for key in ("input_ids", "decoder_input_ids"))
        if not any(isinstance(ids, Tensor) and ids.shape == labels.shape for ids in tokens):
            inputs["labels"] = labels[:, 0]  # a column of class numbers
    return inputs


def _as_numbers(labels: Any, inputs: Inputs) -> Any:
    """Labels as a tensor: whole numbers and booleans of any type as class numbers, which losses take as int64.

    Raises:
        DataError: they are texts.
    """
    if isinstance(labels, (list, tuple, np.ndarray)) and len(labels):
        if isinstance(labels[0], (str, bytes)):
            raise DataError(
                f"labels are texts, such as {labels[0]!r}: class numbers are needed. A data set makes them of texts "
                "by class_encode_column"
            )
        if isinstance(labels[0], Tensor) and all(isinstance(one, Tensor) and one.dim() == 0 for one in labels):
            labels = torch.stack(list(labels))
        if isinstance(labels[0], (Mapping, Tensor)) and not isinstance(labels, Tensor):
            return labels  # what a picture holds: only the model itself can read it
        device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), None)
        labels = _one_tensor(labels).to(device)
    if isinstance(labels, Tensor) and labels.is_complex():
        raise DataError("labels are complex numbers: class numbers or real numbers are needed")
    return labels.long() if isinstance(labels, Tensor) and not labels.is_floating_point() else labels


def _one_tensor(labels: Any) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    try:
        array = np.asarray(labels)
        return torch.as_tensor(array.astype(np.int64) if array.dtype.kind == "O" else array)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"labels {shown(labels, 80)} are not numbers, one for each row or as many in each: {error}"
        ) from error


def forward_inputs(inputs: Inputs, model: nn.Module, with_labels: bool = False) -> dict[str, Any]:
    """The named inputs that `forward` takes.

    Labels are context for losses: no model computes a loss of its own, unless an entry reads it (`with_labels`).
    """
    parameters, _ = forward_parameters(model)
    return {key: value for key, value in inputs.items() if key in parameters and (key not in LABELS or with_labels)}


def merged_inputs(inputs: Mapping[str, Inputs]) -> dict[str, Any]:
    """Every key that a batch has for several models; of one that several have, that of the first."""
    return {key: value for of_model in reversed(list(inputs.values())) for key, value in of_model.items()}


def checked_inputs(inputs: Inputs, model: nn.Module, who: str, with_labels: bool = False) -> dict[str, Any]:
    """`forward_inputs` of the first batch; a DataError where the model takes none of what the batch has."""
    accepted = forward_inputs(inputs, model, with_labels)
    if accepted:
        return accepted
    takes = forward_parameters(model)[0]
    if not takes:
        way_out = (
            f"The forward of {type(model).__name__} names no parameter, and is not wrapped around one model that "
            "does: name those that it takes"
        )
    else:
        way_out = f"It takes: {', '.join(takes)}"
        if len(positional(model)) == 1:
            way_out += f". Where {takes[0]} is a whole batch, a data adaptor has to say so: {{{takes[0]!r}: batch}}"
    raise DataError(f"the {who} takes nothing of what the batch has ({', '.join(inputs) or 'nothing'}). {way_out}")


def check_tokenizer(model: nn.Module, who: str, tokenizer: Any) -> None:
    """Raise where a tokenizer has more entries than the model's vocabulary."""
    entries = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    size = getattr(getattr(inner_model(model)[0], "config", None), "vocab_size", None)
    if size and entries > size:
        raise ConfigError(
            f"the tokenizer has {entries} entries and the {who}'s vocabulary {size}: they do not belong together"
        )


def check_token_ids(model: nn.Module, inputs: Inputs, who: str) -> None:
    """Raise where a batch has token ids that the model's embedding does not have."""
    ids, embeddings = inputs.get("input_ids"), getattr(inner_model(model)[0], "get_input_embeddings", None)
    try:
        rows = getattr(embeddings() if embeddings else None, "num_embeddings", None)
    except NotImplementedError:
        rows = None
    if not rows or not isinstance(ids, Tensor) or not ids.numel() or ids.is_floating_point():
        return
    if int(ids.max()) >= rows:
        raise ConfigError(
            f"input_ids hold id {int(ids.max())}, and the {who}'s vocabulary has {rows} entries. The text was "
            f"tokenized for another model: use the {who}'s own tokenizer, or a student with the teacher's vocabulary"
        )


def check_mask(inputs: Inputs, who: str) -> None:
    """Raise where the attention mask of a batch does not tell which of its tokens count."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.dim() != 2 or not mask.numel():
        return
    if mask.shape != ids.shape and inputs.get("past_key_values") is None:
        raise DataError(f"the {who}'s attention_mask {shape_of(mask)} does not fit input_ids {shape_of(ids)}")
    if mask.dtype != torch.bool and float(mask.min()) < 0:
        raise DataError(
            f"attention_mask is 1 for tokens that count and 0 for padding; the {who}'s holds {float(mask.min()):g}"
        )


def same_tokens(ids: Any, others: Any) -> bool:
    """Whether two models get the same token ids, or none."""
    if isinstance(ids, Tensor) and isinstance(others, Tensor):
        return ids.shape == others.shape and bool((ids == others).all())
    return ids is others


@contextmanager
def on_first_batch(who: str, inputs: Inputs) -> Iterator[None]:
    """Say which model failed and on what inputs."""
    try:
        yield
    except (DistillationError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"the {who} fails on the first batch ({shapes_of(inputs)}): {why_empty(inputs) or error_text(error)}"
        ) from error


def error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def why_empty(inputs: Any) -> str:
    """In words, that a batch has no rows, or its rows no tokens; nothing where it has."""
    ids = [inputs[key] for key in ("input_ids", "inputs_embeds") if isinstance(inputs.get(key), Tensor)]
    tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim()]
    if tensors and not any(len(tensor) for tensor in tensors):
        return "it has no rows"
    return "its rows have no tokens" if any(one.dim() > 1 and one.shape[1] == 0 for one in ids) else ""


def first_rows(inputs: Inputs, rows: int = 2) -> dict[str, Any]:
    """The first rows of every tensor and list that has the batch's length.

    All rows, where tensors have several lengths: the patches of several pictures lie one after the other, and another
    input says which are whose.
    """
    lengths = {key: len(value) for key, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 0}
    size = next(iter(lengths.values()), 0)
    if any(length not in (1, size) and inputs[key].dim() > 1 for key, length in lengths.items()):
        return dict(inputs)
    return {
        key: value[:rows] if (key in lengths or isinstance(value, list)) and len(value) == size else value
        for key, value in inputs.items()
    }


def shape_of(value: Any) -> str:
    """The shape of a tensor, or of something like one, or a shape, in words."""
    return "×".join(map(str, getattr(value, "shape", value))) or "scalar"


def shapes_of(batch: Any) -> str:
    """The keys of a batch with their shapes, in words."""
    if isinstance(batch, Mapping):
        return ", ".join(f"{key} {_shape_or_type(value)}" for key, value in batch.items())
    return ", ".join(map(_shape_or_type, batch if isinstance(batch, (list, tuple)) else [batch]))


def _shape_or_type(value: Any) -> str:
    return shape_of(value) if isinstance(value, Tensor) else type(value).__name__

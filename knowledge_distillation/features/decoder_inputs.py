"""What an encoder-decoder's decoder reads where a batch has labels alone: what the model itself makes of them.

Families shift labels each in their own way, some in a method of that purpose and some inside `forward`. Of these the
model is called with the labels, and left as soon as it hands on what it made of them: nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .preserve import resting
from .signature import forward_parameters, inner_model

_DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_input_values")
_places: WeakKeyDictionary[nn.Module, tuple[nn.Module, str] | None] = WeakKeyDictionary()  # asked for at each batch


class _Found(Exception):
    """Raised out of a forward pass with what a decoder would have read."""


def decoder_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """(batch, length) ids that the model makes of a batch's labels; None where it makes none, or the batch has some.

    Args:
        inputs: what a batch has for the model, by name.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    if any(inputs.get(key) is not None for key in _DECODER_INPUTS):
        return None
    inner = inner_model(model)[0]
    shifted: Any = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None:
        return shifted(labels=labels)
    named, _ = forward_parameters(inner)
    if not {"decoder_input_ids", "labels"} <= {*named}:
        return None
    if inner not in _places:
        _places[inner] = _place(inner)
    place = _places[inner]
    return None if place is None else _handed_on(inner, {k: v for k, v in inputs.items() if k in named}, *place)


def _place(model: Any) -> tuple[nn.Module, str] | None:
    """The module inside that takes the decoder's input, and as what: that around the encoder too, or the decoder."""
    for module in model.modules():
        if module is not model and "decoder_input_ids" in forward_parameters(module)[0]:
            return module, "decoder_input_ids"
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None
    takes_ids = decoder is not None and decoder is not model and "input_ids" in forward_parameters(decoder)[0]
    return (decoder, "input_ids") if takes_ids else None


def _handed_on(model: nn.Module, inputs: dict[str, Any], module: nn.Module, name: str) -> Tensor | None:
    """What `module` would be given as `name`: the pass ends before it begins."""

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Found({**dict(zip(forward_parameters(module)[0], args, strict=False)), **kwargs}.get(name))

    labels = inputs["labels"]
    device = next((parameter.device for parameter in model.parameters()), labels.device)
    hook = module.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        with resting(model), torch.no_grad():
            model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()})
    except _Found as found:
        (made,) = found.args
        return made.to(labels.device) if isinstance(made, Tensor) else None
    finally:
        hook.remove()
    return None

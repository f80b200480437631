"""What a few passes show of a model: how its attention comes out, and the shapes of all that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from .capture import Location
from .kinds import form_of, kind_by_rank, measured_kind
from .preserve import modules_kept, preserved, resting
from .signature import accepted_flags, inner_model
from .trace import BY_INTERFACE, EAGER, WITHOUT, Shapes, Trace, flags, key_of, traced
from .varied_inputs import another_row, other_lengths, rows_in


@dataclass(frozen=True)
class Measures:
    """The shapes of all that a model holds, in passes over a few rows, with a row more, and at another length.

    `longer` is None where the inputs have no length, or the model takes no other; `more` likewise for rows.
    """

    given: Shapes
    more: Shapes | None
    longer: Shapes | None
    by: int = 0  # how much the length was changed, and that of a decoder
    decoder_by: int = 0
    images: bool = False

    def form(self, place: Location) -> str:
        """`form_of` what stands at a place."""
        return form_of(self.shape(place), _found(self.longer, place), _found(self.more, place))

    def grown(self, place: Location) -> tuple[int, ...] | None:
        """By how much each dimension changed with the length; None where nobody knows."""
        shape, longer = _found(self.given, place), _found(self.longer, place)
        if shape is None or longer is None or len(shape) != len(longer):
            return None
        return tuple(b - a for a, b in zip(shape, longer, strict=True))

    def shape(self, place: Location) -> torch.Size:
        """
        Raises:
            ConfigError: no tensor stands there.
        """
        shape, found = _found(self.given, place), self.given.get(key_of(place))
        if shape is not None:
            return shape
        if found is not None:
            name, example = getattr(found, "__name__", found), f"{place.source}[0]"
            raise ConfigError(f"found {name} where a tensor was expected; pick one item, as in {example!r}")
        whole = (place.source, place.path)
        items = sorted({str(key[2]) for key in self.given if key[:2] == whole and key[2] is not None})
        if not any(key[:2] == whole for key in self.given):
            raise ConfigError(f"{place.path} does not run in a pass")
        raise ConfigError(f"{place.path} has no such {place.source}; it has {', '.join(items) or 'one tensor'}")

    def kind(self, place: Location, declared: str = "") -> str:
        """
        Raises:
            ConfigError: there is no tensor, or one that no mask fits.
        """
        shape = self.shape(place)
        if self.grown(place) is None:
            return declared if declared in ("attention", "heads") and len(shape) == 4 else kind_by_rank(len(shape))
        return measured_kind(shape, self.form(place), declared, self.images)


def _found(shapes: Shapes | None, place: Location) -> torch.Size | None:
    """The shape of what stands at a place, its heads unfolded; None where there is no tensor, or no pass."""
    shape = (shapes or {}).get(key_of(place))
    if not isinstance(shape, torch.Size):
        return None
    return torch.Size([shape[0] // place.heads, place.heads, *shape[1:]]) if place.heads else shape


def measure(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Trace, Measures, str, str]:
    """Trace a model over a few rows, with passes beside it that tell what it may be asked for and what changes.

    Returns the trace in the model's present mode, the measures, how attention comes out, and what is to be said of it.
    """
    wider = another_row(inputs)
    try:
        own = _own_pass(model, wider)
    except Exception:  # inputs that belong together otherwise than row by row
        wider, own = dict(inputs), _own_pass(model, inputs)
    way, said, more = WITHOUT, "", None
    if flags(model, BY_INTERFACE) != flags(model, WITHOUT):
        way, said, more = way_to_maps(model, wider, own)
    with preserved(model):
        trace = traced(model, inputs, way)
    if any(rows_in(wider[key]) != rows_in(inputs[key]) for key in wider):
        more = more or _try(model, wider, way)
    else:
        more = None
    for varied in other_lengths(inputs, _longest(model, inputs)):
        if longer := _try(model, varied.inputs, way):
            return trace, Measures(trace.shapes, more, longer, varied.by, varied.decoder_by, varied.images), way, said
    return trace, Measures(trace.shapes, more, None), way, said


def _try(model: nn.Module, inputs: Mapping[str, Any], way: str) -> Shapes | None:
    """The shapes in a pass over other inputs; None where the model does not take them, whatever it says of it."""
    try:
        with modules_kept(model), preserved(model):
            return traced(model, inputs, way, keep=False).shapes
    except Exception:
        return None


def _own_pass(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs when nothing is asked for. What the model changes of its modules at these inputs stays so."""
    with resting(model), preserved(model):
        return dict(_tensors(model(**inputs, **accepted_flags(model))))


def way_to_maps(
    model: nn.Module, inputs: Mapping[str, Any], own: Mapping[str, Tensor] | None = None
) -> tuple[str, str, Shapes | None]:
    """The way to maps that leaves other outputs as they are, why there is none, and the shapes in a pass that way."""
    equal, said = [], ""
    own = _own_pass(model, inputs) if own is None else own
    for way in (BY_INTERFACE, EAGER):
        if way == EAGER and not isinstance(inner_model(model)[0], PreTrainedModel):
            continue
        try:
            with modules_kept(model), resting(model), preserved(model):
                found = traced(model, inputs, way, keep=False)
        except Exception as error:  # a model that cannot hand out its maps
            said = said or f"{type(error).__name__}: {error}"
            continue
        if _differ(own, dict(_tensors(found.output)), inputs) and not _differ(own, _own_pass(model, inputs), inputs):
            said = "asking for attention maps would change the model's other outputs, in eager attention as well"
            continue
        equal.append((way, "", found.shapes))
        if shows_attention(found):
            return equal[-1]
    return equal[0] if equal else (WITHOUT, said, None)


def shows_attention(trace: Trace) -> bool:
    tuples = (value for key, value in trace.fields.items() if key.endswith("attentions"))
    return bool(trace.attentions) or any(
        isinstance(item, Tensor) for value in tuples if isinstance(value, (tuple, list)) for item in value
    )


def _differ(own: Mapping[str, Tensor], others: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> bool:
    """Whether an output is another than the model's own, by more than arithmetic: square root of its precision.

    What stands at padding, and what is not finite, is left out.
    """
    mask = inputs.get("attention_mask")
    for key, value in own.items():
        found = others.get(key)
        if found is None or found.shape != value.shape or value.is_meta:
            continue
        if isinstance(mask, Tensor) and mask.dim() == 2 and value.shape[:2] == mask.shape:
            value, found = value[mask.bool()], found[mask.bool()]
        finite = value.isfinite() & found.isfinite()
        expected, change = value[finite].double(), (found[finite] - value[finite]).double()
        # Models in float64 take the softmax in float32, as transformers' own code does.
        rounding = max(torch.finfo(value.dtype).eps, torch.finfo(torch.float32).eps)
        if change.norm() > rounding**0.5 * expected.norm():
            return True
    return False


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of an output by name, but for what is there only when it is asked for."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, (Mapping, tuple, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if not str(key).endswith(("attentions", "hidden_states")):
                yield from _tensors(item, f"{name}.{key}")


def _longest(model: nn.Module, inputs: Mapping[str, Any]) -> int | None:
    """The length that is safe to try: a position too many is an error on a processor, and stops a GPU for good."""
    if all(not isinstance(value, Tensor) or value.device.type in ("cpu", "meta") for value in inputs.values()):
        return None
    config = getattr(inner_model(model)[0], "config", None)
    return getattr(config, "max_position_embeddings", None) or 0

"""Output adaptors: the output of any model into named features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..config.entry import Feature
from ..errors import ConfigError, nearest
from . import attention
from .inputs import Inputs
from .measure import way_to_maps
from .signature import accepted_flags
from .trace import EAGER, WITHOUT

OutputAdaptor = Callable[[Any], Mapping[str, Mapping[str, Tensor]]]


class UnpackableOutput:
    """A model output that unpacks like the tuples of old, and answers by attribute, key and position.

    Fields that are None or an empty tuple count as absent, so BERT's output with hidden states and attentions gives
    four values.
    """

    def __init__(self, output: Mapping[str, Any]) -> None:
        self._fields = {k: v for k, v in output.items() if v is not None and not (isinstance(v, tuple) and not v)}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __getitem__(self, key: Any) -> Any:
        return self._fields[key] if isinstance(key, str) else tuple(self)[key]

    def __getattr__(self, name: str) -> Any:
        if name in ("get", "keys", "values", "items"):
            return getattr(self._fields, name)
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._fields:
            raise AttributeError(f"this model output has no {name!r}; it has: {', '.join(self._fields)}")
        return self._fields[name]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self)


def readable(output: Any) -> Any:
    """The form in which an output adaptor sees a model's output."""
    return UnpackableOutput(output) if isinstance(output, Mapping) and hasattr(output, "to_tuple") else output


def ready_made_output(output: Any) -> dict[str, dict[str, Tensor]]:
    """The ready-made names out of a Hugging Face output: its hidden states, its attentions and its fields."""
    fields = dict(output.items()) if hasattr(output, "items") else {"logits": output}
    features: dict[str, dict[str, Tensor]] = {"output": {k: v for k, v in fields.items() if isinstance(v, Tensor)}}
    for side in ("", "encoder_", "decoder_"):
        for number, tensor in enumerate(fields.get(f"{side}hidden_states") or ()):
            layer = f"{side}layer{number}" if number else f"{side}embedding_layer"
            features.setdefault(layer, {})["hidden_states" if number else "embedding"] = tensor
        for number, tensor in enumerate(fields.get(f"{side}attentions") or (), start=1):
            features.setdefault(f"{side}layer{number}", {})["attention"] = tensor
    return features


def flatten(features: Any) -> dict[Feature, Tensor]:
    """`{"layer": {"output": tensor}}` as `{Feature: tensor}`."""
    if not isinstance(features, Mapping) or not all(isinstance(outputs, Mapping) for outputs in features.values()):
        raise ConfigError('an output adaptor returns {"layer": {"output": tensor}}')
    return {Feature(layer, output): t for layer, outputs in features.items() for output, t in outputs.items()}


class AdaptedOutput:
    """`features(inputs)` runs a model whole and names its features with a user's output adaptor.

    The model's own settings are tried first; where the adaptor fails on them or lacks a wanted name, hidden states
    and then attention maps are switched on. Maps are those before dropout.

    Raises:
        ConfigError: with no setting does the adaptor give every wanted feature.
    """

    def __init__(
        self, model: nn.Module, adaptor: OutputAdaptor, wanted: Sequence[Feature], probe: Inputs, who: str
    ) -> None:
        self.model, self.adaptor, self.wanted = model, adaptor, tuple(wanted)
        self.flags: dict[str, Any] = {}
        self._restore = attention.switch_on(model)
        self._settle(probe, who)
        if self.flags.get("output_attentions"):
            self._settle_attention(probe, who)

    def __call__(self, inputs: Inputs) -> dict[Feature, Tensor]:
        features = self._all(inputs)
        return {feature: features[feature._replace(model="")] for feature in self.wanted}

    def close(self) -> None:
        self._restore()
        self._restore = lambda: None

    def _all(self, inputs: Inputs) -> dict[Feature, Tensor]:
        """Every feature that the adaptor names."""
        maps = attention.MAPS if self.flags.get("output_attentions") else ()
        with attention.observe(frozenset(maps), lambda module, tensors: None):
            output = self.model(**inputs, **self.flags)
        return flatten(self.adaptor(readable(output)))

    def _settle_attention(self, probe: Inputs, who: str) -> None:
        """See that asking for attention maps leaves the model's other outputs as they are."""
        self.close()
        way, said, _ = way_to_maps(self.model, probe)
        if way == WITHOUT:
            raise ConfigError(f"the {who}'s output adaptor reads attention maps: {said or 'the model shows none'}")
        self._restore = attention.switch_on(self.model, attention.EAGER if way == EAGER else attention.IMPLEMENTATION)

    def _settle(self, probe: Inputs, who: str) -> None:
        """Find the leanest flags of the model with which the adaptor gives what is wanted."""
        config, lean = getattr(self.model, "config", None), accepted_flags(self.model)
        own = {k: bool(getattr(config, k, False)) if k.startswith("output_") else v for k, v in lean.items()}
        hidden, maps = {"output_hidden_states": True}, {"output_attentions": True}
        records = any(name.startswith("output_") for name in lean)
        failure: Exception | None = None
        for flags in (own, own | hidden, own | hidden | maps) if records else (own,):
            self.flags = flags
            try:
                self(probe)
                return
            except Exception as error:  # the adaptor is the user's: whatever it raises is reported below
                failure = error
        missing = failure.args[0] if isinstance(failure, KeyError) and failure.args else None
        near = nearest(str(missing), map(str, self._all(probe))) if isinstance(missing, Feature) else ""
        self.close()
        if isinstance(missing, Feature):
            raise ConfigError(f"{missing}: the {who}'s output adaptor gives no such feature.{near}")
        raise ConfigError(f"the {who}'s output adaptor failed: {type(failure).__name__}: {failure}") from failure

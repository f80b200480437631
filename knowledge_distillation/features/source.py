"""One model's side of a plan: how its features are taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..config.entry import Feature
from .adaptors import AdaptedOutput
from .capture import Capture


@dataclass
class Source:
    """One model's side of a plan: how its features are taken."""

    features: Capture | AdaptedOutput
    kinds: dict[Feature, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    depth: str = ""  # how deep the model runs, in words
    shapes: dict[Feature, Tensor] = field(default_factory=dict)  # on the probe batch, without values
    canonical: dict[Feature, Feature] = field(default_factory=dict)  # the one name of a feature that has several
    heads: frozenset[Feature] = frozenset()  # logits that losses take as hidden states and weight

    def close(self) -> None:
        self.features.close()

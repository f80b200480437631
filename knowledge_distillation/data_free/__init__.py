"""Distillation without data: batches made by a generator or kept in a bank, and what they are made for."""

from .objective import Objective
from .scalers import Interval, SoftTokens
from .sources import GeneratorSource, PseudoSamples

__all__ = ["GeneratorSource", "Interval", "Objective", "PseudoSamples", "SoftTokens"]

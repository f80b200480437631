"""How far apart rounding alone may bring two results that are equal on paper.

Every processor adds in another order and fuses other products, so that two ways of computing one thing agree in other
digits on each. The errors of n roundings add up like a walk of n steps, to about sqrt(n) of them; eight times that is
allowed, which no processor reaches and no mistake stays below.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

PASS = 256  # sums and products on the way through one of the tests' models: ten sums a layer, each of 8 to 24 terms


def rounding(terms: int = PASS, dtype: torch.dtype = torch.float32) -> float:
    """The error, relative to the largest number on the way, of a result with so many sums and products behind it."""
    return 8 * math.sqrt(terms) * torch.finfo(dtype).eps


def near(expected: Any, terms: int = PASS) -> Any:
    """A number, or a list or dict of numbers, as float32 gives it: `found == near(expected)`."""
    return pytest.approx(expected, rel=rounding(terms))


def assert_near(found: Any, expected: Any, terms: int = PASS, dtype: torch.dtype | None = None) -> None:
    """Two tensors, or dicts or lists of them, are equal but for the rounding of `dtype` (theirs where it is None).

    Rounding is measured by the largest of all their values: gradients that are 0 on paper are what is left of others.
    """
    tensors = [expected] if isinstance(expected, Tensor) else [*getattr(expected, "values", expected.__iter__)()]
    largest = max(float(tensor.detach().abs().max()) for tensor in tensors if tensor.numel())
    tolerance = largest * rounding(terms, dtype or tensors[0].dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)

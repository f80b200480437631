"""A teacher that is frozen by its type, not because someone remembered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """A model that stays in eval mode, takes no gradient and keeps its caller's model as it was.

    It is a copy in structure that shares the caller's weights, so it costs no memory; where `dtype` differs the
    weights are a converted copy. Batch normalisation and buffers keep their precision.

    Args:
        model: the teacher, in whatever mode it is.
        dtype: floating-point type of the weights; None keeps theirs.
        device: None keeps theirs.
        apart_from: a model that trains; weights it shares with `model` are copied, so that they stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        apart_from: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = _frozen_copy(model, dtype, device, apart_from)
        self._parts = list(self.model.modules())  # to look through at each pass
        self._rests = False
        self.device = device or next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.hold_still()
        with torch.no_grad():
            output = self.model(*(self.cast({"": value})[""] for value in args), **self.cast(kwargs))
        return convert_to_fp32(output)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode, whatever `mode` is."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenTeacher:
        """Stays without gradient, whatever `requires_grad` is."""
        return super().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating-point type of the weights."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def rest(self) -> None:
        """Leave the device to others: the weights wait on the CPU until the next pass."""
        self.to("cpu")
        self._rests = True

    def hold_still(self) -> None:
        """Undo what anyone may have done to a part of the teacher since the last pass."""
        if self._rests:
            self.to(self.device)
            self._rests = False
        if any(module.training for module in self._parts):
            self.eval()

    def features(self, source: Callable[[Any], dict[Any, Tensor]], inputs: dict[str, Any]) -> dict[Any, Tensor]:
        """The features that `source`, bound to this teacher's model, takes from one pass: detached, no gradient."""
        self.hold_still()
        with torch.no_grad():
            return {name: tensor.detach() for name, tensor in source(self.cast(inputs)).items()}

    def cast(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Floating-point inputs in the type of the weights."""
        dtype = self.dtype
        return {
            key: value.to(dtype) if dtype and isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in inputs.items()
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def _frozen_copy(
    model: nn.Module, dtype: torch.dtype | None, device: torch.device | None, apart_from: nn.Module | None
) -> nn.Module:
    exact = {id(p) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    trained = set() if apart_from is None else {_memory(t) for t in _tensors(apart_from)}
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        change = dtype if isinstance(tensor, nn.Parameter) and id(tensor) not in exact else None
        value = tensor.detach().to(device=device, dtype=change if tensor.is_floating_point() else None)
        value = value.clone() if _memory(value) in trained else value
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _memory(tensor: Tensor) -> int:
    """Where a tensor lives: views of one memory, such as tied or cut-out weights, agree."""
    return tensor.untyped_storage().data_ptr()

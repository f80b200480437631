"""A teacher that is frozen by its type, not because someone remembered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)  # other classes are of quantized weights


class FrozenTeacher(nn.Module):
    """A model that stays in eval mode, takes no gradient and keeps its caller's model as it was.

    It is a copy in structure that shares the caller's weights, so it costs no memory; where `dtype` differs the
    weights are a converted copy. Batch normalisation and buffers keep their precision.

    Args:
        model: the teacher, in whatever mode it is.
        dtype: floating-point type of the weights; None keeps theirs.
        device: None keeps theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model = _frozen_copy(model, dtype, device)
        self._parts = list(self.model.modules())  # to look through at each pass
        self._rests, self._stays = False, lies_as_it_is(model)
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
        if not self._stays:
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


def _frozen_copy(model: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    as_it_lies = lies_as_it_is(model)
    exact = {id(p) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    memo: dict[int, Any] = {}
    for hook in _offloading_hooks(model):  # of the weights that wait elsewhere there is one copy
        memo[id(hook.weights_map)] = hook.weights_map
    for tensor in _tensors(model):
        if type(tensor) not in _PLAIN:
            memo[id(tensor)] = nn.Parameter(tensor.detach(), False) if tensor.requires_grad else tensor
            continue
        change = dtype if isinstance(tensor, nn.Parameter) and id(tensor) not in exact else None
        value = tensor.detach()
        if not as_it_lies:
            value = value.to(device=device, dtype=change if tensor.is_floating_point() else None)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo)


def _offloading_hooks(model: nn.Module) -> list[Any]:
    """Accelerate's, each of which brings the weights of a module when it is called."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    hooks += [one for hook in hooks for one in getattr(hook, "hooks", ())]
    return [hook for hook in hooks if getattr(hook, "weights_map", None) is not None]


def stored_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything a model computes with, by name, wherever it lies: tensors, and what quantized modules pack."""
    waiting: dict[str, Any] = {}
    for path, module in model.named_modules():
        for hook in _offloading_hooks(module) if hasattr(module, "_hf_hook") else ():
            waiting |= {f"{path}.{name}".strip("."): hook for name, _ in module.named_parameters(recurse=False)}
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        key = name.rpartition(".")[2]
        yield name, waiting[name].weights_map[key] if tensor.is_meta and name in waiting else tensor
    packed = ((name, value) for name, value in model.state_dict().items() if not isinstance(value, Tensor))
    yield from sorted(packed)


def lies_as_it_is(model: nn.Module) -> bool:
    """Whether a model is used where and in the types it is: its weights are quantized, or wait elsewhere."""
    if getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None):
        return True
    if any(tensor.is_meta or type(tensor) not in _PLAIN for tensor in _tensors(model)):
        return True
    return not all(isinstance(value, Tensor) for value in model.state_dict().values())


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def memory_of(tensor: Tensor) -> int:
    """Where a tensor lives: views of one memory, such as tied or cut-out weights, agree."""
    if tensor.is_meta or type(tensor) not in _PLAIN or not tensor.numel():
        return id(tensor)
    return tensor.untyped_storage().data_ptr()

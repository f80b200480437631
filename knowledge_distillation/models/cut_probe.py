"""Whether a student's layer gives what the teacher's layer gives, both run on the same input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..features.preserve import preserved, resting
from .cut_settings import Cuts

_HALF = 0.05  # of the largest value: how far half precision may go, and single
_SINGLE = 1e-3
_SEED = 5  # of layers that draw random numbers in evaluation too
Key = int | str


@dataclass
class _Call:
    """What one layer was given, tensor by tensor, and what it gave."""

    given: dict[Key, Tensor] = field(default_factory=dict)
    gave: list[Tensor] = field(default_factory=list)


Calls = dict[str, dict[int, _Call]]  # path -> number of a layer -> its call


@dataclass(frozen=True)
class Difference:
    """A layer that gives other values than the one it was made of, by how much of its largest value."""

    path: str
    number: int
    place: int
    share: float

    def __str__(self) -> str:
        where = f" of {self.path}" if self.path else ""
        what = f"layer {self.number}{where} gives other values as layer {self.place}"
        return f"{what} (by {self.share:.2g} of the largest)"


@dataclass(frozen=True)
class Probe:
    """`unseen` are lists of layers that no input reached."""

    differences: list[Difference]
    unseen: list[str]


def teacher_calls(teacher: nn.Module, cuts: Cuts, inputs: Mapping[str, Any]) -> Calls:
    """What every layer of the stacks that are cut is given, and gives.

    Raises:
        Exception: what the model says of these inputs.
    """
    paths = [path for stack in cuts for path in stack.paths]
    return _calls(teacher, {path: len(list(teacher.get_submodule(path).children())) for path in paths}, inputs)


def probe_layers(
    teacher: nn.Module, student: nn.Module, cuts: Cuts, inputs: Mapping[str, Any], theirs: Calls
) -> Probe:
    """Run the student over `inputs`; each of its layers is given what its layer of the teacher was given.

    Only what all layers of the teacher are given alike, and the hidden states, are put in the place of the student's
    own: masks and positions that differ by layer are those the student makes, so a pattern that was cut wrongly shows.

    Raises:
        Exception: what the student says of these inputs.
    """
    found: list[Difference] = []
    for stack, numbers in cuts.items():
        if not stack.paths and (turned := _by_turns(teacher, student, numbers, inputs)):
            found.append(turned)
    wanted = {path: numbers for stack, numbers in cuts.items() for path in stack.paths}
    alike = {path: _alike(theirs[path]) for path in wanted}

    def given(path: str, place: int) -> dict[Key, Tensor]:
        call = theirs[path].get(wanted[path][place - 1])
        keys = [*alike[path], *(list(call.given)[:1] if call else [])]
        return {key: call.given[key] for key in keys if key in call.given} if call else {}

    ours = _calls(student, {path: len(numbers) for path, numbers in wanted.items()}, inputs, given)
    loose = any(p.dtype in (torch.float16, torch.bfloat16) for p in teacher.parameters())
    seen = set()
    for path, numbers in wanted.items():
        for place, number in enumerate(numbers, start=1):
            if number in theirs[path] and place in ours[path]:
                seen.add(path)
                share = _share(theirs[path][number].gave, ours[path][place].gave)
                if share > (_HALF if loose else _SINGLE):
                    found.append(Difference(path, number, place, share))
    for path in [path for path in wanted if path not in seen]:
        for place, number in enumerate(wanted[path], start=1):
            alone = _alone(teacher.get_submodule(f"{path}.{number - 1}"), student.get_submodule(f"{path}.{place - 1}"))
            if alone is not None:
                seen.add(path)
                if alone > (_HALF if loose else _SINGLE):
                    found.append(Difference(path, number, place, alone))
    return Probe(found, [path for path in wanted if path not in seen])


def _alone(layer: nn.Module, own: nn.Module) -> float | None:
    """How far two layers are apart on noise, as no input of the model reaches them; None where they need more."""
    width = next((m.in_features for m in layer.modules() if isinstance(m, nn.Linear)), None)
    missing = [
        parameter.name
        for parameter in list(inspect.signature(layer.forward).parameters.values())[1:]
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if width is None:
        return None
    outputs = []
    for module in (layer, own):
        parameter = next(module.parameters())
        noise = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(_SEED))
        try:
            with resting(module), preserved(module):
                output = module(noise.to(parameter.device, parameter.dtype), **dict.fromkeys(missing))
        except Exception:
            return None
        outputs.append([output if isinstance(output, Tensor) else output[0]])
    return _share(*([tensor.cpu() for tensor in given] for given in outputs))


def _by_turns(
    teacher: nn.Module, student: nn.Module, numbers: Sequence[int], inputs: Mapping[str, Any]
) -> Difference | None:
    """Of layers that are one module: whether the student's hidden states are the teacher's first ones."""
    theirs, ours = (run(model, inputs, output_hidden_states=True).hidden_states for model in (teacher, student))
    share = max(_share([one.cpu()], [other.cpu()]) for one, other in zip(theirs, ours, strict=False))
    return Difference("", numbers[-1], len(numbers), share) if share > _SINGLE else None


def _calls(
    model: nn.Module,
    depths: Mapping[str, int],
    inputs: Mapping[str, Any],
    replace: Callable[[str, int], dict[Key, Tensor]] | None = None,
) -> Calls:
    """The first call of each layer in one pass."""
    calls: Calls = {path: {} for path in depths}

    def watch(path: str, number: int, layer: nn.Module) -> Iterator[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            torch.manual_seed(_SEED)
            new: dict[Key, Any] = dict(enumerate(args))
            new.update(kwargs)
            if replace is not None:
                own = {key: tensor.to(new[key]) for key, tensor in replace(path, number).items() if key in new}
                new |= {key: tensor.clone() for key, tensor in own.items()}
            if number not in calls[path]:
                tensors = {k: v.detach().cpu().clone() for k, v in new.items() if _is_float(v)}
                calls[path][number] = _Call(dict(sorted(tensors.items(), key=lambda item: item[0] != "hidden_states")))
            return tuple(new[n] for n in range(len(args))), {key: new[key] for key in kwargs}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = calls[path].get(number)
            if call is not None and not call.gave:
                items = output if isinstance(output, (tuple, list)) else [output]
                call.gave = [item.detach().cpu().clone() for item in items if _is_float(item)]

        yield layer.register_forward_pre_hook(before, with_kwargs=True)
        yield layer.register_forward_hook(after)

    with ExitStack() as stack:
        for path, depth in depths.items():
            for number in range(1, depth + 1):
                layer = model.get_submodule(f"{path}.{number - 1}")
                for handle in watch(path, number, layer):
                    stack.callback(handle.remove)
        run(model, inputs)
    return calls


def run(model: nn.Module, inputs: Mapping[str, Any], gradient: bool = False, **flags: Any) -> Any:
    """One pass in eval mode without a cache; the model stays as it was."""
    with _without_cache(model), resting(model), preserved(model), torch.set_grad_enabled(gradient):
        torch.manual_seed(_SEED)
        return model(**moved(inputs, model), **flags)


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A cache is indexed by layers, and would be filled by layers of both."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    own = {id(config): config for config in configs if hasattr(config, "use_cache")}
    kept = [(config, config.use_cache) for config in own.values()]
    try:
        for config, _ in kept:
            config.use_cache = False
        yield
    finally:
        for config, value in kept:
            config.use_cache = value


def moved(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Inputs where the model lies, in its precision."""
    device = next(model.parameters()).device
    dtype = getattr(model, "dtype", torch.float32)
    return {
        key: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for key, value in inputs.items()
    }


def _alike(calls: Mapping[int, _Call]) -> list[Key]:
    """What every layer was given alike: the encoder's output, and masks where all layers have the same."""
    first, *others = calls.values() or [_Call()]
    return [
        key
        for key, tensor in first.given.items()
        if others and all(key in other.given and _equal(tensor, other.given[key]) for other in others)
    ]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _share(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, of the largest value."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    shares = [0.0]
    for a, b in zip(one, other, strict=True):
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf")
        if finite.any():
            scale = float(a[finite].abs().max())
            shares.append(float((a[finite] - b[finite]).abs().max()) / max(scale, 1e-12))
    return max(shares)

"""Settings under which every chosen layer is built in the student as it is in the teacher, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError, listed
from .cut_layers import Placing, around, build_of, builds_of, fits, placings, sliced
from .cut_settings import Cuts, changed, changes, counts, cut_settings
from .cut_stacks import settings_of, skeleton

_TRIED = 200  # so many values of settings are tried before a cut is refused


@dataclass
class Fit:
    """Settings of a student, the model they build (without weights), and what is wrong with it.

    `shared` are weights the teacher's first layer holds for all layers, as T5's position bias: they stay first.
    """

    settings: dict[str, Any]
    model: PreTrainedModel
    placings: list[Placing]
    around: list[str]
    shared: list[str]

    @property
    def wrong(self) -> int:
        return len(self.around) + sum(placing.wrong for placing in self.placings)


def fitted(teacher: PreTrainedModel, cuts: Cuts) -> Fit:
    """The settings of the cut student, and the model they build.

    Raises:
        ConfigError: no settings build every chosen layer where it is asked for.
    """
    first = cut_settings(teacher, cuts)
    named = changes(first, cuts)
    best, problem = None, ""
    for chosen in (named, [], *([c for c in named if c is not left_out] for left_out in named)):
        fit, problem = _fit(teacher, cuts, changed(first, chosen), problem)
        best = _better(best, fit)
        if best is not None and not best.wrong:
            return best
    best = _with_other_counts(teacher, cuts, best, changed(first, named))
    if best is None:
        raise ConfigError(f"{_asked(teacher, cuts)}: no such model can be built: {problem}")
    if best.wrong:
        raise ConfigError(f"{_asked(teacher, cuts)}: {_explained(teacher, cuts, best)}")
    return best


def sources(teacher: nn.Module, student: nn.Module, cuts: Cuts) -> dict[str, Tensor]:
    """The teacher's weights under the student's names: the layers' numbers change, all else stays."""
    state, own = teacher.state_dict(), student.state_dict()
    numbers = {f"{path}.": chosen for stack, chosen in cuts.items() for path in stack.paths}
    weights = {}
    for name, tensor in own.items():
        source = state.get(_source(name, numbers, state))
        if source is not None and source.shape != tensor.shape:
            source = sliced(source, tensor.shape, cuts)
        if source is not None:
            weights[name] = source
    return weights


def _source(name: str, numbers: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> str:
    path = max((path for path in numbers if name.startswith(path)), key=len, default=None)
    if path is None:
        return name
    place, _, rest = name.removeprefix(path).partition(".")
    source = f"{path}{numbers[path][int(place)] - 1}.{rest}"
    return source if source in state or place != "0" else name


def _better(one: Fit | None, other: Fit | None) -> Fit | None:
    return other if one is None or (other is not None and other.wrong < one.wrong) else one


def _with_other_counts(teacher: PreTrainedModel, cuts: Cuts, best: Fit | None, settings: dict[str, Any]) -> Fit | None:
    """The best that other values of settings such as DeepSeek's `first_k_dense_replace` build, from these settings on
    where nothing was built as yet."""
    tried, better = 0, True
    while better and (best is None or best.wrong):
        better = False
        for chosen in counts(best.settings if best else settings, cuts):
            tried += 1
            fit, _ = _fit(teacher, cuts, changed(best.settings if best else settings, chosen), "")
            if fit is not None and (best is None or fit.wrong < best.wrong):
                best, better = fit, True
                break
            if tried > _TRIED:
                return best
    return best


def _fit(teacher: PreTrainedModel, cuts: Cuts, settings: dict[str, Any], problem: str) -> tuple[Fit | None, str]:
    try:
        model = skeleton(teacher, settings)
        found = _as_built(teacher, model, cuts)
    except Exception as error:
        return None, problem or f"{type(error).__name__}: {error}"
    sizes, missing = around(teacher, model, cuts)
    state = model.state_dict()
    for name, shape in sizes.items():
        part = sliced(torch.empty(shape, device="meta"), state[name].shape, cuts)
        if part is None:
            missing.append(f"{name} of {tuple(shape)} would be of {tuple(state[name].shape)}")
    return Fit(settings, model, found, missing, _shared(teacher, found)), problem


def _as_built(teacher: PreTrainedModel, model: nn.Module, cuts: Cuts) -> list[Placing]:
    """What is wrong with each placing, without what a run has changed in the teacher (BigBird's attention_type)."""
    found = list(placings(teacher, model, cuts))
    if any(placing.different for placing in found):
        anew = placings(skeleton(teacher, settings_of(teacher.config)), model, cuts)
        for placing, fresh in zip(found, anew, strict=True):
            placing.different = [text for text in placing.different if fresh.different]
    return found


def _shared(teacher: nn.Module, found: Sequence[Placing]) -> list[str]:
    """Take what the first layer holds for all of them off the lists of what is wrong; the probe says if it does."""
    names = []
    for placing in found:
        path = placing.path
        if placing.place != 1 or placing.lost or placing.resized or not placing.borrowed:
            continue
        if set(placing.borrowed) <= build_of(teacher.get_submodule(f"{path}.0")).weights.keys():
            names += [f"{path}.0.{name}" for name in placing.borrowed]
            placing.borrowed, placing.different = [], []
    for placing in found:
        if placing.number == 1 and all(f"{placing.path}.0.{name}" in names for name in placing.lost):
            if placing.lost:
                placing.lost, placing.different = [], []
    return names


# --- what an error says --------------------------------------------------------------------------------------------


def _asked(teacher: nn.Module, cuts: Cuts) -> str:
    chosen = {stack.name: list(numbers) for stack, numbers in cuts.items()}
    return f"layers {chosen if any(chosen) else next(iter(chosen.values()))} of {type(teacher).__name__}"


def _explained(teacher: nn.Module, cuts: Cuts, fit: Fit) -> str:
    lines = [text for placing in fit.placings if placing.wrong for text in _why(placing, len(cuts) > 1)]
    if fit.around:
        lines.append("around the layers " + listed(fit.around))
    return "; ".join(dict.fromkeys([*lines, *_what_would_do(teacher, cuts, fit)]))


def _why(placing: Placing, many: bool) -> Iterator[str]:
    where = f" of {placing.path}" if many else ""
    start = f"layer {placing.number}{where} as layer {placing.place} "
    if placing.lost:
        yield f"{start}would lose {listed(placing.lost)}"
    if placing.borrowed:
        yield f"{start}lacks {listed(placing.borrowed)}"
    if not placing.lost and not placing.borrowed and (different := placing.resized + placing.different):
        yield f"{start}would be built differently: {listed(different)}"


def _what_would_do(teacher: nn.Module, cuts: Cuts, fit: Fit) -> Iterator[str]:
    """For each place that is wrongly taken, the layers that could be there."""
    numbers = {path: chosen for stack, chosen in cuts.items() for path in stack.paths}
    for placing in fit.placings:
        if placing.wrong:
            own = builds_of(fit.model, placing.path)[placing.place - 1]
            fitting = fits(builds_of(teacher, placing.path), own, placing, numbers[placing.path])
            could = f"can be {', '.join(map(str, fitting))}" if fitting else "can be none of them"
            yield f"layer {placing.place} of such a student {could}"

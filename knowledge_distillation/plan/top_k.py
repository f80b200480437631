"""What entries can be said from the teacher's largest logits, with `teacher_cache_top_k`, and at which temperature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config.entry import Entry, Feature
from ..losses.table import LOSSES
from ..objective.loss import Loss, loss_of
from ..teachers.cache_format import is_cut
from .plan import Plan


def temperatures_of_top_k(
    plan: Plan, entries: Iterable[Entry], top_k: int | None
) -> tuple[dict[Feature, float], list[tuple[int, str]]]:
    """The temperature at which each cut feature is read, and the entries that cannot be said from it.

    The logits that are left out are kept as what they have together, which is another number at each temperature.
    """
    temperatures: dict[Feature, float] = {}
    by_name: dict[Feature, float] = {}
    problems = []
    for entry in entries:
        for feature, kind, name in _cut(plan, entry, top_k):
            loss = loss_of(entry, kind)
            temperature, problem = _temperature(loss), _problem(loss, top_k)
            if problem is None and by_name.setdefault(name, temperature) != temperature:
                problem = (
                    f"{feature} is read at temperature {temperature:g}, and by another entry at {by_name[name]:g}; "
                    f"teacher_cache_top_k: {top_k} keeps what the other classes have together at one temperature: "
                    "give both entries the same, or leave teacher_cache_top_k out"
                )
            if problem is None:
                temperatures[feature] = temperature
            else:
                problems.append((entry.index, problem))
                break
    return temperatures, problems


def _cut(plan: Plan, entry: Entry, top_k: int | None) -> Iterable[tuple[Feature, str, Feature]]:
    """The features of an entry of which the cache keeps some classes: with their kinds, and their one name."""
    for feature in entry.teacher:
        source = plan.teachers.get(feature.model)
        if source is None or top_k is None or not is_cut(feature, source.kinds[feature], top_k):
            continue
        if top_k < source.shapes[feature].shape[-1]:
            yield feature, source.kinds[feature], source.canonical.get(feature, feature)


def _temperature(loss: Loss) -> float:
    parameter = loss.signature.parameters.get("temperature")
    default: Any = 1.0 if parameter is None or parameter.default is parameter.empty else parameter.default
    course = loss.entry.schedule.get("temperature")
    value = loss.entry.args.get("temperature", default) if course is None else course.lowest
    return float(value) if isinstance(value, (int, float)) else 1.0


def _problem(loss: Loss, top_k: int | None) -> str | None:
    """Why a loss cannot be said from the largest logits of its teacher, or None."""
    entry, spec = loss.entry, loss.spec
    instead = f"leave teacher_cache_top_k out (it is {top_k})"
    if entry.teacher_projection.type not in ("none", "auto"):
        return f"teacher_projection of logits needs all of them, and teacher_cache_top_k keeps the {top_k} largest"
    course = entry.schedule.get("temperature")
    if course is not None and course.lowest != course.highest or entry.args.get("sample_temperature"):
        return (
            f"loss {loss.name} has a temperature that changes, and teacher_cache_top_k keeps what the other classes "
            f"have together at one temperature: {instead}"
        )
    if not loss.by_name:
        return None
    if spec.top_k is None:
        fitting = ", ".join(sorted({one.name for one in LOSSES if one.top_k is not None}))
        return (
            f"loss {loss.name} needs every logit of the teacher, and teacher_cache_top_k keeps the {top_k} largest: "
            f"{instead}, or take one of {fitting}"
        )
    for name, value in spec.top_k.items():
        if value in _values(loss, name):
            return (
                f"loss {loss.name} with {name}={value} needs every logit of the teacher, and teacher_cache_top_k "
                f"keeps the {top_k} largest: {instead}, or take another {name}"
            )
    return None


def _values(loss: Loss, name: str) -> tuple[Any, ...]:
    """What an argument is in a run, at the extremes of its schedule where it has one."""
    course = loss.entry.schedule.get(name)
    if course is not None:
        return course.lowest, course.highest
    return (loss.entry.args.get(name, loss.signature.parameters[name].default),)

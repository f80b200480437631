"""What an entry's loss is on one kind of feature: settled once, and asked by everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from ..config.entry import Entry
from ..errors import ConfigError, nearest, shown
from ..losses.arguments import FILLED, MASKS, Signature, check_arguments, signature_of
from ..losses.labels import checked_weights
from ..losses.table import LossSpec, get_loss, spec_behind, spec_of
from .fused.forms import BEYOND_ONE_ITEM, FUSED, SUMMED

_OF_THE_USER = LossSpec("", {})


@dataclass(frozen=True)
class Loss:
    """An entry's loss on one kind of feature.

    Args:
        entry: whose loss it is.
        function: a function, a module, or the class of a module until that is built.
        spec: its line in the table of names, in whatever way the function was given; an empty one for a user's code.
        signature: what it takes beyond its two sides.
        fused: the form that works from what a feature is computed from; None where there is none, or the entry's
            arguments or projections need the feature itself.
        summed: the form that sums over whole tensors in one step; None where there is none.
    """

    entry: Entry
    function: Callable[..., Any]
    spec: LossSpec
    signature: Signature
    fused: Callable[..., Any] | None
    summed: Callable[..., Any] | None

    @cached_property
    def name(self) -> str:
        return self.entry.loss_name

    @cached_property
    def by_name(self) -> bool:
        """Whether the entry gives it by name: a callable sees to its shapes and arguments itself."""
        return isinstance(self.entry.loss, str)

    @cached_property
    def several(self) -> bool:
        """Whether each side is a tuple."""
        return self.entry.many or self.spec.several

    @cached_property
    def own_shapes(self) -> bool:
        return not self.by_name or self.spec.own_shapes

    @cached_property
    def needs_labels(self) -> bool:
        labels = self.signature.call.get("labels")
        return labels is not None and labels.default is labels.empty

    @cached_property
    def labelled(self) -> bool:
        """Whether items labelled -100 do not count."""
        return self.entry.loss != "own_loss" and (self.entry.hard or self.needs_labels)

    @cached_property
    def compares_labels(self) -> bool:
        """Whether the labels have to fit the student's feature."""
        if self.entry.loss == "own_loss":  # the model looked at them itself
            return False
        return self.entry.hard or bool(self.entry.args.get("probability_shift")) or self.needs_labels and self.by_name

    @cached_property
    def compares_classes(self) -> bool:
        """Whether labels have to be class numbers of the student's feature."""
        return self.by_name and self.compares_labels and (self.name == "cross_entropy" or not self.entry.hard)

    @cached_property
    def call_args(self) -> dict[str, Any]:
        """The entry's arguments of each call, without those of the constructor."""
        return {name: value for name, value in self.entry.args.items() if name not in self.signature.constructor}

    @cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """The weights by which an average over labels is divided, where the entry gives some."""
        weights = self.entry.args.get("class_weights") if self.spec.hard else None
        return None if weights is None or self.entry.reduction == "sum" else checked_weights(weights)

    def context_keys(self, context: Mapping[str, Any]) -> tuple[str, ...]:
        """The keywords that each batch fills."""
        return tuple(k for k in self.signature.call if k not in self.entry.args and (k in MASKS or k in context))

    def check(self, context: Iterable[str]) -> None:
        """Raise a ConfigError where the loss cannot be called as the entry says, with these keywords of the batch."""
        entry = self.entry
        if entry.many and self.by_name and not self.spec.several:
            raise ConfigError(f"loss {self.name} compares one feature with one: it takes no list of features")
        scores = next((str(f) for f in entry.student + entry.teacher if f.output.endswith("attention_scores")), None)
        if self.spec.probabilities and scores:
            near = scores.removesuffix("_scores")
            raise ConfigError(f"loss {self.name} compares probabilities, and {scores} are scores. Nearest: {near}")
        problem = self.argument_problem(context) or self._schedule_problem()
        if problem:
            raise ConfigError(problem)

    def argument_problem(self, context: Iterable[str]) -> str | None:
        """What is wrong with the entry's arguments, or None."""
        temperature, course = self.entry.args.get("temperature", 1), self.entry.schedule.get("temperature")
        if self.by_name and not (isinstance(temperature, (int, float)) and temperature > 0):
            return f"loss {self.name}: temperature is above 0; found {shown(temperature)}"
        if self.by_name and course is not None and course.lowest <= 0:
            return f"loss {self.name}: temperature is above 0; its schedule goes down to {course.lowest:g}"
        parameters = self.signature.parameters
        if self.entry.args.get("class_weights") is not None and self.entry.reduction not in ("mean", "sum"):
            return f"loss {self.name}: class_weights go with reduction mean or sum; found {self.entry.reduction}"
        for name, value in self.entry.args.items() if self.by_name else ():
            if name in parameters and isinstance(parameters[name].default, bool) and not isinstance(value, bool):
                return f"loss {self.name}: {name} is true or false; found {shown(value)}"
        return check_arguments(self.name, self.signature, self.entry.args, [*MASKS, *context])

    def _schedule_problem(self) -> str | None:
        defaults = {name: p.default for name, p in self.signature.call.items() if name not in FILLED}
        allowed = ["weight", *(n for n, value in defaults.items() if isinstance(value, float) or not self.by_name)]
        unknown = next((name for name in self.entry.schedule if name not in allowed), None)
        if unknown is None or self.signature.any_keyword:
            return None
        if unknown in defaults:
            return (
                f"schedule of {unknown}: a schedule gives real numbers, and loss {self.name} takes "
                f"{defaults[unknown]!r} there. It can schedule: {', '.join(allowed)}"
            )
        return (
            f"schedule of {unknown}: loss {self.name} takes no such argument at each step.{nearest(unknown, allowed)}"
        )


def loss_of(entry: Entry, kind: str | None) -> Loss:
    """The loss of an entry on a kind of feature; None before the kind is known, for what can be said already.

    Raises:
        ConfigError: its name is unknown, or it does not apply to the kind.
    """
    if isinstance(entry.loss, str):
        function, spec = get_loss(entry.loss, kind, entry.hard), spec_of(entry.loss, entry.hard)
    else:
        function = entry.loss
        spec = spec_behind(type(function) if isinstance(function, nn.Module) else function) or _OF_THE_USER
    projected = {entry.projection.type, entry.teacher_projection.type} - {"auto", "none"}
    whole = (
        not isinstance(entry.loss, str) or entry.many or projected or BEYOND_ONE_ITEM & {*entry.args, *entry.schedule}
    )
    summed = SUMMED.get(function) if kind in ("tokens", "heads", "attention") else None
    return Loss(entry, function, spec, signature_of(function), None if whole else FUSED.get(function), summed)


def takes_parts(entry: Entry, kind: str) -> bool:
    """Whether an entry can work from what features of a kind are computed from."""
    try:
        return loss_of(entry, kind).fused is not None
    except ConfigError:
        return False


def keywords_of(entry: Entry) -> set[str]:
    """The keywords that each call of an entry's loss may take; none where its name is unknown."""
    try:
        return set(loss_of(entry, None).signature.call)
    except ConfigError:
        return set()


def reads_labels(entry: Entry) -> bool:
    """Whether it may matter to an entry which label each position of its feature is for."""
    if entry.loss == "own_loss":  # the model sees to it itself
        return False
    of_logits = any(feature.output == "logits" for feature in entry.student)
    return entry.hard or of_logits or entry.mask is not None or bool({"labels"} & {*keywords_of(entry), *entry.args})

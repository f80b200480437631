"""The frozen form of a `distill_config`: features, projections, entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..errors import ConfigError, raise_all
from .schedules import Schedule

HARD, SOFT = "hard_distill", "ts_distill"
PROJECTIONS = ("auto", "linear", "mlp", "conv1x1", "conv1x1_bn", "resize", "heads", "exit", "none")
REDUCTIONS = ("mean", "sequence_mean", "batch_mean", "sum")
SELF, PEER = "self", "peer"  # teachers that train: the student itself, and the other students of a cohort


class Feature(NamedTuple):
    """The name of one tensor: `bert_layer4.hidden_states` is output `hidden_states` of layer `bert_layer4`.

    `model` says whose, where there are several: a teacher's name, `self` or a peer's name.
    """

    layer: str
    output: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.model}{':' if self.model else ''}{self.layer}.{self.output}"


@dataclass(frozen=True)
class Projection:
    """A learnable map of one side of an entry.

    Args:
        type: one of `PROJECTIONS`; `auto` adds a linear map (on maps a 1x1 convolution) where widths differ.
        shared: name under which several entries use one projection; empty for a projection of the entry's own.
        width: of what comes out; None for the width of the other side.
        hidden_size: of the inner layer of `mlp` and `exit`; None for the width of what comes out, for an exit no
            inner layer.
        trainable: False keeps it as it was loaded.
    """

    type: str = "auto"
    shared: str = ""
    width: int | None = None
    hidden_size: int | None = None
    trainable: bool = True


@dataclass(frozen=True)
class Entry:
    """One item of `distill_config`, braces expanded: what teaches what, by which loss, with what weight.

    `student` and `teacher` hold one feature each, or several where the item gave a list (`many`); `teacher` is empty
    for a hard entry, whose target is the labels. `index` numbers the item as written, from 0. `schedule` maps
    `weight` or an argument of the loss to its course; `stage` names the stages the entry belongs to, empty for all;
    `learning_rate` is that of the entry's projections and of its loss's own parameters, None for the run's.
    """

    index: int
    student: tuple[Feature, ...]
    teacher: tuple[Feature, ...] = ()
    loss: str | Callable[..., Any] = "mse"
    args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    name: str = ""
    projection: Projection = Projection()
    many: bool = False
    reduction: str = "mean"
    schedule: Mapping[str, Schedule] = field(default_factory=dict)
    stage: tuple[str, ...] = ()
    teacher_projection: Projection = Projection("none")
    projection_checkpoint: str | None = None
    learning_rate: float | None = None

    @property
    def hard(self) -> bool:
        return not self.teacher

    @property
    def loss_name(self) -> str:
        return self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", type(self.loss).__name__)


@dataclass(frozen=True)
class DistillConfig:
    """Frozen entries, and the problems found so far as `(item, text)`."""

    entries: tuple[Entry, ...]
    problems: tuple[tuple[int, str], ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether an entry learns from a teacher that is neither the student itself nor a peer."""
        return any(feature.model not in (SELF, PEER) for entry in self.entries for feature in entry.teacher)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in the order in which the entries name them."""
        return tuple(dict.fromkeys(stage for entry in self.entries for stage in entry.stage))

    def sound_entries(self, entries: Iterable[Entry] | None = None) -> list[Entry]:
        """The entries, all or of some, of which no problem is known yet."""
        flawed = {index for index, _ in self.problems}
        return [entry for entry in (self.entries if entries is None else entries) if entry.index not in flawed]

    def among(self, peers: Sequence[str]) -> DistillConfig:
        """The config of a cohort: every student has all entries, and learns from each of the others what `peer` says.

        Where there are several others, the entry's weight is shared out among them.
        Source: Zhang et al., Deep Mutual Learning, 2018, eq. 7.
        """
        cohort = ["", *peers]
        entries = []
        for entry in self.entries:
            taught_by = {feature.model for feature in entry.teacher}
            for student in cohort:
                others = [other for other in cohort if other != student] if PEER in taught_by else [""]
                for other in others:
                    names = {SELF: student or SELF, PEER: other or SELF}
                    pair = (student or SELF, other or SELF) if len(others) > 1 else filter(None, [student])
                    suffix = "".join(f"@{name}" for name in pair)
                    mine: dict[str, Any] = {
                        "student": tuple(feature._replace(model=student) for feature in entry.student),
                        "teacher": tuple(f._replace(model=names.get(f.model, f.model)) for f in entry.teacher),
                        "weight": entry.weight / len(others),
                        "schedule": {
                            name: course.scaled(1 / len(others)) if name == "weight" else course
                            for name, course in entry.schedule.items()
                        },
                        "name": entry.name + suffix,
                        "projection": _of_student(entry.projection, student),
                        "teacher_projection": _of_student(entry.teacher_projection, student),
                    }
                    entries.append(replace(entry, **mine))
        return replace(self, entries=tuple(entries))

    def check(self) -> DistillConfig:
        """Return self, or raise a ConfigError with every problem."""
        raise_all(ConfigError, "distill_config", self.problems)
        return self


def _of_student(projection: Projection, student: str) -> Projection:
    """A projection that entries share is one for each student."""
    shared = projection.shared
    return replace(projection, shared=f"{shared}@{student}") if shared and student else projection

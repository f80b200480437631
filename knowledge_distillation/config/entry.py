"""The frozen form of a `distill_config`: features, projections, entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from ..errors import ConfigError, raise_all, shown
from .pooling import PoolingMode
from .schedules import Schedule, parse_schedule
from .validation import Count, Flag, NotNegative, PathText, Positive, Text, read, unknown_keys

HARD, SOFT = "hard_distill", "ts_distill"
ProjectionType = Literal["auto", "linear", "mlp", "conv1x1", "conv1x1_bn", "resize", "pca", "heads", "exit", "none"]
Reduction = Literal["mean", "sequence_mean", "batch_mean", "sum"]
Vocabulary = Literal["same", "shared"]
PROJECTIONS, REDUCTIONS = get_args(ProjectionType), get_args(Reduction)
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


def _check_name(name: str) -> str:
    # "/" would nest names in trackers' tables; "." and "" are not names of torch modules.
    if "." in name or "/" in name or name == "loss":
        raise ValueError
    return name


_NAME = "a text without '.' and '/', and not 'loss'"
Name = Annotated[Text, AfterValidator(_check_name), Field(description=_NAME)]


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
        rows: of the training data, those on which `pca` is fitted.
    """

    type: ProjectionType = "auto"
    shared: Name = ""
    width: Count | None = None
    hidden_size: Count | None = None
    trainable: Flag = True
    rows: Count = 10_000


def _projection(written: Any, info: ValidationInfo) -> Projection:
    """A projection from its type, from true or false, or from a mapping."""
    if written is None or isinstance(written, bool):
        written = "auto" if written else "none"
    options = written if isinstance(written, Mapping) else {"type": written}
    key = str(info.field_name)
    projection, problems = read(Projection, options, key)
    problems = unknown_keys(options, [f.name for f in fields(Projection)], f"unknown key {{!r}} in {key}") + problems
    if problems or projection is None:
        raise ValueError(*problems)
    return projection


def _schedules(written: Any, info: ValidationInfo) -> Any:
    """The courses of the weight and of arguments; `info` has what was read of the entry before."""
    if not isinstance(written, Mapping):
        return {} if written is None else written
    values = {**info.data.get("args", {}), "weight": info.data.get("weight", 1.0)}
    courses: dict[str, Schedule] = {}
    problems = []
    for name, course in written.items():
        try:
            courses[str(name)] = parse_schedule(course, values.get(name))
            if name == "weight" and courses["weight"].lowest < 0:
                raise ConfigError(f"a weight is 0 or more; found {shown(course)}")
        except ConfigError as error:
            problems.append(f"schedule of {name}: {error}")
    if problems:
        raise ValueError(*problems)
    return courses


def _stages(written: Any) -> tuple[str, ...]:
    stages = written if isinstance(written, (list, tuple)) else [] if written is None else [written]
    if any(isinstance(stage, bool) or not isinstance(stage, (str, int)) or stage == "" for stage in stages):
        raise ValueError
    return tuple(str(stage) for stage in stages)


_MASK = "labels, attention, or the name of another mask of the batch"
_SCHEDULE = "a mapping of weight, or of an argument of the loss"


@dataclass(frozen=True)
class Entry:
    """One item of `distill_config`, braces expanded: what teaches what, by which loss, with what weight.

    `student` and `teacher` hold one feature each, or several where the item gave a list (`many`); `teacher` is empty
    for a hard entry, whose target is the labels. `index` numbers the item as written, from 0. `schedule` maps
    `weight` or an argument of the loss to its course; `stage` names the stages the entry belongs to, empty for all;
    `learning_rate` is that of the entry's projections and of its loss's own parameters, None for the run's.
    `mask` names the mask of the batch that says which tokens count, None for labels where they mark tokens of logits,
    else for what is no padding. `vocabulary` is `shared` where logits are compared in the classes of both sides alone.
    `pooling` and `normalize` stand in the names of the features that they are of.
    """

    index: int
    student: tuple[Feature, ...]
    teacher: tuple[Feature, ...] = ()
    loss: str | Callable[..., Any] = "mse"
    args: Annotated[Mapping[str, Any], Field(description="a mapping of the loss's arguments")] = field(
        default_factory=dict
    )
    weight: NotNegative = 1.0
    name: Name = ""
    projection: Annotated[Projection, BeforeValidator(_projection)] = Projection()
    many: bool = False
    reduction: Reduction = "mean"
    schedule: Annotated[Mapping[str, Schedule], BeforeValidator(_schedules), Field(description=_SCHEDULE)] = field(
        default_factory=dict
    )
    stage: Annotated[
        tuple[str, ...], BeforeValidator(_stages), Field(description="a name or a number, or a list of them")
    ] = ()
    teacher_projection: Annotated[Projection, BeforeValidator(_projection)] = Projection("none")
    projection_checkpoint: (
        Annotated[PathText, Field(description="the path of a run or of a .safetensors file")] | None
    ) = None
    learning_rate: Positive | None = None
    mask: Annotated[Text, Field(min_length=1, description=_MASK)] | None = None
    vocabulary: Vocabulary = "same"
    pooling: PoolingMode | None = None
    normalize: Flag | None = None

    @cached_property
    def hard(self) -> bool:
        """Whether the target is the labels."""
        return not self.teacher

    @cached_property
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

    @property
    def flawed(self) -> set[int]:
        """The numbers of the items that have a problem."""
        return {index for index, _ in self.problems}

    def among(self, peers: Sequence[str]) -> DistillConfig:
        """The config of a cohort: every student has all entries, and learns from each of the others what `peer` says.

        Where there are several others, the entry's weight is shared out among them.
        Source: Zhang et al., Deep Mutual Learning, 2018, eq. 7.
        """
        cohort = ["", *peers]
        entries = []
        for entry in self.entries:
            teachers = {feature.model for feature in entry.teacher}
            for student in cohort:
                others = [other for other in cohort if other != student] if PEER in teachers else [""]
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

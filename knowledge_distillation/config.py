"""The language of `distill_config`: a list of entries, written long or short, parsed once into frozen data.

Nothing here knows of models. Problems are collected, not raised, so that they can be reported together with what
binding the entries to two models finds.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigError, nearest, raise_all

HARD, SOFT = "hard_distill", "ts_distill"
PROJECTIONS = ("auto", "linear", "none")
_LONG_KEYS = tuple(f"{side}_{half}" for side in ("teacher", "student") for half in ("layer_name", "layer_output_name"))
_KEYS = ("type", *_LONG_KEYS, "teacher", "student", "loss", "args", "weight", "name", "projection")


class Feature(NamedTuple):
    """The name of one tensor: `bert_layer4.hidden_states` is output `hidden_states` of layer `bert_layer4`."""

    layer: str
    output: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.output}"


@dataclass(frozen=True)
class Entry:
    """One item of `distill_config`, braces expanded: what teaches what, by which loss, with what weight.

    `student` and `teacher` hold one feature each, or several where the item gave a list (`many`); `teacher` is empty
    for a hard entry, whose target is the labels. `index` numbers the item as written, from 0.
    """

    index: int
    student: tuple[Feature, ...]
    teacher: tuple[Feature, ...] = ()
    loss: str | Callable[..., Any] = "mse"
    args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    name: str = ""
    projection: str = "auto"
    many: bool = False

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
        return any(not entry.hard for entry in self.entries)

    def check(self) -> DistillConfig:
        """Return self, or raise a ConfigError with every problem."""
        raise_all(ConfigError, "distill_config", self.problems)
        return self


def parse_config(config: Sequence[Mapping[str, Any]] | DistillConfig | str | Path) -> DistillConfig:
    """Parse a list of entries, or a YAML file that holds one (alone or under the key `distill_config`).

    Raises:
        ConfigError: the whole is not a list of mappings; problems inside entries are collected in `.problems`.
    """
    if isinstance(config, DistillConfig):
        return config
    if isinstance(config, (str, Path)):
        config = _read_yaml(Path(config))
    if isinstance(config, Mapping) or not isinstance(config, Sequence):
        raise ConfigError(f"distill_config is a list of entries; found {type(config).__name__}")
    if not config:
        raise ConfigError("distill_config is empty: a run needs at least one entry")
    entries: list[Entry] = []
    problems: list[tuple[int, str]] = []
    for index, item in enumerate(config):
        found: list[str] = []
        entries += _parse_item(index, item, found)
        problems += [(index, text) for text in found]
    entries = _name_entries(entries)
    names = [entry.name for entry in entries]
    problems += [(e.index, f"name {e.name!r} is used twice") for i, e in enumerate(entries) if e.name in names[:i]]
    return DistillConfig(tuple(entries), tuple(problems))


def expand_braces(text: str) -> list[str]:
    """Expand `a{1,2}b{3..5}` as a shell does; text without braces is a list of itself."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        step = 1 if last >= first else -1
        choices = [str(n) for n in range(first, last + step, step)]
    else:
        choices = [choice.strip() for choice in match[1].split(",")]
    head, tail = text[: match.start()], text[match.end() :]
    return [expanded for choice in choices for expanded in expand_braces(head + choice + tail)]


def _read_yaml(path: Path) -> Any:
    import yaml

    if not path.is_file():
        raise ConfigError(f"distill_config file {path} does not exist")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return loaded["distill_config"] if isinstance(loaded, Mapping) and "distill_config" in loaded else loaded


def _parse_item(index: int, item: Any, problems: list[str]) -> list[Entry]:
    if not isinstance(item, Mapping):
        problems.append(f"an entry is a mapping; found {type(item).__name__}")
        return []
    for key in item:
        if key not in _KEYS:
            problems.append(f"unknown key {key!r}.{nearest(str(key), _KEYS)} Keys: {', '.join(_KEYS)}")
    kind = item.get("type")
    if kind not in (None, HARD, SOFT):
        problems.append(f"type is {HARD!r} or {SOFT!r}; found {kind!r}.{nearest(str(kind), (HARD, SOFT))}")
    student = _side("student", item, problems)
    teacher = _side("teacher", item, problems)
    if student is None and not problems:
        problems.append("missing key 'student' (or 'student_layer_name' and 'student_layer_output_name')")
    if kind == SOFT and teacher is None and not problems:
        problems.append(f"type {SOFT} is missing key 'teacher' (or 'teacher_layer_name' and its output name)")
    if kind == HARD and teacher is not None:
        problems.append(f"type {HARD} compares the student with the labels and takes no teacher feature")
    loss, args = _loss(item, problems)
    options = {
        "loss": loss,
        "args": args,
        "weight": _weight(item.get("weight", 1.0), problems),
        "projection": _projection(item.get("projection", "auto"), problems),
        "name": _name(item.get("name", ""), problems),
    }
    if problems or student is None:
        return []
    pairs = _pair(student, teacher, problems)
    suffixes = [""] if len(pairs) == 1 else [f"[{n}]" for n in range(len(pairs))]
    many = any(isinstance(item.get(side), (list, tuple)) for side in ("student", "teacher"))
    return [
        Entry(index, s, t, **{**options, "name": options["name"] and options["name"] + suffix}, many=many)
        for (s, t), suffix in zip(pairs, suffixes, strict=True)
    ]


def _side(side: str, item: Mapping[str, Any], problems: list[str]) -> list[tuple[Feature, ...]] | None:
    """The features of one side, one tuple for each expansion; None where the item does not name the side."""
    layer, output = item.get(f"{side}_layer_name"), item.get(f"{side}_layer_output_name")
    short = item.get(side)
    if short is None and layer is None and output is None:
        return None
    if short is not None and (layer is not None or output is not None):
        problems.append(f"give either {side!r} or the two keys '{side}_layer_name', '{side}_layer_output_name'")
        return None
    if short is None:
        missing = [key for key in (f"{side}_layer_name", f"{side}_layer_output_name") if not item.get(key)]
        if missing:
            problems.append(f"missing key {missing[0]!r}")
            return None
        if not (isinstance(layer, str) and isinstance(output, str)):
            problems.append(f"the two halves of a {side} feature are texts; found {layer!r} and {output!r}")
            return None
        return [(Feature(*pair.split("\0")),) for pair in expand_braces(f"{layer}\0{output}")]
    expanded = []
    for text in short if isinstance(short, (list, tuple)) else [short]:
        if not isinstance(text, str) or "." not in text.strip("."):
            problems.append(f"{side} {text!r} is not a feature name of the form 'layer.output'")
            return None
        expanded += [Feature(*one.rsplit(".", 1)) for one in expand_braces(text)]
    return [tuple(expanded)] if isinstance(short, (list, tuple)) else [(feature,) for feature in expanded]


def _pair(
    student: list[tuple[Feature, ...]], teacher: list[tuple[Feature, ...]] | None, problems: list[str]
) -> list[tuple[tuple[Feature, ...], tuple[Feature, ...]]]:
    if teacher is None:
        return [(s, ()) for s in student]
    longest = max(len(student), len(teacher))
    if {len(student), len(teacher)} - {1, longest}:
        problems.append(f"braces pair up one to one: {len(teacher)} teacher features, {len(student)} student features")
        return []
    wide = [side * longest if len(side) == 1 else side for side in (student, teacher)]
    return list(zip(*wide, strict=True))


def _loss(item: Mapping[str, Any], problems: list[str]) -> tuple[Any, dict[str, Any]]:
    loss, args = item.get("loss"), item.get("args")
    if isinstance(loss, Mapping):
        unknown = set(loss) - {"loss_function", "args"}
        if unknown or "loss_function" not in loss:
            problems.append(f"loss as a mapping has the keys 'loss_function' and 'args'; found {sorted(loss)}")
            return "mse", {}
        if args is not None and loss.get("args") is not None:
            problems.append("args are given twice: beside the loss and inside it")
        loss, args = loss["loss_function"], loss.get("args") if args is None else args
    if loss is None:
        problems.append("missing key 'loss'")
    elif not (isinstance(loss, str) or callable(loss)):
        problems.append(f"loss is a name or a callable; found {loss!r}")
    args = {} if args is None else args
    if not isinstance(args, Mapping):
        problems.append(f"args is a mapping of the loss's arguments; found {args!r}")
        args = {}
    return loss, dict(args)


def _weight(weight: Any, problems: list[str]) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        problems.append(f"weight is a finite number of 0 or more; found {weight!r}")
        return 0.0
    return float(weight)


def _projection(projection: Any, problems: list[str]) -> str:
    if projection is None or isinstance(projection, bool):
        projection = "auto" if projection else "none"
    if projection not in PROJECTIONS:
        near = nearest(str(projection), PROJECTIONS)
        problems.append(f"projection is one of {', '.join(PROJECTIONS)}; found {projection!r}.{near}")
        return "none"
    return projection


def _name(name: Any, problems: list[str]) -> str:
    # "/" would nest names in trackers' tables; "." and "" are not names of torch modules.
    if not isinstance(name, str) or "." in name or "/" in name or name == "loss":
        problems.append(f"name is a text without '.' and '/', and not 'loss'; found {name!r}")
        return ""
    return name


def _name_entries(entries: list[Entry]) -> list[Entry]:
    """Give each unnamed entry a short readable name, unique in the config."""
    from dataclasses import replace

    taken = {entry.name for entry in entries if entry.name}
    named = []
    for entry in entries:
        if not entry.name:
            student = "+".join(f"{feature.layer}_{feature.output}" for feature in entry.student)
            stem = f"{entry.loss_name}:{student}".replace(".", "_").replace("/", "_")
            name = next(
                n for n in itertools.chain([stem], (f"{stem}#{i}" for i in itertools.count(2))) if n not in taken
            )
            taken.add(name)
            entry = replace(entry, name=name)
        named.append(entry)
    return named

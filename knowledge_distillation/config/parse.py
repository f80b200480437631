"""The language of `distill_config`: a list of entries, written long or short, parsed once into frozen data.

Nothing here knows of models. Problems are collected, not raised, so that they can be reported together with what
binding the entries to two models finds.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from .entry import HARD, PROJECTIONS, REDUCTIONS, SOFT, DistillConfig, Entry, Feature, Projection
from .schedules import Schedule, parse_schedule

_LONG_KEYS = tuple(f"{side}_{half}" for side in ("teacher", "student") for half in ("layer_name", "layer_output_name"))
_KEYS = (
    *("type", *_LONG_KEYS, "teacher", "student", "loss", "args", "weight", "name", "reduction", "schedule", "stage"),
    *("projection", "teacher_projection", "projection_checkpoint", "learning_rate", "teacher_name"),
)


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
    shared = {e.projection.shared for e in entries} | {e.teacher_projection.shared for e in entries}
    problems += [
        (e.index, f"name {e.name!r} is also that of a shared projection; choose another")
        for e in entries
        if e.name in shared - {e.projection.shared, e.teacher_projection.shared}
    ]
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
        "projection": _projection("projection", item.get("projection", "auto"), problems),
        "name": _name(item.get("name", ""), problems),
        "reduction": _reduction(item.get("reduction", "mean"), problems),
        "stage": _stage(item.get("stage"), problems),
        "teacher_projection": _projection("teacher_projection", item.get("teacher_projection", "none"), problems),
        "projection_checkpoint": _checkpoint(item.get("projection_checkpoint"), problems),
        "learning_rate": _learning_rate(item.get("learning_rate"), problems),
    }
    options["schedule"] = _schedule(item.get("schedule"), {"weight": options["weight"], **args}, problems)
    named = _teacher_names(item.get("teacher_name"), teacher is not None, problems)
    if teacher is not None and named:
        teacher = [tuple(Feature(f.layer, f.output, name) for name in named for f in one) for one in teacher]
    types = {options["projection"].type, options["teacher_projection"].type}
    if types == {"none"} and options["projection_checkpoint"] and not problems:
        problems.append("projection_checkpoint needs a projection, and projection is none")
    if options["teacher_projection"].type == "auto":
        problems.append("teacher_projection says its type, such as linear: none is chosen by itself")
    if options["teacher_projection"].type != "none" and teacher is None and not problems:
        problems.append("teacher_projection is given, and no teacher feature")
    if problems or student is None:
        return []
    pairs = _pair(student, teacher, problems)
    suffixes = [""] if len(pairs) == 1 else [f"[{n}]" for n in range(len(pairs))]
    many = any(isinstance(item.get(side), (list, tuple)) for side in ("student", "teacher")) or len(named) > 1
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
        problems.append(
            f"braces pair up one to one: {len(teacher)} teacher features, {len(student)} student features. A loss "
            'that compares several at once takes lists: teacher: ["layer{1..4}.hidden_states"]'
        )
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
    weight = _number(weight)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        problems.append(f"weight is a finite number of 0 or more; found {weight!r}")
        return 0.0
    return float(weight)


def _projection(key: str, projection: Any, problems: list[str]) -> Projection:
    if projection is None or isinstance(projection, bool):
        projection = "auto" if projection else "none"
    options: Any = {"type": projection} if isinstance(projection, str) else projection
    keys = [f.name for f in fields(Projection)]
    if not isinstance(options, Mapping) or options.get("type", "auto") not in PROJECTIONS:
        found = options.get("type") if isinstance(options, Mapping) else options
        near = nearest(str(found), PROJECTIONS)
        problems.append(f"{key} is one of {', '.join(PROJECTIONS)}; found {found!r}.{near}")
        return Projection("none")
    for name, value in options.items():
        if name not in keys:
            problems.append(f"unknown key {name!r} in {key}.{nearest(str(name), keys)} Keys: {', '.join(keys)}")
        elif name in ("width", "hidden_size") and not (_is_count(value) or value is None):
            problems.append(f"{name} of {key} is a whole number of 1 or more; found {value!r}")
        elif name == "trainable" and not isinstance(value, bool):
            problems.append(f"trainable of {key} is true or false; found {value!r}")
        elif name == "shared":
            _name(value, problems, "shared")
    return Projection(**{name: value for name, value in options.items() if name in keys})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _reduction(reduction: Any, problems: list[str]) -> str:
    if reduction not in REDUCTIONS:
        near = nearest(str(reduction), REDUCTIONS)
        problems.append(f"reduction is one of {', '.join(REDUCTIONS)}; found {reduction!r}.{near}")
        return "mean"
    return reduction


def _stage(stage: Any, problems: list[str]) -> tuple[str, ...]:
    stages = stage if isinstance(stage, (list, tuple)) else [] if stage is None else [stage]
    if any(isinstance(one, bool) or not isinstance(one, (str, int)) or one == "" for one in stages):
        problems.append(f"stage is a name or a number, or a list of them; found {stage!r}")
        return ()
    return tuple(str(one) for one in stages)


def _checkpoint(path: Any, problems: list[str]) -> str | None:
    if path is not None and not isinstance(path, (str, Path)):
        problems.append(f"projection_checkpoint is the path of a run or of a .safetensors file; found {path!r}")
        return None
    return None if path is None else str(path)


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as a text: a text that is a number is that number."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _learning_rate(rate: Any, problems: list[str]) -> float | None:
    if rate is None:
        return None
    rate = _number(rate)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
        problems.append(f"learning_rate is a finite number above 0; found {rate!r}")
        return None
    return float(rate)


def _schedule(schedule: Any, values: Mapping[str, Any], problems: list[str]) -> dict[str, Schedule]:
    if schedule is None:
        return {}
    if not isinstance(schedule, Mapping):
        problems.append(f"schedule is a mapping of weight, or of an argument of the loss; found {schedule!r}")
        return {}
    parsed = {}
    for name, course in schedule.items():
        try:
            parsed[str(name)] = parse_schedule(course, values.get(name))
            if name == "weight" and parsed["weight"].lowest < 0:
                raise ConfigError(f"a weight is 0 or more; found {course!r}")
        except ConfigError as error:
            problems.append(f"schedule of {name}: {error}")
    return parsed


def _teacher_names(names: Any, soft: bool, problems: list[str]) -> list[str]:
    if names is None:
        return []
    listed = list(names) if isinstance(names, (list, tuple)) else [names]
    if not listed or any(not isinstance(name, str) or not name for name in listed):
        problems.append(f"teacher_name is the name of a teacher, or a list of names; found {names!r}")
        return []
    if not soft:
        problems.append(f"teacher_name {names!r} is given, and no teacher feature")
    return listed


def _name(name: Any, problems: list[str], key: str = "name") -> str:
    # "/" would nest names in trackers' tables; "." and "" are not names of torch modules.
    if not isinstance(name, str) or "." in name or "/" in name or name == "loss":
        problems.append(f"{key} is a text without '.' and '/', and not 'loss'; found {name!r}")
        return ""
    return name


def _name_entries(entries: list[Entry]) -> list[Entry]:
    """Give each unnamed entry a short readable name, unique in the config."""
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

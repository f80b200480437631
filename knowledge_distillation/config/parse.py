"""The language of `distill_config`: a list of entries, written long or short, parsed once into frozen data.

Nothing here knows of models. Problems are collected, not raised, so that they can be reported together with what
binding the entries to two models finds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest, shown
from .entry import HARD, SOFT, DistillConfig, Entry, Feature
from .pooling import SENTENCE, with_pooling
from .validation import read, unknown_keys
from .written import oddity, read_yaml
from .yaml_words import TEXTS

_LONG_KEYS = tuple(f"{side}_{half}" for side in ("teacher", "student") for half in ("layer_name", "layer_output_name"))
_OPTIONS = (
    *("weight", "name", "reduction", "mask", "vocabulary", "schedule", "stage"),
    *("projection", "teacher_projection", "projection_checkpoint", "learning_rate"),
    *("pooling", "normalize"),
)
MOST_NAMES = 1_000  # that one text stands for, and entries of a config
MOST_BRACES = 20
_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)")
ENTRY_KEYS = ("type", *_LONG_KEYS, "teacher", "student", "loss", "args", *_OPTIONS, "teacher_name")


def parse_config(config: Sequence[Mapping[str, Any]] | DistillConfig | str | Path) -> DistillConfig:
    """Parse a list of entries, or a YAML file that holds one (alone or under the key `distill_config`).

    Raises:
        ConfigError: the whole is not a list of mappings; problems inside entries are collected in `.problems`.
    """
    if isinstance(config, DistillConfig):
        return config
    if isinstance(config, (str, Path)):
        content = read_yaml(Path(config), "distill_config file", TEXTS)
        config = content["distill_config"] if isinstance(content, Mapping) and "distill_config" in content else content
    if isinstance(config, Mapping) or not isinstance(config, Sequence):
        raise ConfigError(f"distill_config is a list of entries; found {type(config).__name__}")
    if not config:
        raise ConfigError("distill_config is empty: a run needs at least one entry")
    if len(config) > MOST_NAMES:
        raise ConfigError(f"distill_config has {len(config):,} entries: at most {MOST_NAMES:,}")
    entries: list[Entry] = []
    problems: list[tuple[int, str]] = []
    for index, item in enumerate(config):
        texts: list[str] = []
        entries += _parse_item(index, item, texts)
        problems += [(index, text) for text in texts]
        if len(entries) > MOST_NAMES:
            raise ConfigError(f"distill_config has more than {MOST_NAMES:,} entries, braces expanded")
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
    """Expand `a{1,2}b{3..5}` as a shell does; text without braces is a list of itself.

    Raises:
        ConfigError: it stands for more than `MOST_NAMES`, or has more than `MOST_BRACES`.
    """
    if text.count("{") > MOST_BRACES:
        raise ConfigError(f"{shown(text)} has more than {MOST_BRACES} braces")
    expanded: list[str] = []
    rest = [text]
    while rest:
        one = rest.pop()
        match = _BRACES.search(one)
        if match:
            head, tail = one[: match.start()], one[match.end() :]
            rest += [head + choice + tail for choice in reversed(_choices(match[1]))]
        else:
            expanded.append(one)
        if len(expanded) + len(rest) > MOST_NAMES:
            raise ConfigError(f"the braces of {shown(text)} stand for more than {MOST_NAMES:,} names")
    return expanded


def _choices(text: str) -> Sequence[str]:
    """What stands between two braces, a span or parts between commas; of too many as many as show that they are."""
    span = _SPAN.fullmatch(text)
    if not span:
        return [choice.strip() for choice in text.split(",")]
    first, last = int(span[1]), int(span[2])
    step = 1 if last >= first else -1
    return [str(number) for number in range(first, last + step, step)[: MOST_NAMES + 1]]


def _parse_item(index: int, item: Any, problems: list[str]) -> list[Entry]:
    """The entries of one item, whatever else is wrong with it: binding finds further problems in them."""
    if not isinstance(item, Mapping):
        problems.append(f"an entry is a mapping; found {type(item).__name__}")
        return []
    odd = {key: text for key, value in item.items() if (text := oddity(value, shown(key).strip("'")))}
    problems += [*filter(None, [oddity(dict.fromkeys(item))]), *odd.values()]
    if len(problems) > len(odd) or set(odd) - set(_OPTIONS):
        return []
    item = {key: value for key, value in item.items() if key not in odd}
    problems += unknown_keys(item, ENTRY_KEYS)
    kind = item.get("type")
    if kind is not None and not (isinstance(kind, str) and kind in (HARD, SOFT)):
        problems.append(f"type is {HARD!r} or {SOFT!r}; found {shown(kind)}.{nearest(str(kind), (HARD, SOFT))}")
        kind = None
    students, teachers = (_side(side, item, problems) for side in ("student", "teacher"))
    has_teacher = _is_written(item, "teacher")
    if not _is_written(item, "student"):
        problems.append("missing key 'student' (or 'student_layer_name' and 'student_layer_output_name')")
    if kind == SOFT and not has_teacher:
        problems.append(f"type {SOFT} is missing key 'teacher' (or 'teacher_layer_name' and its output name)")
    if kind == HARD and has_teacher:
        problems.append(f"type {HARD} compares the student with the labels and takes no teacher feature")
    names = _teacher_names(item.get("teacher_name"), has_teacher, problems)
    if names:
        teachers = [tuple(Feature(f.layer, f.output, name) for name in names for f in one) for one in teachers]
    written = {key: item[key] for key in _OPTIONS if key in item}
    many = any(isinstance(item.get(side), (list, tuple)) for side in ("student", "teacher")) or len(names) > 1
    entry, wrong = read(Entry, {"index": index, "student": (), "many": many, **_loss(item, problems), **written})
    problems += wrong
    if entry is None:
        return []
    if entry.teacher_projection.type == "auto":
        problems.append("teacher_projection says its type, such as linear: none is chosen by itself")
    elif entry.teacher_projection.type != "none" and not has_teacher:
        problems.append("teacher_projection is given, and no teacher feature")
    elif entry.projection.type == "pca":
        problems.append(
            "projection pca is fitted to what does not change, the teacher's side: teacher_projection: pca"
        )
    elif entry.projection_checkpoint and entry.projection.type == entry.teacher_projection.type == "none":
        problems.append("projection_checkpoint needs a projection, and projection is none")
    if entry.vocabulary == "shared" and not has_teacher:
        problems.append("vocabulary 'shared' is for logits of two models, and no teacher feature is given")
    if not students or (has_teacher and not teachers):
        return []
    students, teachers = _pooled(entry, students, teachers, problems)
    pairs = _pair(students, teachers, problems)
    suffixes = [""] if len(pairs) == 1 else [f"[{n}]" for n in range(len(pairs))]
    return [
        replace(entry, student=student, teacher=teacher, name=entry.name and entry.name + suffix)
        for (student, teacher), suffix in zip(pairs, suffixes, strict=True)
    ]


def _pooled(
    entry: Entry, students: list[tuple[Feature, ...]], teachers: list[tuple[Feature, ...]], problems: list[str]
) -> tuple[list[tuple[Feature, ...]], ...]:
    """Both sides, the pooling that the entry says in the names of their sentence embeddings."""
    names = {feature.output for side in (students, teachers) for one in side for feature in one}
    if (entry.pooling is not None or entry.normalize is not None) and SENTENCE not in names:
        key = "normalize" if entry.pooling is None else "pooling"
        problems.append(f"{key} is that of output.{SENTENCE}, and no side of the entry is one without brackets")
    return tuple(
        [tuple(f._replace(output=with_pooling(f.output, entry.pooling, entry.normalize)) for f in one) for one in side]
        for side in (students, teachers)
    )


def _is_written(item: Mapping[str, Any], side: str) -> bool:
    return any(item.get(key) is not None for key in (side, f"{side}_layer_name", f"{side}_layer_output_name"))


def _side(side: str, item: Mapping[str, Any], problems: list[str]) -> list[tuple[Feature, ...]]:
    """The features of one side, one tuple for each expansion; none where the item does not name the side."""
    layer_key, output_key = f"{side}_layer_name", f"{side}_layer_output_name"
    short, layer, output = item.get(side), item.get(layer_key), item.get(output_key)
    if short is None and layer is None and output is None:
        return []
    if short is not None and (layer is not None or output is not None):
        problems.append(f"give either {side!r} or the two keys {layer_key!r}, {output_key!r}")
        return []
    if short is None:
        if not layer or not output:
            problems.append(f"missing key {output_key if layer else layer_key!r}")
            return []
        if not (isinstance(layer, str) and isinstance(output, str)):
            problems.append(f"the two halves of a {side} feature are texts; found {shown(layer)} and {shown(output)}")
            return []
        return [(Feature(*pair.split("\0")),) for pair in _expanded(side, f"{layer}\0{output}", problems)]
    texts = short if isinstance(short, (list, tuple)) else [short]
    if not texts or len(texts) > MOST_NAMES:
        problems.append(f"{side} as a list names from 1 to {MOST_NAMES:,} features; found {len(texts):,}")
        return []
    expanded = []
    for text in texts:
        if not isinstance(text, str) or "." not in text.strip("."):
            problems.append(f"{side} {shown(text)} is not a feature name of the form 'layer.output'")
            return []
        names = _expanded(side, text, problems)
        if not names:
            return []
        expanded += [Feature(*one.rsplit(".", 1)) for one in names]
    return [tuple(expanded)] if isinstance(short, (list, tuple)) else [(feature,) for feature in expanded]


def _expanded(side: str, text: str, problems: list[str]) -> list[str]:
    """The names that a text stands for; none where it stands for too many."""
    try:
        return expand_braces(text)
    except ConfigError as error:
        problems.append(f"{side}: {error}")
        return []


def _pair(
    students: list[tuple[Feature, ...]], teachers: list[tuple[Feature, ...]], problems: list[str]
) -> list[tuple[tuple[Feature, ...], tuple[Feature, ...]]]:
    if not teachers:
        return [(student, ()) for student in students]
    longest = max(len(students), len(teachers))
    if {len(students), len(teachers)} - {1, longest}:
        problems.append(
            f"braces pair up one to one: {len(teachers)} teacher features, {len(students)} student features. A loss "
            'that compares several at once takes lists: teacher: ["layer{1..4}.hidden_states"]'
        )
        return []
    wide = [side * longest if len(side) == 1 else side for side in (students, teachers)]
    return list(zip(*wide, strict=True))


def _loss(item: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Loss and arguments of an item; no arguments where its loss is wrong, for they belong to another."""
    loss, args = item.get("loss"), item.get("args")
    if isinstance(loss, Mapping):
        if set(loss) - {"loss_function", "args"} or "loss_function" not in loss:
            problems.append(
                f"loss as a mapping has the keys 'loss_function' and 'args'; found {shown(sorted(map(str, loss)))}"
            )
            return {}
        if args is not None and loss.get("args") is not None:
            problems.append("args are given twice: beside the loss and inside it")
        loss, args = loss["loss_function"], loss.get("args") if args is None else args
    if loss is None:
        problems.append("missing key 'loss'")
        return {}
    if not (isinstance(loss, str) or callable(loss)):
        problems.append(f"loss is a name or a callable; found {shown(loss)}")
        return {}
    return {"loss": loss, "args": {} if args is None else args}


def _teacher_names(names: Any, has_teacher: bool, problems: list[str]) -> list[str]:
    if names is None:
        return []
    listed = list(names) if isinstance(names, (list, tuple)) else [names]
    if not listed or any(not isinstance(name, str) or not name for name in listed):
        problems.append(f"teacher_name is the name of a teacher, or a list of names; found {shown(names)}")
        return []
    if not has_teacher:
        problems.append(f"teacher_name {shown(names)} is given, and no teacher feature")
    return listed


def _name_entries(entries: list[Entry]) -> list[Entry]:
    """Give each unnamed entry a short readable name, unique in the config."""
    names = {entry.name for entry in entries if entry.name}
    named = []
    for entry in entries:
        if not entry.name:
            student = "+".join(f"{feature.layer}_{feature.output}" for feature in entry.student)
            stem = f"{entry.loss_name}:{student}".replace(".", "_").replace("/", "_")
            name = next(
                n for n in itertools.chain([stem], (f"{stem}#{i}" for i in itertools.count(2))) if n not in names
            )
            names.add(name)
            entry = replace(entry, name=name)
        named.append(entry)
    return named

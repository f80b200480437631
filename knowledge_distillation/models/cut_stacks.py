"""The stacks of layers a model has, found by growing them: which setting of its config makes which lists longer.

Nothing is known of model families here. A setting counts the layers of a list of modules where one more of it builds
that list one longer; a setting of the same sub-config has one value per layer where the longer model needs it longer.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ConfigError

_COUNTS_LAYERS = re.compile(r"layer|block|depth")
_AFFIXES = re.compile(r"(^|_)(num|n|hidden|layers?|blocks?|depth)(?=_|$)")
_NEEDED = 3  # so many settings of one value per layer are looked for together
Scope = tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """Layers that one setting counts, or lists one by one, as Nemotron-H's `layers_block_type`.

    `scope` and `key` say where the setting is, `paths` which lists of modules it makes longer (none where all layers
    are one module, run again and again), `per_layer` which settings beside it hold one value for each layer (the
    setting itself, where it is a list), `beside` which count the layers of other stacks.
    """

    name: str
    aliases: frozenset[str]
    scope: Scope
    key: str
    depth: int
    paths: tuple[str, ...]
    per_layer: tuple[str, ...] = ()
    beside: frozenset[str] = frozenset()


def find_stacks(teacher: PreTrainedModel) -> list[Stack]:
    """Every stack of layers of a model, in the order of its modules.

    Raises:
        ConfigError: it has none that a setting counts.
    """
    lengths = module_lists(teacher)
    found: list[Stack] = []
    for settings in (_counts, _kinds):
        for scope, config in scopes(teacher.config):
            for key, depth in settings(config, set(lengths.values())):
                known = {path for stack in found for path in stack.paths}
                said = any(stack.scope == scope and key in stack.per_layer for stack in found)
                stack = None if said else _grown(teacher, lengths, scope, key, depth)
                if stack and not (settings is _kinds and known.issuperset(stack.paths)):
                    found.append(stack)
    if not found and (shared := _shared(teacher)):
        return [shared]
    if not found:
        raise ConfigError(
            f"{type(teacher).__name__} {_why_none(teacher)}, so layers cannot be cut out of it one by one"
        )
    order = list(lengths)
    return _named(sorted(found, key=lambda stack: order.index(stack.paths[0])))


def _why_none(teacher: PreTrainedModel) -> str:
    try:
        anew = module_lists(skeleton(teacher, settings_of(teacher.config)))
    except Exception as error:
        return f"cannot be built from its config alone ({type(error).__name__}: {error})"
    for path, length in module_lists(teacher).items():
        if anew.get(path, length) != length:
            return f"has {length} modules in {path}, and by its config {anew[path]}"
    stages = isinstance(getattr(teacher.config, "depths", None), (list, tuple))
    return "has stages of different widths" if stages else "does not say how many layers it has"


def scopes(config: PretrainedConfig, at: Scope = ()) -> Iterator[tuple[Scope, PretrainedConfig]]:
    """A config and its sub-configs, each with its place."""
    yield at, config
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig) and not name.startswith("_"):
            yield from scopes(value, (*at, name))


def settings_of(config: PretrainedConfig, scope: Scope = ()) -> dict[str, Any]:
    """The settings of a (sub-)config as they are saved, its own to change."""
    settings: dict[str, Any] = copy.deepcopy(config.to_dict())
    return inside(settings, scope)


def inside(settings: dict[str, Any], scope: Scope) -> dict[str, Any]:
    for name in scope:
        settings = settings[name]
    return settings


def config_from(teacher: PreTrainedModel, settings: dict[str, Any]) -> PretrainedConfig:
    """The config that loading these settings would give, with the attention the teacher runs."""
    config: PretrainedConfig = type(teacher.config).from_dict(copy.deepcopy(settings))
    for scope, theirs in scopes(teacher.config):
        ours = config
        for name in scope:
            ours = getattr(ours, name)
        ours._attn_implementation_internal = theirs._attn_implementation_internal
        ours._name_or_path = theirs._name_or_path
    return config


def skeleton(teacher: PreTrainedModel, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of the teacher's class without weights.

    Raises:
        Exception: whatever the class says of these settings.
    """
    config = config_from(teacher, settings)
    try:
        with torch.device("meta"):
            return type(teacher)(copy.deepcopy(config))
    except (NotImplementedError, RuntimeError):  # it computes with numbers that a tensor without data does not have
        with torch.random.fork_rng():
            return type(teacher)(config)


def module_lists(model: nn.Module) -> dict[str, int]:
    """Path -> length of every list of modules."""
    return {path: len(m) for path, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}


def _counts(config: PretrainedConfig, lengths: set[int]) -> list[tuple[str, int]]:
    """The settings that may count layers: whole numbers that are the length of a list of modules."""
    own = config.to_dict().items()
    return [(k, v) for k, v in own if type(v) is int and v in lengths and _COUNTS_LAYERS.search(k)]


def _kinds(config: PretrainedConfig, lengths: set[int]) -> list[tuple[str, int]]:
    """The settings that may list layers: words, one for each, in a list as long as a list of modules."""
    own = config.to_dict().items()
    lists = [(k, v) for k, v in own if isinstance(v, (list, tuple)) and len(v) in lengths and _COUNTS_LAYERS.search(k)]
    return [(k, len(v)) for k, v in lists if all(isinstance(item, str) for item in v)]


def _grown(teacher: PreTrainedModel, lengths: Mapping[str, int], scope: Scope, key: str, depth: int) -> Stack | None:
    for fields, model in _one_more(teacher, scope, key, depth):
        grown = module_lists(model)
        paths = tuple(path for path, length in lengths.items() if length == depth and grown.get(path) == depth + 1)
        if not paths:
            return None
        itself = () if isinstance(settings_of(teacher.config, scope)[key], int) else (key,)
        return Stack(key, frozenset(), scope, key, depth, paths, (*itself, *fields))
    return None


def _one_more(
    teacher: PreTrainedModel, scope: Scope, key: str, depth: int
) -> Iterator[tuple[tuple[str, ...], PreTrainedModel]]:
    """The teacher with one more layer, and the settings that had to grow with the count: as few as will do."""
    own = settings_of(teacher.config, scope)
    per_layer = {k: v for k, v in own.items() if k != key and (_one_for_each(v, depth) or _names_last(k, v, depth))}
    said = ""
    for size in range(min(_NEEDED, len(per_layer)) + 1):
        # An error most often names the settings that it misses.
        for fields in sorted(combinations(per_layer, size), key=lambda names: -sum(n in said for n in names)):
            try:
                yield _and_those_that_say_so(teacher, scope, key, fields, per_layer)
                return
            except Exception as error:
                said += str(error)


def _and_those_that_say_so(
    teacher: PreTrainedModel, scope: Scope, key: str, needed: Sequence[str], per_layer: Mapping[str, Any]
) -> tuple[tuple[str, ...], PreTrainedModel]:
    """Some lists are read in a forward pass alone: those named after layers grow where the model allows it."""
    model = _with_one_more(teacher, scope, key, needed, per_layer)
    fields = list(needed)
    for field in per_layer:
        if field in fields or not _COUNTS_LAYERS.search(field) or isinstance(per_layer[field], Mapping):
            continue
        try:
            model = _with_one_more(teacher, scope, key, [*fields, field], per_layer)
            fields.append(field)
        except Exception:
            continue
    return tuple(fields), model


def _with_one_more(
    teacher: PreTrainedModel, scope: Scope, key: str, fields: Sequence[str], per_layer: Mapping[str, Any]
) -> PreTrainedModel:
    settings = settings_of(teacher.config)
    own = inside(settings, scope)
    for field in (key, *fields):
        own[field] = longer(own[field], 1)
    return skeleton(teacher, settings)


def longer(value: Any, more: int) -> Any:
    """A setting for so many layers more: a count, one value for each layer, or a mapping from the last one's place."""
    if isinstance(value, Mapping):
        last = max(value, key=int)
        return {**value, **{type(last)(int(last) + n): value[last] for n in range(1, more + 1)}}
    return value + (more if isinstance(value, int) else value[-1:] * more)


def _one_for_each(value: Any, depth: int) -> bool:
    """A list of that length, or a pattern of one character for each layer."""
    pattern = isinstance(value, str) and not value.islower()
    return (isinstance(value, (list, tuple)) or pattern) and len(value) == depth


def _names_last(key: str, value: Any, depth: int) -> bool:
    """A mapping from places of layers that has one for the last."""
    places = isinstance(value, Mapping) and bool(value) and all(str(place).isdigit() for place in value)
    return places and _COUNTS_LAYERS.search(key) is not None and max(map(int, value)) == depth - 1


def _shared(teacher: PreTrainedModel) -> Stack | None:
    """One more layer and not one more weight: all layers are the same module."""
    key = teacher.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    depth = teacher.config.to_dict().get(key)
    if type(depth) is not int or isinstance(getattr(teacher.config, "depths", None), (list, tuple)):
        return None
    settings = settings_of(teacher.config)
    settings[key] += 1
    try:
        same = skeleton(teacher, settings).state_dict().keys() == teacher.state_dict().keys()
    except Exception:
        return None
    return Stack("", frozenset(), (), key, depth, ()) if same else None


# --- what a caller may call them -----------------------------------------------------------------------------------


def _named(stacks: Sequence[Stack]) -> list[Stack]:
    """Each with all names that no other stack has; those that the config gives come before those of its modules."""
    given = Counter(name for stack in stacks for name in dict.fromkeys(_plain(stack)))
    met = Counter(name for stack in stacks for name in dict.fromkeys(_met(stack)))
    named = []
    for stack in stacks:
        own = [name for name in dict.fromkeys(_plain(stack)) if given[name] == 1]
        own += [name for name in dict.fromkeys(_met(stack)) if met[name] == 1 and not given[name]]
        own.append(".".join((*stack.scope, stack.key)))
        name = own[0] if len(stacks) > 1 or own[0] in _plain(stack) else ""
        beside = frozenset(other.key for other in stacks if other.scope == stack.scope and other is not stack)
        named.append(replace(stack, name=name, aliases=frozenset(own), beside=beside))
    return named


def _plain(stack: Stack) -> list[str]:
    """The names that the config itself gives: `encoder` of `encoder_layers`, `text_model` of `text_config`."""
    side = "" if stack.key in stack.per_layer else _AFFIXES.sub("", stack.key).strip("_")
    part = stack.scope[-1] if stack.scope else ""
    plain = part.removesuffix("_config")
    return [name for name in (side, f"{plain}_model" if part != plain else "", part, plain) if name]


def _met(stack: Stack) -> list[str]:
    """The names on the way to its modules."""
    return [name for path in stack.paths for name in path.split(".") if not name.isdigit()]

"""The settings of a config after a cut: the counts of layers, and whatever else speaks of layers one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from transformers import PreTrainedModel

from .cut_stacks import Stack, config_from, inside, longer, settings_of

Cuts = Mapping[Stack, Sequence[int]]
Change = tuple[Stack, str, Any]  # a setting of a stack's sub-config, and its value in the student
_SPEAKS_OF_LAYERS = re.compile(r"layer|block|index|indices|idx|head")
_PLACES = re.compile(r"layer|first|period|offset|step|interval|freq|pattern|window")


def cut_settings(teacher: PreTrainedModel, cuts: Cuts) -> dict[str, Any]:
    """The teacher's settings with fewer layers, and with the lists of one value per layer cut alike."""
    settings = settings_of(teacher.config)
    for stack, numbers in cuts.items():
        own = inside(settings, stack.scope)
        for key in _copies(teacher, stack, own):
            del own[key]
        if stack.key not in stack.per_layer:
            own[stack.key] = len(numbers)
        for field in stack.per_layer:
            own[field] = _chosen(own[field], numbers, stack.depth)
        _cut_stages(own, stack, numbers)
        if isinstance(own.get("attention_types"), list) and "attention_layers" in stack.per_layer:
            own["attention_types"] = [[[kind], 1] for kind in own["attention_layers"]]  # GPT-Neo writes it twice
    return settings


def changes(settings: Mapping[str, Any], cuts: Cuts) -> list[Change]:
    """Settings that name layers by number: lists of places, and mappings from a place."""
    found: list[Change] = []
    for stack, numbers in cuts.items():
        for field, value in _own(settings, stack).items():
            if field in stack.per_layer or field.startswith(("out_", "id2", "label2")):
                continue
            renumbered = renumbered_places(value, numbers, stack.depth) if _SPEAKS_OF_LAYERS.search(field) else None
            if renumbered is not None and renumbered != value:
                found.append((stack, field, renumbered))
    return found


def counts(settings: Mapping[str, Any], cuts: Cuts) -> Iterator[list[Change]]:
    """Other values of the settings that say by a number which layers are of which kind: the first few, every other.

    Before them come lists of kinds that are repeated over the layers, written out for the chosen ones. Of the numbers,
    that which follows from the chosen layers comes first (how many of the first few are among them), then any other
    that the depth of the student allows; two settings (a period and its offset) are tried last.
    """
    singles: list[list[Change]] = []
    for stack, numbers in cuts.items():
        for field, value in _own(settings, stack).items():
            if field not in stack.per_layer and _repeats(field, value):
                singles.append([(stack, field, [value[(number - 1) % len(value)] for number in numbers])])
        fields = {
            field: value
            for field, value in _own(settings, stack).items()
            if type(value) is int and 0 <= value <= stack.depth and field != stack.key and _PLACES.search(field)
        }
        for field, value in fields.items():
            kept = sum(number <= value for number in numbers)
            values = dict.fromkeys([kept, *range(len(numbers) + 1)])
            singles.append([(stack, field, other) for other in values if other != value])
    for options in singles:
        yield from ([change] for change in options)
    for one, other in combinations(singles, 2):
        yield from (list(pair) for pair in product(one, other))


def _repeats(field: str, value: Any) -> bool:
    """Whether a setting may be a few kinds of layers, again and again (RecurrentGemma's `block_types`)."""
    words = isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(item, str) for item in value)
    return words and re.search(r"layer|block|pattern", field) is not None


def changed(settings: dict[str, Any], chosen: Sequence[Change]) -> dict[str, Any]:
    """A copy of the settings with these changes."""
    copied = _copied(settings)
    for stack, field, value in chosen:
        inside(copied, stack.scope)[field] = value
    return copied


def _own(settings: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    return inside(dict(settings), stack.scope)


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in settings.items()}


def _chosen(values: Any, numbers: Sequence[int], depth: int) -> Any:
    if isinstance(values, Mapping):
        return renumbered_places(values, numbers, depth)
    if list(values) == list(range(len(values))):  # no values: the places of all layers
        return list(range(len(numbers)))
    picked = [values[number - 1] for number in numbers]
    return "".join(picked) if isinstance(values, str) else picked


def renumbered_places(value: Any, numbers: Sequence[int], depth: int) -> Any:
    """A list of places counted from 0, or a mapping from them, under the places in the student; None for neither."""
    places: dict[int, list[int]] = {}
    for new, number in enumerate(numbers):
        places.setdefault(number - 1, []).append(new)
    if isinstance(value, dict) and value and all(str(k).isdigit() and int(k) < depth for k in value):
        kept = {new: item for k, item in value.items() for new in places.get(int(k), [])}
        return {str(new) if isinstance(next(iter(value)), str) else new: item for new, item in kept.items()}
    whole = isinstance(value, (list, tuple)) and all(type(n) is int and n >= 0 for n in value)
    if whole and len(set(value)) == len(value) and any(n < depth for n in value):
        return sorted(new for place in value for new in places.get(place, []))
    return None


def _copies(teacher: PreTrainedModel, stack: Stack, own: Mapping[str, Any]) -> list[str]:
    """Settings that repeat the depth because the config makes them from it: left out, they are made anew."""
    candidates = [
        key
        for key, value in own.items()
        if type(value) is int and value == stack.depth and "layer" in key and key not in {stack.key, *stack.beside}
    ]
    for more in (1, 2) if candidates else ():
        settings = settings_of(teacher.config)
        mine = inside(settings, stack.scope)
        for key in candidates:
            del mine[key]
        for field in dict.fromkeys((stack.key, *stack.per_layer)):
            mine[field] = longer(mine[field], more)
        try:
            remade = inside(config_from(teacher, settings).to_dict(), stack.scope)
        except Exception:
            return []
        candidates = [key for key in candidates if remade.get(key) == stack.depth + more]
    return candidates


def _cut_stages(own: dict[str, Any], stack: Stack, numbers: Sequence[int]) -> None:
    """What a backbone gives out, `stage4` or hidden state 4, is the stage that the layer has become.

    Of stages that are all left out, the last of the student stands for the last of them.
    """
    if len(own.get("stage_names") or ()) != stack.depth + 1:
        return
    del own["stage_names"]  # made from the depth
    given = [n % (stack.depth + 1) for n in own.pop("out_indices", None) or []]
    own.pop("out_features", None)
    indices = sorted({0 if n == 0 else numbers.index(n) + 1 for n in given if n == 0 or n in numbers})
    own["out_indices"] = indices or [len(numbers)]

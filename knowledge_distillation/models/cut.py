"""Cut a student out of a teacher: some of its layers, all the rest of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config.layer_entries import layer_entries
from ..errors import ConfigError

_STACKS = {
    "layer": ("num_hidden_layers",),
    "encoder_layer": ("encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder_layer": ("decoder_layers", "num_decoder_layers"),
}
_HEAD = re.compile(r"For[A-Z]|LMHead")
Layers = Sequence[int] | Mapping[str, Sequence[int]]


def student_from_teacher(teacher: PreTrainedModel, layers: Layers, return_config: bool = False) -> Any:
    """A new model of the teacher's class with the chosen layers and a copy of everything around them.

    Args:
        teacher: any transformers model made of one stack of layers, or of an encoder and a decoder. It stays as it is.
        layers: the teacher's layers to keep, counted from 1 (negative numbers from the end), in the student's order;
            for an encoder-decoder a mapping `{"encoder": [...], "decoder": [...]}`.
        return_config: also return the `distill_config` that maps the kept layers: embedding, hidden states and
            attention of each, and the logits.

    Returns:
        The student, or `(student, distill_config)`.

    Raises:
        ConfigError: a layer the teacher does not have, or a model whose layers cannot be chosen one by one.
    """
    stacks = _layer_numbers(teacher, layers)
    config = copy.deepcopy(teacher.config)
    for stack, numbers in stacks.items():
        depth = _depth(teacher, stack)
        for key in list(config.to_dict()):
            value = getattr(config, key, None)
            if isinstance(value, list) and len(value) == depth and key.startswith(("layer", "mlp_layer", "no_rope")):
                setattr(config, key, [value[n - 1] for n in numbers])
        setattr(config, _depth_key(teacher, stack), len(numbers))
    student = type(teacher)(config)
    student.load_state_dict(_renumbered(teacher, student, stacks))
    student.train(teacher.training)
    if not return_config:
        return student
    return student, matching_config(stacks, logits=bool(_HEAD.search(type(teacher).__name__)))


def matching_config(stacks: Mapping[str, Sequence[int]], logits: bool = True) -> list[dict[str, Any]]:
    """The entries that map kept teacher layers onto the student's in order, and the logits by KL divergence.

    Args:
        stacks: `layer`, or `encoder_layer` and `decoder_layer` -> numbers of the layers that are kept.
    """
    entries: list[dict[str, Any]] = []
    for stack, numbers in stacks.items():
        embedding = f"{stack.removesuffix('layer')}embedding_layer.embedding"
        entries.append({"teacher": embedding, "student": embedding, "loss": "mse"})
        pairs = [(number, place) for place, number in enumerate(numbers, start=1)]
        entries += layer_entries(pairs, ["hidden_states", "attention"], stack)
    if logits:
        entries.append({"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"})
    return entries


def _layer_numbers(teacher: PreTrainedModel, layers: Layers) -> dict[str, list[int]]:
    """Stack -> the numbers of the layers to keep, counted from 1."""
    two_stacks = bool(getattr(teacher.config, "is_encoder_decoder", False))
    if two_stacks != isinstance(layers, Mapping):
        form = 'a mapping {"encoder": [...], "decoder": [...]}' if two_stacks else "a list of layer numbers"
        raise ConfigError(f"layers of {type(teacher).__name__} are given as {form}; found {layers!r}")
    stacks: Mapping[str, Any] = {"layer": layers}
    if isinstance(layers, Mapping):
        stacks = {f"{side}_layer": chosen for side, chosen in layers.items()}
    if not stacks.keys() <= _STACKS.keys():
        raise ConfigError(f"layers name 'encoder' and 'decoder'; found {sorted(layers)}")
    return {stack: _checked_numbers(teacher, stack, chosen) for stack, chosen in stacks.items()}


def _checked_numbers(teacher: PreTrainedModel, stack: str, chosen: Any) -> list[int]:
    depth = _depth(teacher, stack)
    if isinstance(chosen, (str, int, float)) or any(isinstance(n, bool) or not isinstance(n, int) for n in chosen):
        raise ConfigError(f"layers are whole numbers in a list; found {chosen!r}")
    numbers = [n + depth + 1 if n < 0 else n for n in chosen]
    wrong = [n for n, number in zip(chosen, numbers, strict=True) if not 1 <= number <= depth]
    if wrong or not numbers:
        raise ConfigError(
            f"layers {list(chosen)}: {type(teacher).__name__} has layers 1 to {depth}; found {wrong or 'none'}"
        )
    return numbers


def _depth_key(teacher: PreTrainedModel, stack: str) -> str:
    key = next((key for key in _STACKS[stack] if isinstance(getattr(teacher.config, key, None), int)), None)
    stages = isinstance(getattr(teacher.config, "depths", None), (list, tuple))
    if key is None or stages:
        why = "has stages of different widths" if stages else "does not say how many layers it has"
        raise ConfigError(f"{type(teacher).__name__} {why}, so layers cannot be cut out of it one by one")
    return key


def _depth(teacher: PreTrainedModel, stack: str) -> int:
    return int(getattr(teacher.config, _depth_key(teacher, stack)))


def _renumbered(
    teacher: PreTrainedModel, student: PreTrainedModel, stacks: Mapping[str, list[int]]
) -> dict[str, Tensor]:
    """The teacher's weights under the student's names: the layers' numbers change, all else stays."""
    paths = {
        path + ".": numbers
        for path, module in teacher.named_modules()
        for stack, numbers in stacks.items()
        if isinstance(module, nn.ModuleList) and len(module) == _depth(teacher, stack)
        if stack == "layer" or stack.removesuffix("_layer") in path
    }
    state = teacher.state_dict()
    return {name: state[_source(name, paths, state, teacher)] for name in student.state_dict()}


def _source(name: str, paths: Mapping[str, list[int]], state: Mapping[str, Tensor], teacher: nn.Module) -> str:
    """The teacher's name of a student's weight."""
    path = next((path for path in paths if name.startswith(path)), None)
    if path is None:
        return name
    number, _, rest = name.removeprefix(path).partition(".")
    layer = paths[path][int(number)]
    source = f"{path}{layer - 1}.{rest}"
    if source in state:
        return source
    if number == "0":  # what only the first layer has serves them all, as T5's position bias
        return name
    raise ConfigError(
        f"layer {layer} of {type(teacher).__name__} lacks {rest}, which layer {int(number) + 1} of the student needs: "
        "it can only come first"
    )

"""Cut a student out of a teacher: some of its layers, all the rest of it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ConfigError, listed, nearest
from ..features.made_up_inputs import made_up_inputs
from .cut_config import matching_config
from .cut_fit import Fit, fitted, sources
from .cut_probe import probe_layers, teacher_calls
from .cut_settings import Cuts
from .cut_stacks import Stack, config_from, find_stacks

Layers = Sequence[int] | Mapping[str, Sequence[int]]


def student_from_teacher(
    teacher: PreTrainedModel, layers: Layers, return_config: bool = False, inputs: Mapping[str, Any] | None = None
) -> Any:
    """A new model of the teacher's class with the chosen layers and a copy of everything around them.

    Every weight of a chosen layer is used, and no other layer's. The student's config is the teacher's with every
    setting cut that has a value for each layer. On `inputs` each layer of the student gives what the teacher's layer
    gives; where it does not, because a layer computes with its number, a warning says so.

    Args:
        teacher: a transformers model whose layers a setting of its config counts, or such a model with adapters of
            PEFT, which are merged into a copy first. It stays as it is.
        layers: the teacher's layers to keep, counted from 1 (negative numbers from the end), in the student's order.
            Where a model has several stacks of layers, a mapping from their names: `{"encoder": [...], "decoder":
            [...]}`, `{"text_model": [...]}`; a stack that is left out stays whole.
        return_config: also return the `distill_config` that maps the kept layers, of what both models offer: the
            embedding, hidden states and attention of each, and the logits.
        inputs: a batch of the teacher's inputs to run both on; made up where left out.

    Returns:
        The student, or `(student, distill_config)`.

    Raises:
        ConfigError: a layer the teacher does not have, or one that cannot be where it is asked for: what would be lost
            or borrowed, and which layers can be there.
    """
    base = _base(teacher)
    cuts = _chosen(base, find_stacks(base), layers)
    fit = fitted(base, cuts)
    student: PreTrainedModel = type(base)(_saved(base, fit.settings))
    student.load_state_dict(sources(base, student, cuts))
    if getattr(base, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(base.generation_config)
    student.train(base.training)
    run_on = _check(base, student, cuts, fit, inputs)
    if not return_config:
        return student
    if isinstance(run_on, str):
        raise ConfigError(f"the features of {type(base).__name__} are named by running it: {run_on}. Give inputs")
    return student, matching_config(base, student, cuts, run_on)


def _base(teacher: Any) -> PreTrainedModel:
    """The model itself, with its adapters merged in a copy.

    Raises:
        ConfigError: no transformers model, or one whose weights are not there or not whole.
    """
    name = type(teacher).__name__
    try:
        if callable(getattr(teacher, "merge_and_unload", None)):
            teacher = copy.deepcopy(teacher).merge_and_unload()
        elif isinstance(teacher, nn.Module) and any(_is_adapter(module) for module in teacher.modules()):
            teacher = _without_adapters(copy.deepcopy(teacher))
    except Exception as error:
        raise ConfigError(f"the adapters of {name} cannot be merged, so no layer is whole: {error}") from error
    if not isinstance(teacher, PreTrainedModel):
        raise ConfigError(f"a student is cut out of a transformers model; found {name}: give the model inside it")
    quantized = getattr(teacher, "is_quantized", False)
    for path, tensor in teacher.state_dict().items():
        if tensor.is_meta:
            raise ConfigError(f"{name}: {path} lies on no device (offloaded), so it cannot be copied: load it whole")
        if quantized or type(tensor.data) is not Tensor:
            raise ConfigError(f"{name}: {path} is quantized or spread over processes: load it whole, unquantized")
    return teacher


def _is_adapter(module: nn.Module) -> bool:
    """A layer that PEFT put around one of the model's own."""
    return all(callable(getattr(module, name, None)) for name in ("merge", "get_base_layer"))


def _without_adapters(model: nn.Module) -> nn.Module:
    for path, module in list(model.named_modules()):
        if _is_adapter(module):
            module.merge()
            model.set_submodule(path, module.get_base_layer())
    return model


def _chosen(teacher: PreTrainedModel, stacks: Sequence[Stack], layers: Layers) -> Cuts:
    """Stack -> the numbers of the layers to keep, counted from 1."""
    name, only = type(teacher).__name__, _only(teacher, stacks)
    if not isinstance(layers, Mapping) and only is not None:
        return {only: _numbers(name, only, layers)}
    if not isinstance(layers, Mapping) or not layers or not stacks[0].name:
        form = "a list of layer numbers"
        if only is None:
            form = "a mapping {" + ", ".join(f'"{stack.name}": [...]' for stack in stacks) + "}"
        raise ConfigError(f"layers of {name} are given as {form}; found {layers!r}")
    chosen: dict[Stack, list[int]] = {}
    problems: list[str] = []
    for key, numbers in layers.items():
        stack = next((stack for stack in stacks if key in stack.aliases), None)
        if stack is None or stack in chosen:
            names = [stack.name for stack in stacks]
            known = " and ".join(repr(name) for name in names)
            problems.append(f"layers name {known}; found {list(layers)}.{nearest(str(key), names)}")
            continue
        chosen[stack] = []
        try:
            chosen[stack] = _numbers(name, stack, numbers)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return chosen


def _only(teacher: PreTrainedModel, stacks: Sequence[Stack]) -> Stack | None:
    """The stack that a list of numbers means: the only one, or those the model itself calls its hidden layers."""
    if len(stacks) == 1:
        return stacks[0]
    key = teacher.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    own = (stack for stack in stacks if not stack.scope and stack.key == key)
    return None if teacher.config.is_encoder_decoder else next(own, None)


def _numbers(name: str, stack: Stack, chosen: Any) -> list[int]:
    if not isinstance(chosen, Sequence) or isinstance(chosen, str) or any(type(n) is not int for n in chosen):
        raise ConfigError(f"layers are whole numbers in a list; found {chosen!r}")
    numbers = [n + stack.depth + 1 if n < 0 else n for n in chosen]
    wrong = [n for n, number in zip(chosen, numbers, strict=True) if not 1 <= number <= stack.depth]
    if wrong or not numbers:
        raise ConfigError(f"layers {list(chosen)}: {name} has layers 1 to {stack.depth}; found {wrong or 'none'}")
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice or numbers != sorted(numbers):
        what = (
            f"hold {listed([str(one) for one in twice])} more than once" if twice else "are not in the teacher's order"
        )
        warnings.warn(f"layers {list(chosen)} of {name} {what}: the student has them so", stacklevel=4)
    return numbers


def _saved(teacher: PreTrainedModel, settings: dict[str, Any]) -> PretrainedConfig:
    """The student's config, which is what loading it gives."""
    config = config_from(teacher, settings)
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        loaded = type(config).from_pretrained(folder)
    one, other = (json.loads(json.dumps(c.to_dict(), default=str)) for c in (config, loaded))
    changed = [key for key in one if one[key] != other.get(key) and key != "_name_or_path"]
    if changed:
        raise ConfigError(f"a student cut so could not be loaded again: its config loses {', '.join(changed)}")
    return config


def _check(
    teacher: PreTrainedModel, student: PreTrainedModel, cuts: Cuts, fit: Fit, given: Mapping[str, Any] | None
) -> Mapping[str, Any] | str:
    """Run both; warn where depth enters a layer's arithmetic, and where a layer was not run.

    Returns:
        Inputs on which the teacher runs, made up where none are given; else why there are none.

    Raises:
        ConfigError: the student does not run as the teacher does, or what its first layer took over serves no other.
    """
    name, found, why = type(teacher).__name__, [], "the inputs do not reach them"
    depth = [f"layer {p.number} as layer {p.place}: {text}" for p in fit.placings for text in p.depth]
    unseen = [path for stack in cuts for path in stack.paths]
    inputs: Mapping[str, Any] | str = ""
    try:
        inputs = _made_up(teacher) if given is None else given
        theirs = teacher_calls(teacher, cuts, inputs)
    except Exception as error:
        if given is not None:
            raise ConfigError(f"{name} does not run on these inputs: {error}") from error
        inputs = why = f"no inputs can be made up for it ({type(error).__name__}: {error})"
    if not isinstance(inputs, str):
        try:
            probe = probe_layers(teacher, student, cuts, inputs, theirs)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{name} cut so does not run on inputs that {name} runs on: {said}") from error
        found, unseen = probe.differences, probe.unseen
    if fit.shared and (found or unseen):
        why = str(found[0]) if found else f"whether it serves other layers is not known: {why}. Give inputs"
        raise ConfigError(f"layer 1 of {name} has {', '.join(fit.shared[:4])}, which the student's needs too; {why}")
    if found and not found[0].path:
        raise ConfigError(f"the layers of {name} are a few modules that take turns by their number: {found[0]}")
    if depth or found:
        reasons = "; ".join(dict.fromkeys([*map(str, found), *depth]))
        warnings.warn(f"depth enters the arithmetic of {name}'s layers: {reasons}", stacklevel=3)
    if unseen:
        warnings.warn(
            f"the layers of {name} in {', '.join(unseen)} were compared by their weights and settings alone, not run: "
            f"{why}. Give student_from_teacher inputs to run them",
            stacklevel=3,
        )
    return inputs


def _made_up(teacher: nn.Module) -> dict[str, Any]:
    """Inputs for a model; pictures and sounds are noise, in which no two places are alike."""
    noise = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(value.shape, generator=noise) if value.is_floating_point() else value
        for key, value in made_up_inputs(teacher).items()
    }

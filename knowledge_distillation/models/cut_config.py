"""The `distill_config` that maps the layers of a cut student onto those they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..config.layer_entries import layer_entries
from ..errors import ConfigError
from ..features.capture import Capture
from ..features.catalogue import Catalogue, catalogue
from ..features.preserve import preserved, resting
from .cut_probe import moved, run
from .cut_settings import Cuts
from .cut_stacks import Stack

_NUMBERED = ("layer", "encoder_layer", "decoder_layer")
Pairs = Sequence[tuple[int, int]]
_TAUGHT = ("hidden_states", "logits")
Form = tuple[str, tuple[int, ...]]
Forms = tuple[dict[str, Form], dict[str, Form]]  # of teacher and student


def matching_config(
    teacher: nn.Module, student: nn.Module, cuts: Cuts, inputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Entries for whatever both offer, in equal shapes: the embedding and each kept layer, and the logits.

    A stack whose layers have no numbers among a model's features, as the towers of CLIP, is mapped by the paths of its
    modules.

    Raises:
        ConfigError: the model's features cannot be named, or there are none that both offer.
    """
    try:
        with resting(teacher), resting(student):
            theirs, ours = catalogue(teacher, inputs), catalogue(student, inputs)
        for feature in _without_gradient(student, ours, inputs):
            del ours.offers[feature]
    except Exception as error:
        raise ConfigError(
            f"the features of {type(teacher).__name__} have no names: {error}. Write the list"
        ) from error
    entries: list[dict[str, Any]] = []
    forms = (_forms(teacher, cuts, inputs), _forms(student, cuts, inputs, gradient=True))
    for stack, numbers in cuts.items():
        pairs = [(number, place) for place, number in enumerate(numbers, start=1)]
        name = next((name for name in _NUMBERED if _is_named(theirs, stack, name)), None)
        if name is None:
            entries += _by_path(forms, stack, pairs)
        else:
            entries += _by_number(theirs, ours, name, pairs)
    entries += _of_outputs(theirs, ours, bool(entries))
    if not entries:
        name = type(teacher).__name__
        raise ConfigError(f"{name} offers nothing that its cut student offers in equal shapes: give inputs that do")
    return entries


def _of_outputs(theirs: Catalogue, ours: Catalogue, mapped: bool) -> Iterator[dict[str, Any]]:
    """The logits; of a model that has none, and of which no layer is mapped, its first output."""
    logits = Feature("output", "logits")
    others = [feature for feature in theirs.offers if feature.layer == "output" and not mapped]
    for feature in [logits] if logits in theirs.offers else others:
        if _same(theirs, ours, feature, feature):
            offer = theirs.offers[feature]
            classes = feature == logits and offer.shape[-1] > 1 and offer.kind in ("vector", "tokens")
            yield {
                "teacher": str(feature),
                "student": str(feature),
                "loss": "kl_divergence" if classes else "mse",
            }
            return


def _by_number(theirs: Catalogue, ours: Catalogue, name: str, pairs: Pairs) -> Iterator[dict[str, Any]]:
    embedding = Feature(f"{name.removesuffix('layer')}embedding_layer", "embedding")
    if _same(theirs, ours, embedding, embedding):
        yield {"teacher": str(embedding), "student": str(embedding), "loss": "mse"}
    for output in ("hidden_states", "attention"):
        both = [
            (number, place)
            for number, place in pairs
            if _same(theirs, ours, Feature(f"{name}{number}", output), Feature(f"{name}{place}", output))
        ]
        if both:
            yield from layer_entries(both, [output], name)


def _is_named(theirs: Catalogue, stack: Stack, name: str) -> bool:
    """Whether the numbered layers of that name are these, seen from where their tensors lie."""
    if theirs.depth(name) != stack.depth:
        return False
    places = {offer.location.path for feature, offer in theirs.offers.items() if feature.layer.startswith(name)}
    if places == {""}:  # all are fields of the model's own output: which stack they are of, their name says
        return name == "layer" or name.removesuffix("_layer") in f"{stack.name}.{'.'.join(stack.paths)}".split(".")
    return not stack.paths or any(place.startswith(f"{path}.") for place in places for path in stack.paths)


def _by_path(forms: Forms, stack: Stack, pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Layers by the paths of their modules, where the inputs reach them and they are trained."""
    for path in stack.paths[:1]:
        both = [(number - 1, place - 1) for number, place in pairs]
        outputs = [
            (forms[0].get(f"{path}.{number}"), forms[1].get(f"{path}.{place}", ("", ()))) for number, place in both
        ]
        if all(theirs == ours for theirs, ours in outputs) and len({ours[0] for _, ours in outputs}) == 1:
            yield from layer_entries(both, [outputs[0][1][0]], f"{path}.")


def _forms(model: nn.Module, cuts: Cuts, inputs: Mapping[str, Any], gradient: bool = False) -> dict[str, Form]:
    """Path -> how a layer gives out its first tensor, its name and shape: of layers that the inputs reach.

    Args:
        gradient: only of layers that a gradient leaves.
    """
    forms: dict[str, Form] = {}
    seen: set[str] = set()
    rows = {value.shape[:1] for value in inputs.values() if isinstance(value, Tensor) and value.dim()}
    with ExitStack() as stack:
        for path in (path for cut in cuts for path in cut.paths):
            for name, layer in model.get_submodule(path).named_children():

                def after(module: nn.Module, args: Any, output: Any, name: str = f"{path}.{name}") -> None:
                    first = output if isinstance(output, Tensor) else output[0]
                    fits = isinstance(first, Tensor) and first.shape[:1] in rows and first.requires_grad >= gradient
                    if name not in seen and fits:
                        forms[name] = ("output" if first is output else "output[0]", tuple(first.shape))
                    seen.add(name)  # a path means the first call

                stack.callback(layer.register_forward_hook(after).remove)
        run(model, inputs, gradient)
    return forms


def _without_gradient(student: nn.Module, ours: Catalogue, inputs: Mapping[str, Any]) -> list[Feature]:
    """States and logits that no gradient leaves: a model may have frozen parts, or run some of them without one."""
    wanted = {f: offer.location for f, offer in ours.offers.items() if f.output in ("embedding", *_TAUGHT)}
    capture = Capture(student, wanted)
    try:
        with resting(student), preserved(student), torch.enable_grad():
            taken = capture(moved(inputs, student))
    finally:
        capture.close()
    return [feature for feature, tensor in taken.items() if isinstance(tensor, Tensor) and not tensor.requires_grad]


def _same(theirs: Catalogue, ours: Catalogue, one: Feature, other: Feature) -> bool:
    """Both offer it, of one kind and shape."""
    a, b = theirs.find(one), ours.find(other)
    return a is not None and b is not None and (a.kind, a.shape) == (b.kind, b.shape)

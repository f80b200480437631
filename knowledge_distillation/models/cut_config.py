"""The `distill_config` that maps the layers of a cut student onto those they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..config.entry import Feature
from ..config.layer_entries import layer_entries
from ..errors import ConfigError
from ..features.catalogue import Catalogue, catalogue
from ..features.preserve import resting
from .cut_probe import run
from .cut_settings import Cuts
from .cut_stacks import Stack

_NUMBERED = ("layer", "encoder_layer", "decoder_layer")
Pairs = Sequence[tuple[int, int]]
Forms = tuple[dict[str, str], dict[str, str]]  # of teacher and student


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
    except Exception as error:
        raise ConfigError(
            f"the features of {type(teacher).__name__} have no names: {error}. Write the list"
        ) from error
    entries: list[dict[str, Any]] = []
    forms = (_forms(teacher, cuts, inputs), _forms(student, cuts, inputs))
    for stack, numbers in cuts.items():
        pairs = [(number, place) for place, number in enumerate(numbers, start=1)]
        name = next((name for name in _NUMBERED if _is_named(theirs, stack, name)), None)
        if name is None:
            entries += _by_path(student, forms, stack, pairs)
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
            classes = feature == logits and theirs.offers[logits].shape[-1] > 1
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
    places = [offer.location.path for feature, offer in theirs.offers.items() if feature.layer.startswith(name)]
    return not stack.paths or any(place.startswith(f"{path}.") for place in places for path in stack.paths)


def _by_path(student: nn.Module, forms: Forms, stack: Stack, pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Layers by the paths of their modules, where the inputs reach them and they are trained."""
    for path in stack.paths[:1]:
        both = [(number - 1, place - 1) for number, place in pairs]
        names = [[f"{path}.{n}" for n in chosen] for chosen in zip(*both, strict=True)]
        trained = any(p.requires_grad for p in student.get_submodule(path).parameters())
        outputs = {form.get(name) for form, own in zip(forms, names, strict=True) for name in own}
        if trained and len(outputs) == 1 and (output := outputs.pop()):
            yield from layer_entries(both, [output], f"{path}.")


def _forms(model: nn.Module, cuts: Cuts, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Path -> the name of a layer's first tensor, of layers that the inputs reach."""
    forms = {}
    with ExitStack() as stack:
        for path in (path for cut in cuts for path in cut.paths):
            for name, layer in model.get_submodule(path).named_children():

                def after(module: nn.Module, args: Any, output: Any, name: str = f"{path}.{name}") -> None:
                    forms[name] = "output" if isinstance(output, Tensor) else "output[0]"

                stack.callback(layer.register_forward_hook(after).remove)
        run(model, inputs)
    return forms


def _same(theirs: Catalogue, ours: Catalogue, one: Feature, other: Feature) -> bool:
    """Both offer it, of one kind and shape."""
    a, b = theirs.find(one), ours.find(other)
    return a is not None and b is not None and (a.kind, a.shape) == (b.kind, b.shape)

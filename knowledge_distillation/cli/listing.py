"""Every name a model offers, as a table, from inputs made up for it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
import yaml
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForImageClassification

from .. import models, presets
from ..errors import ConfigError, nearest
from ..features.catalogue import Catalogue, catalogue
from ..features.made_up_inputs import made_up_inputs, text_and_picture


def list_features(name: str) -> Table:
    """The features of a model: a directory, a hub name, or a `model_type`, of which nothing but shapes is computed.

    Raises:
        ConfigError: there is no such model, it cannot be built here, or it runs on no inputs made up for it.
    """
    config = _config(name)
    with nullcontext() if config.architectures else _shapes_alone():
        try:
            model = load_any(name).eval()
        except (ImportError, OSError, ValueError) as error:
            raise ConfigError(f"{name} cannot be built here: {_said(error)}") from error
        names = _catalogue(model)
    table = Table(title=f"{type(model).__name__}: features for a distill_config", title_justify="left")
    for column in ("feature", "kind", "shape on 2 rows", "taken from"):
        table.add_column(column, overflow="fold", no_wrap=column == "feature")  # a name is copied whole
    for feature, offered in names.offers.items():
        place = offered.location
        item = "" if place.item is None or place.source == "attention" else f"[{place.item}]"
        where = f"{place.path}.{place.source}{item}" if place.path else f"the model's own {place.item}"
        table.add_row(str(feature), offered.kind, "×".join(map(str, offered.shape)), where)
    prefix = names.model_type.replace("-", "_")
    layer = "layer4" if any(feature.layer == "layer4" for feature in names.offers) else "layer1"
    table.caption = (
        f"{layer} is also {prefix}_{layer}, layer-1 the last; any module path has .output, .input and .output[1]"
    )
    for note in names.notes:
        table.caption += f"\nnote: {note}"
    return table


def _catalogue(model: nn.Module) -> Catalogue:
    """The names of a model, traced over text or a picture, else over both."""
    said: list[str] = []
    for make_up in (made_up_inputs, text_and_picture):
        try:
            return catalogue(model, make_up(model))
        except Exception as error:  # whatever a model raises at inputs that do not fit it
            said.append(_said(error))
    raise ConfigError(
        f"{type(model).__name__} runs neither on made-up text nor on a made-up picture, nor on both "
        f"({'; '.join(dict.fromkeys(said))}). "
        "In Python, knowledge_distillation.features.catalogue.catalogue(model, batch).offers has its names, "
        "traced over a batch of your own"
    )


def _said(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Build and run models on the meta device: no weights in memory, whatever their size."""
    with torch.device("meta"), _Answered():
        yield


class _Answered(TorchDispatchMode):
    """Answers where code reads a number that is not there, such as whether every token is attended to: yes, or 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


def load_any(name: str) -> nn.Module:
    """The model under a name with whatever head it was saved with, else its bare form."""
    config = _config(name)
    bare = AutoModel if type(config) in AutoModel._model_mapping else AutoModelForImageClassification
    if not config.architectures:
        return bare.from_config(config)
    room = models if config.architectures[0] in models.__all__ else transformers
    return getattr(room, config.architectures[0], bare).from_pretrained(name)


def list_presets() -> Table:
    """The presets: names, arguments, and what each says of itself."""
    table = Table(title="presets: distill presets NAME shows the entries", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("arguments")
    table.add_column("what it does")
    for name in presets.list_presets():
        parameters = inspect.signature(presets.METHODS[name]).parameters.values()
        options = (p for p in parameters if p.name not in ("teacher", "student", "regression"))
        shown = (p.name if p.default is p.empty else f"{p.name}={p.default}" for p in options)
        summary = (inspect.getdoc(presets.METHODS[name]) or "").partition("\n\n")[0]
        table.add_row(name, "\n".join(shown), " ".join(summary.split()))
    return table


def show_preset(name: str, teacher: str | None, student: str | None) -> str:
    """The entries of a preset as YAML, for two models by name; none: a BERT of 12 layers and one of 3."""
    teacher_config = _config(teacher or ("resnet" if name in ("ofd", "margin_relu") else "bert"))
    student_config = _config(student) if student else copy.deepcopy(teacher_config)
    if not student and hasattr(student_config, "num_hidden_layers"):
        student_config.num_hidden_layers = max(1, teacher_config.num_hidden_layers // 4)
    options = {"teacher_names": ["first", "second"]} if name == "meal_v2" else {}
    entries = presets.expand(name, teacher_config, student_config, **options)
    lines = (yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1 << 16) for entry in entries)
    head = f"# teacher: {_size(teacher_config)}; student: {_size(student_config)}"
    return "\n".join([head, "distill_config:", *(f"  - {line.strip()}" for line in lines)])


def _size(config: Any) -> str:
    depth = getattr(config, "num_hidden_layers", None)
    return config.model_type.rpartition(".")[2] + (f" with {depth} layers" if depth else "")


def _config(name: str) -> Any:
    model_types = CONFIG_MAPPING.keys()
    if name in model_types:
        return AutoConfig.for_model(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model {name!r}: no such directory, hub name or model_type.{nearest(name, model_types)}"
        ) from error

"""The models of a recipe: loaded by name, or built from scratch out of a mapping, with the head of the task."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..data.image_format import is_local
from ..errors import ConfigError, nearest, shown
from ..models.classes import are_names, in_common
from ..models.weights import load_weights
from ..storage.sentence_folder import read_sentence_folder

logger = logging.getLogger(__name__)

# Of a model that a recipe describes.
MOST_PARAMETERS = 500_000_000
MOST_MODULES = 20_000
MOST_CLASSES = 100_000

_CLASSES = ("num_labels", "id2label", "label2id", "problem_type")
# Fields for configs that have the one named beside them, and not for others.
_OF_SOME_FAMILIES = {name: name for name in ("image_size", "num_channels", "sentence_pairs")}
_OF_SOME_FAMILIES["sep_token_id"] = "sentence_pairs"


@dataclass(frozen=True)
class Head:
    """What a task wants of a model.

    Args:
        auto: the Auto class of transformers.
        fields: of the config, which data and task say.
        task: its name.
    """

    auto: str
    fields: Mapping[str, Any]
    task: str


def build_model(model: Any, head: Head, seed: int, side: str = "teacher") -> Any:
    """A model with a head: loaded by name, or built from scratch out of a mapping.

    Args:
        side: what the recipe calls the model, for errors.
    """
    from transformers import set_seed

    set_seed(seed)
    try:
        if isinstance(model, str):
            classes = {key: head.fields[key] for key in _CLASSES if key in head.fields}
            return from_pretrained(head.auto, model, f"model for {head.task}", **classes)
        return _built(model, head)
    except ConfigError as error:
        raise ConfigError(f"recipe: {side}: {str(error).removeprefix('recipe: ')}") from error


def _built(model: Any, head: Head) -> Any:
    """A model built from scratch out of a mapping."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    if not isinstance(model, Mapping) or "model_type" not in model:
        raise ConfigError(f"a model is a name, or a mapping with model_type; found {shown(model)}")
    options = dict(model)
    kind, zero = options.pop("model_type"), options.pop("zero_residual_branches", False)
    weights = options.pop("weights", None)
    if weights is not None and not isinstance(weights, str):
        raise ConfigError(f"weights of a model is the path of a file; found {shown(weights)}")
    if not isinstance(zero, bool):
        raise ConfigError(f"zero_residual_branches is true or false; found {shown(zero)}")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = nearest(str(kind), CONFIG_MAPPING)
        raise ConfigError(f"model_type {shown(kind)} is not one transformers knows.{near}")
    config = AutoConfig.for_model(kind)
    unknown = [key for key in options if not isinstance(key, str) or not hasattr(config, key)]
    if unknown:
        texts = [f"{shown(key)}.{nearest(str(key), config.to_dict())}" for key in unknown]
        raise ConfigError(f"a {kind} config has no field {' '.join(texts)}")
    if isinstance(options.get("num_labels"), int) and options["num_labels"] > MOST_CLASSES:
        raise ConfigError(f"num_labels is at most {MOST_CLASSES:,}; found {options['num_labels']}")
    own = () if not options.keys() & {*_CLASSES} else _CLASSES  # what the recipe says of classes goes together
    sizes = {
        key: value
        for key, value in head.fields.items()
        if key not in own and hasattr(config, _OF_SOME_FAMILIES.get(key, "model_type"))
    }
    try:
        with _of_moderate_size():
            built = getattr(transformers, head.auto).from_config(AutoConfig.for_model(kind, **{**sizes, **options}))
    except Exception as error:  # a config checks itself, each family with errors of its own
        raise ConfigError(
            f"cannot build a {kind} for {head.task}: {shorten(str(error), 300, placeholder='...')}"
        ) from error
    if zero:
        zero_residual_branches(built)
    if weights is not None:
        load_weights(built, weights)
    return built


@contextmanager
def _of_moderate_size() -> Iterator[None]:
    """Break off the making of a model that grows too large, before its parameters are filled."""
    from torch.nn.modules import module as registration

    made = {"parameters": 0, "modules": 0}

    def count(module: Any, name: str, part: Any) -> None:
        kind = "modules" if hasattr(part, "forward") else "parameters"
        made[kind] += part.numel() if kind == "parameters" and part is not None else 1
        most = MOST_MODULES if kind == "modules" else MOST_PARAMETERS
        if made[kind] > most:
            raise ConfigError(f"it has more than {most:,} {kind}. A model that was saved may: name its directory")

    hooks = (
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def zero_residual_branches(model: Any) -> None:
    """Let every layer begin as the identity: the last linear map of each residual branch is set to zero.

    Without it a deep post-norm encoder that starts from nothing often does not train at all.
    Source: after Zhang, Dauphin and Ma, Fixup Initialization, 2019.
    """
    last_maps = [module for path, module in model.named_modules() if path.endswith("output.dense")]
    if not last_maps:
        raise ConfigError(
            f"recipe: zero_residual_branches needs layers built as BERT's; {type(model).__name__} has none"
        )
    for module in last_maps:
        module.weight.data.zero_()


def from_pretrained(auto: str, name: str, what: str, **arguments: Any) -> Any:
    """A saved model or tokenizer by one of transformers' Auto classes; `what` says which in errors.

    Raises:
        ConfigError: it is not there, cannot be loaded, or has other classes than the task.
    """
    import transformers

    looks_local = is_local(name)
    path = Path(os.path.expanduser(name))
    said = read_sentence_folder(path) if looks_local and os.path.isdir(path) else None
    path = path / said.transformer if said else path
    needed = "tokenizer_config.json" if auto == "AutoTokenizer" else "config.json"
    if looks_local and not os.path.isdir(path):
        raise ConfigError(f"recipe: {name!r}: no such directory, for the {what}")
    if looks_local and not (path / needed).exists():
        files = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        inner = path / "student"
        hint = f". Nearest: {inner}" if (inner / needed).exists() else ""
        raise ConfigError(f"recipe: no {what} in {name!r}: it holds {files}{hint}")
    where = str(path) if looks_local else name
    try:
        if "num_labels" in arguments:
            arguments = _classes_of(transformers.AutoConfig.from_pretrained(where), name, what, arguments)
        loaded = getattr(transformers, auto).from_pretrained(where, **arguments)
        if said is not None and auto == "AutoModel":
            said.tell(loaded.config)
        return loaded
    except ConfigError:
        raise
    except Exception as error:  # a file that is cut short has errors of its own in every format
        if not looks_local and isinstance(error, OSError) and not path.exists():
            raise ConfigError(
                f"recipe: {_not_found(name, what)}: {shorten(str(error), 200, placeholder='...')}"
            ) from error
        raise ConfigError(
            f"recipe: cannot load {what} {name!r}: {shorten(str(error), 300, placeholder='...')}"
        ) from error


def _not_found(name: str, what: str) -> str:
    """That a name is no folder here, and what the hub had to do with it."""
    from huggingface_hub import constants

    hub = "is not asked (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "gave none that loads"
    return f"cannot load {what} {name!r}: there is no such folder here, and the hub {hub}"


def _classes_of(config: Any, name: str, what: str, classes: dict[str, Any]) -> dict[str, Any]:
    """What is to be said of the classes of a saved model: nothing of their names where it has a head.

    A run compares these with the data's. Names that have nothing in common with those are replaced here.
    """
    heads = ("ForSequenceClassification", "ForImageClassification", "ForTokenClassification")
    if not any(str(one).endswith(heads) for one in config.architectures or ()):
        return classes
    if config.num_labels != classes["num_labels"]:
        raise ConfigError(
            f"recipe: cannot load {what} {name!r}: it has {config.num_labels} classes, and the task "
            f"{classes['num_labels']}"
        )
    mine, theirs = ([names[i] for i in sorted(names)] for names in (classes.get("id2label") or {}, config.id2label))
    if not are_names(mine) or not are_names(theirs) or in_common(mine, theirs):
        return {"num_labels": classes["num_labels"]}
    first = f"its class 0 is {theirs[0]!r}, and that of the data {mine[0]!r}"
    logger.warning("%s %r: %s. Classes go by number", what, name, first)
    return classes

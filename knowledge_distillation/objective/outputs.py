"""The features of whole model outputs, for the loss model alone in anybody's loop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config.entry import DistillConfig, Entry, Feature
from ..errors import ConfigError, nearest
from ..features.adaptors import OutputAdaptor, flatten, readable, ready_made_output

_MODEL_TYPE = re.compile(r"^(?!encoder_|decoder_)\w+?_(?=(?:encoder_|decoder_)?layer\d)")


def features_of_outputs(
    config: DistillConfig,
    adaptors: tuple[OutputAdaptor | None, OutputAdaptor | None],
    teacher_output: Any,
    student_output: Any,
) -> tuple[dict[Feature, Tensor], dict[Feature, Tensor]]:
    """The teacher's features, detached, and the student's, also under the spellings the config uses.

    Raises:
        ConfigError: the config names several teachers, or an adaptor fails.
    """
    teachers = {feature.model for entry in config.entries for feature in entry.teacher}
    if len(teachers) > 1:
        named = ", ".join(sorted(name or "one without a name" for name in teachers))
        raise ConfigError(
            f"alone, the loss model gets the output of one teacher, and the config names {named}: "
            "use KnowledgeDistiller"
        )
    student = _adapted(adaptors[1], student_output, "student")
    teacher = {} if teacher_output is None else _adapted(adaptors[0], teacher_output, "teacher")
    detached = {feature: tensor.detach() for feature, tensor in teacher.items()}
    return _spelled(config, detached), _spelled(config, student)


def see_features(entry: Entry, student: Mapping[Feature, Tensor], teacher: Mapping[Feature, Tensor]) -> None:
    """Raise where an output lacks a feature of the entry."""
    for features, names, who in ((student, entry.student, "student"), (teacher, entry.teacher, "teacher")):
        missing = next((str(name) for name in names if name not in features), None)
        if missing:
            near = nearest(missing, map(str, features))
            raise ConfigError(f"{missing}: the {who}'s output has no such feature.{near}")


def _spelled(config: DistillConfig, features: dict[Feature, Tensor]) -> dict[Feature, Tensor]:
    """Add the `{model_type}_layer{n}` spellings the config uses for ready-made `layer{n}`."""
    for name in {f for entry in config.entries for f in entry.student + entry.teacher} - set(features):
        layer = _MODEL_TYPE.sub("", name.layer)
        plain = next((f for f in features if (f.layer, f.output) == (layer, name.output)), None)
        if plain:
            features[name] = features[plain]
    return features


def _adapted(adaptor: OutputAdaptor | None, output: Any, who: str) -> dict[Feature, Tensor]:
    try:
        return flatten((adaptor or ready_made_output)(readable(output)))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"the {who}'s output adaptor failed: {type(error).__name__}: {error}. In a loop of your own the models "
            "have to give what it takes: output_hidden_states=True, and for maps output_attentions=True with "
            "attn_implementation='eager'"
        ) from error

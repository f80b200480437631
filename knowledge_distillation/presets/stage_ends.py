"""Where the stages of a model end: the last layer at each size of its maps, seen in a pass that computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from ..config.entry import Feature
from ..errors import ConfigError
from ..losses.activation import batch_norm_of
from .mapping import config_of

PARTS = 4  # into which a model is divided whose layers all have one size
_DEFAULT_SIZE = 224
_RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class ModelStage:
    """The end of a stage.

    Args:
        layer: `layer{n}` of the model.
        size: height and width of its map; None for tokens.
        activation: path of the ReLU that gives it out; empty where none does.
        normalised: a BatchNorm of its channels comes before that ReLU.
    """

    layer: int
    size: tuple[int, ...] | None = None
    activation: str = ""
    normalised: bool = False

    @property
    def after(self) -> str:
        """The stage's output."""
        return f"layer{self.layer}.hidden_states"

    @property
    def before(self) -> str:
        """What goes into its ReLU; the output itself where it has none."""
        return f"{self.activation}.input" if self.activation else self.after


def paired_stages(teacher: Any, student: Any) -> list[tuple[ModelStage, ModelStage]]:
    """The stages of two models, or of their configs, paired from the last to the first, in their order.

    Stages are the last layers at each size of maps. A model whose layers all have one size has as many stages as the
    other, at most four, at equal parts of its depth; beside one that has maps it is its last layer alone.

    Raises:
        ConfigError: a model is missing, or does not say how many layers it has.
    """
    configs = [config_of(model) for model in (teacher, student)]
    if None in configs:
        raise ConfigError("this method needs a teacher and a student, whose layers it pairs")
    sizes = [getattr(config, "image_size", None) for config in configs]
    size = next(filter(None, sizes), _DEFAULT_SIZE)
    layers = [_layers(config, own or size) for config, own in zip(configs, sizes, strict=True)]
    if layers[0][0].size is None and layers[1][0].size is None:
        number = min(PARTS, *map(len, layers))
        ends = [[of_model[round(len(of_model) * i / number) - 1] for i in range(1, number + 1)] for of_model in layers]
    else:
        ends = [_ends(of_model) for of_model in layers]
        number = min(map(len, ends))
    return list(zip(ends[0][-number:], ends[1][-number:], strict=True))


def _ends(layers: Sequence[ModelStage]) -> list[ModelStage]:
    following = [*layers[1:], None]
    return [
        layer for layer, next_one in zip(layers, following, strict=True) if not next_one or next_one.size != layer.size
    ]


def _layers(config: Any, size: Any) -> list[ModelStage]:
    """Every layer of a model."""
    if type(config) in AutoModelForImageClassification._model_mapping:
        return _of_images(config, size)
    depth = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_encoder_decoder", False) or not isinstance(depth, int):
        raise ConfigError(f"the layers of {type(config).__name__} cannot be told: write the entries out")
    return [ModelStage(number) for number in range(1, depth + 1)]


def _of_images(config: Any, size: Any) -> list[ModelStage]:
    height, width = (size, size) if isinstance(size, int) else size
    outputs: list[tuple[str, Tensor]] = []  # of its ReLUs, by path
    try:
        with torch.device("meta"), torch.random.fork_rng([]), torch.no_grad():
            model = AutoModelForImageClassification.from_config(config).eval()
            for path, module in model.named_modules():
                if isinstance(module, _RECTIFIERS):
                    module.register_forward_hook(lambda m, i, output, path=path: outputs.append((path, output)))
            pixels = torch.zeros(2, getattr(config, "num_channels", 3), height, width)
            states = model(pixels, output_hidden_states=True).hidden_states[1:]
    except Exception as error:  # a family that cannot be built without memory, or has no such output
        raise ConfigError(
            f"the stages of {type(config).__name__} cannot be seen ({error}): write the entries out"
        ) from error
    return [_stage(number, state, outputs, model) for number, state in enumerate(states, start=1)]


def _stage(number: int, state: Tensor, outputs: Sequence[tuple[str, Tensor]], model: nn.Module) -> ModelStage:
    path = next((path for path, output in outputs if output is state), "")
    size = tuple(state.shape[2:]) if state.dim() == 4 else None
    try:
        normalised = bool(path) and batch_norm_of(model, [Feature(path, "input")], state.shape[1]) is not None
    except ConfigError:
        normalised = False
    return ModelStage(number, size, path, normalised)

"""Which teacher layer teaches which student layer: strategies that return an ordinary `distill_config`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config.layer_entries import Entries, layer_entries
from ..errors import ConfigError, nearest, shown

Pairs = list[tuple[int, int]]  # of a teacher and a student layer
Mapped = str | Sequence[Sequence[int]]  # a strategy by name, or pairs

# teacher depth N and student depth M -> pairs
STRATEGIES: Mapping[str, Callable[[int, int], Pairs]] = {
    "uniform": lambda n, m: [(round(i * n / m), i) for i in range(1, m + 1)],
    "last": lambda n, m: [(n - m + i, i) for i in range(1, m + 1)],
    "skip": lambda n, m: [(i * n // m, i) for i in range(1, max(m, 2))],
}


def uniform(teacher: Any, student: Any, outputs: Sequence[str] = ("hidden_states",), **entry: Any) -> Entries:
    """Every student layer from the teacher layer at the same relative depth: m from m * N / M.

    Args:
        teacher, student: transformers models, or their configs.
        outputs: what of each layer is compared.
        **entry: further keys of the entries, such as `loss` (`mse` where left out) or `weight`.

    Source: Jiao et al., TinyBERT, 2020, section 3.1; there M divides N, here the depth is rounded.
    """
    return layer_entries(pairs_of("uniform", teacher, student), outputs, **entry)


def last(teacher: Any, student: Any, outputs: Sequence[str] = ("hidden_states",), **entry: Any) -> Entries:
    """The student's layers from as many last layers of the teacher; arguments as for `uniform`.

    Source: the top strategy of Jiao et al., TinyBERT, 2020. PKD-Last of Sun et al., Patient Knowledge Distillation,
    2019, leaves out the last pair of them.
    """
    return layer_entries(pairs_of("last", teacher, student), outputs, **entry)


def skip(teacher: Any, student: Any, outputs: Sequence[str] = ("hidden_states",), **entry: Any) -> Entries:
    """Every student layer but the last, which the logits teach already, from every (N / M)-th teacher layer.

    Arguments as for `uniform`. Source: PKD-Skip of Sun et al., Patient Knowledge Distillation, 2019.
    """
    return layer_entries(pairs_of("skip", teacher, student), outputs, **entry)


def pairs_of(mapping: Mapped, teacher: Any, student: Any) -> Pairs:
    """(teacher layer, student layer) pairs by the name of a strategy, for two models or configs; or the pairs given.

    Raises:
        ConfigError: no strategy has this name, these are no pairs, or the models have no such layers.
    """
    check_mapping(mapping, STRATEGIES)
    if isinstance(mapping, str):
        return STRATEGIES[mapping](*depths(teacher, student))
    return [(teacher_layer, student_layer) for teacher_layer, student_layer in mapping]


def check_mapping(mapping: Any, names: Iterable[str]) -> None:
    """Raise a ConfigError unless this is one of the names, or a list of pairs of layers."""
    if isinstance(mapping, str):
        strategies = list(names)
        if mapping not in strategies:
            near = nearest(mapping, strategies)
            raise ConfigError(
                f"mapping is one of {', '.join(strategies)}, or pairs of layers; found {shown(mapping)}.{near}"
            )
    elif not mapping or not isinstance(mapping, (list, tuple)) or not all(map(_is_pair, mapping)):
        raise ConfigError(f"mapping is a list of [teacher layer, student layer] pairs; found {shown(mapping)}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, (list, tuple)) and [type(layer) for layer in pair] == [int, int]


def config_of(model: Any) -> Any:
    """The config of a model, or the config that was given in its place."""
    return getattr(model, "config", model)


def depths(teacher: Any, student: Any) -> tuple[int, int]:
    """The numbers of layers of two models, or of their configs.

    Raises:
        ConfigError: one of them does not say, has two stacks of layers, or the student is the deeper one.
    """
    configs = [config_of(model) for model in (teacher, student)]
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        raise ConfigError(
            "an encoder-decoder has two stacks of layers: write its entries out, with encoder_layer{…} and "
            "decoder_layer{…}"
        )
    numbers: list[Any] = [getattr(config, "num_hidden_layers", None) for config in configs]
    if not all(isinstance(depth, int) for depth in numbers) or numbers[1] > numbers[0]:
        raise ConfigError(
            "a layer mapping pairs the layers of transformers by number and needs a teacher at least as deep as the "
            f"student; found depths {numbers}"
        )
    return numbers[0], numbers[1]

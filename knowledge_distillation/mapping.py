"""Which teacher layer teaches which student layer: strategies that return an ordinary `distill_config`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adaptors import DataAdaptor, accepted, adapted, named, same_inputs
from .capture import Capture
from .config import Feature
from .context import make_context, mask_keys, mask_of
from .errors import ConfigError, DataError, DistillationError, nearest
from .evaluators import resting
from .features import catalogue, first_rows, preserved

Entries = list[dict[str, Any]]
Pairs = list[tuple[int, int]]  # of a teacher and a student layer
Mapped = str | Sequence[Sequence[int]]  # a strategy by name, or pairs


class Proposal(list[dict[str, Any]]):
    """A `distill_config`, with `pairs` of a teacher and a student layer; `why`, the table they were chosen by, as
    text; and `similarity`, student layers by teacher layers, in [0, 1].
    """

    def __init__(self, entries: Entries, pairs: Pairs, why: str, similarity: Tensor) -> None:
        super().__init__(entries)
        self.pairs, self.why, self.similarity = pairs, why, similarity


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
    return entries_of(pairs_of("uniform", teacher, student), outputs, **entry)


def last(teacher: Any, student: Any, outputs: Sequence[str] = ("hidden_states",), **entry: Any) -> Entries:
    """The student's layers from as many last layers of the teacher; arguments as for `uniform`.

    Source: the top strategy of Jiao et al., TinyBERT, 2020. PKD-Last of Sun et al., Patient Knowledge Distillation,
    2019, leaves out the last pair of them.
    """
    return entries_of(pairs_of("last", teacher, student), outputs, **entry)


def skip(teacher: Any, student: Any, outputs: Sequence[str] = ("hidden_states",), **entry: Any) -> Entries:
    """Every student layer but the last, which the logits teach already, from every (N / M)-th teacher layer.

    Arguments as for `uniform`. Source: PKD-Skip of Sun et al., Patient Knowledge Distillation, 2019.
    """
    return entries_of(pairs_of("skip", teacher, student), outputs, **entry)


def search(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[Any],
    outputs: Sequence[str] = ("hidden_states",),
    data_adaptor: DataAdaptor | None = None,
    **entry: Any,
) -> Proposal:
    """The mapping under which layers are most alike already: each student layer has a teacher layer of its own, deeper
    layers have deeper ones, and the sum of linear CKA over the pairs is the greatest possible.

    It tells something where the student knows something: cut out of a teacher, or pretrained. Similarities of a random
    student say little.

    Args:
        batches: a few batches; means are taken over them.
        data_adaptor: as for training; None gives both models the batch.
        outputs, **entry: as for `uniform`.

    Raises:
        ConfigError: there is no batch, or the models have no layers to compare.
        DataError: a model fails on a batch.

    Source: similarity of Kornblith et al., Similarity of Neural Network Representations Revisited, 2019.
    """
    n, m = depths(teacher, student)
    total, number = torch.zeros(m, n), 0
    for batch in batches:
        total, number = total + _similarities(teacher, student, batch, data_adaptor or same_inputs, n, m), number + 1
    if not number:
        raise ConfigError("search needs at least one batch")
    similarity = total / number
    pairs = _best_path(similarity)
    return Proposal(entries_of(pairs, outputs, **entry), pairs, _table(similarity, pairs, number), similarity)


def pairs_of(mapping: Mapped, teacher: Any, student: Any) -> Pairs:
    """(teacher layer, student layer) pairs by the name of a strategy, for two models or configs; or the pairs given.

    Raises:
        ConfigError: no strategy has this name, these are no pairs, or the models have no such layers.
    """
    check_mapping(mapping, STRATEGIES)
    if isinstance(mapping, str):
        return STRATEGIES[mapping](*depths(teacher, student))
    return [(of_teacher, of_student) for of_teacher, of_student in mapping]


def check_mapping(mapping: Any, names: Iterable[str]) -> None:
    """Raise a ConfigError unless this is one of the names, or a list of pairs of layers."""
    if isinstance(mapping, str):
        known = list(names)
        if mapping not in known:
            near = nearest(mapping, known)
            raise ConfigError(f"mapping is one of {', '.join(known)}, or pairs of layers; found {mapping!r}.{near}")
    elif not mapping or not isinstance(mapping, (list, tuple)) or not all(map(_is_pair, mapping)):
        raise ConfigError(f"mapping is a list of [teacher layer, student layer] pairs; found {mapping!r}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, (list, tuple)) and [type(layer) for layer in pair] == [int, int]


def depths(teacher: Any, student: Any) -> tuple[int, int]:
    """The numbers of layers of two models, or of their configs.

    Raises:
        ConfigError: one of them does not say, has two stacks of layers, or the student is the deeper one.
    """
    configs = [getattr(model, "config", model) for model in (teacher, student)]
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        raise ConfigError(
            "an encoder-decoder has two stacks of layers: write its entries out, with encoder_layer{…} and "
            "decoder_layer{…}"
        )
    found = [getattr(config, "num_hidden_layers", None) for config in configs]
    if not all(isinstance(depth, int) for depth in found) or found[1] > found[0]:  # type: ignore[operator]
        raise ConfigError(
            "a layer mapping pairs the layers of transformers by number and needs a teacher at least as deep as the "
            f"student; found depths {found}"
        )
    return found[0], found[1]  # type: ignore[return-value]


def entries_of(
    pairs: Sequence[Sequence[int]],
    outputs: Sequence[str] = ("hidden_states",),
    stack: str = "layer",
    **entry: Any,
) -> Entries:
    """One entry for each output, its braces holding (teacher layer, student layer) pairs.

    Args:
        stack: what the names of the layers begin with; `encoder_layer` and `decoder_layer` where there are two.
        **entry: further keys of the entries, such as `loss` (`mse` where left out) or `weight`.
    """
    teacher, student = (stack + _braced([pair[side] for pair in pairs]) for side in (0, 1))
    return [
        {"teacher": f"{teacher}.{output}", "student": f"{student}.{output}", "loss": "mse", **entry}
        for output in outputs
    ]


def _braced(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{{{','.join(map(str, numbers))}}}"


def _similarities(teacher: nn.Module, student: nn.Module, batch: Any, adaptor: DataAdaptor, n: int, m: int) -> Tensor:
    """Linear CKA of every student layer (rows) with every teacher layer, over the tokens of one batch."""
    from .losses.hidden import cka

    device = next(student.parameters()).device
    for_teacher, for_student = adapted(adaptor, device, batch)
    sides = []
    for who, model, inputs, depth in (("teacher", teacher, for_teacher, n), ("student", student, for_student, m)):
        given = named(inputs, model, "model")
        try:
            sides.append((_hidden_states(model, accepted(given, model), depth), given))
        except (DistillationError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise DataError(f"the {who} fails on a batch of search: {type(error).__name__}: {error}") from error
    context = make_context(sides[1][1], sides[0][1])
    example = sides[1][0][0]
    mask = mask_of(context, mask_keys(Feature("layer1", "hidden_states"), "tokens", example, context)[0])
    rows = [[1 - cka(s.float(), t.float(), mask=mask) for t in sides[0][0]] for s in sides[1][0]]
    return torch.stack([torch.stack(row) for row in rows]).cpu()


def _hidden_states(model: nn.Module, inputs: Mapping[str, Any], depth: int) -> list[Tensor]:
    with resting(model), preserved(model):
        names = catalogue(model, first_rows(inputs))
        found = [names.find(Feature(f"layer{n}", "hidden_states")) for n in range(1, depth + 1)]
        if None in found:
            raise ConfigError(f"{type(model).__name__} has no layer{{1..{depth}}}.hidden_states to compare")
        capture = Capture(model, {n: known.location for n, known in enumerate(found) if known})
        try:
            taken = capture(inputs)
        finally:
            capture.close()
    return [taken[n] for n in range(depth)]


def _best_path(similarity: Tensor) -> Pairs:
    """(teacher layer, student layer) pairs with rising teacher layers and the greatest sum of similarities."""
    m, n = similarity.shape
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (n + 1)  # best[j]: within the teacher's first j layers
    for i in range(m):
        row = [(float("-inf"), [])] * (n + 1)  # type: list[tuple[float, list[int]]]
        for j in range(i + 1, n + 1):
            taken = (best[j - 1][0] + float(similarity[i, j - 1]), [*best[j - 1][1], j])
            row[j] = max(row[j - 1], taken, key=lambda one: one[0])
        best = row
    return [(layer, i) for i, layer in enumerate(best[n][1], start=1)]


def _table(similarity: Tensor, pairs: Pairs, batches: int) -> str:
    """Similarities by layer, the chosen ones in brackets, and what the chosen sum is against even spacing."""
    m, n = similarity.shape
    chosen = set(pairs)
    lines = ["student" + "".join(f"{f'layer{j}':>9}" for j in range(1, n + 1))]
    for i in range(1, m + 1):
        cells = (f"{similarity[i - 1, j - 1]:.2f}" for j in range(1, n + 1))
        marked = (f"[{cell}]" if (j, i) in chosen else f"{cell} " for j, cell in enumerate(cells, start=1))
        lines.append(f"layer{i:<2}" + "".join(f"{cell:>9}" for cell in marked))
    even, mine = (
        sum(float(similarity[i - 1, j - 1]) for j, i in some) / m for some in (STRATEGIES["uniform"](n, m), pairs)
    )
    said = f"linear CKA of hidden states over {batches} batches; mean of the chosen pairs {mine:.3f}"
    return "\n".join(itertools.chain([f"{said}, of evenly spaced ones {even:.3f}"], lines))

"""A mapping from layers to layers by the similarity of their hidden states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..config.layer_entries import Entries, layer_entries
from ..errors import ConfigError, DataError, DistillationError
from ..features.batch_context import make_context, mask_keys, mask_of
from ..features.capture import Capture
from ..features.catalogue import catalogue
from ..features.inputs import DataAdaptor, adapt_batch, first_rows, forward_inputs, named_inputs, same_inputs
from ..features.preserve import preserved, resting
from ..losses.hidden import cka
from .mapping import STRATEGIES, Pairs, depths


class Proposal(list[dict[str, Any]]):
    """A `distill_config`, with `pairs` of a teacher and a student layer; `why`, the table they were chosen by, as
    text; and `similarity`, student layers by teacher layers, in [0, 1].
    """

    def __init__(self, entries: Entries, pairs: Pairs, why: str, similarity: Tensor) -> None:
        super().__init__(entries)
        self.pairs, self.why, self.similarity = pairs, why, similarity


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
    models = {"teacher": teacher, "student": student}
    similarities = [_similarity(models, batch, data_adaptor or same_inputs) for batch in batches]
    if not similarities:
        raise ConfigError("search needs at least one batch")
    similarity = sum(similarities[1:], similarities[0]) / len(similarities)
    pairs = best_path(similarity)
    table = _table(similarity, pairs, len(similarities))
    return Proposal(layer_entries(pairs, outputs, **entry), pairs, table, similarity)


def _similarity(models: Mapping[str, nn.Module], batch: Any, adaptor: DataAdaptor) -> Tensor:
    """Linear CKA of every student layer (rows) with every teacher layer, over the tokens of one batch."""
    device = next(models["student"].parameters()).device
    inputs = dict(zip(models, adapt_batch(adaptor, device, batch), strict=True))
    inputs = {side: named_inputs(inputs[side], model) for side, model in models.items()}
    states = {}
    for (side, model), depth in zip(models.items(), depths(*models.values()), strict=True):
        try:
            states[side] = _hidden_states(model, forward_inputs(inputs[side], model), depth)
        except (DistillationError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise DataError(f"the {side} fails on a batch of search: {type(error).__name__}: {error}") from error
    context = make_context(inputs["student"], inputs["teacher"])
    key, _ = mask_keys(Feature("layer1", "hidden_states"), "tokens", states["student"][0], context)
    mask = mask_of(context, key)
    rows = [[1 - cka(s.float(), t.float(), mask=mask) for t in states["teacher"]] for s in states["student"]]
    return torch.stack([torch.stack(row) for row in rows]).cpu()


def _hidden_states(model: nn.Module, inputs: Mapping[str, Any], depth: int) -> list[Tensor]:
    with resting(model), preserved(model):
        names = catalogue(model, first_rows(inputs))
        layers = [names.find(Feature(f"layer{n}", "hidden_states")) for n in range(1, depth + 1)]
        if None in layers:
            raise ConfigError(f"{type(model).__name__} has no layer{{1..{depth}}}.hidden_states to compare")
        capture = Capture(model, {n: layer.location for n, layer in enumerate(layers) if layer})
        with contextlib.closing(capture):
            states = capture(inputs)
    return [states[n] for n in range(depth)]


def best_path(similarity: Tensor) -> Pairs:
    """(teacher layer, student layer) pairs with rising teacher layers and the greatest sum of similarities."""
    m, n = similarity.shape
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (n + 1)  # best[j]: within the teacher's first j layers
    for i in range(m):
        row = [(float("-inf"), [])] * (n + 1)  # type: list[tuple[float, list[int]]]
        for j in range(i + 1, n + 1):
            with_j = (best[j - 1][0] + float(similarity[i, j - 1]), [*best[j - 1][1], j])
            row[j] = max(row[j - 1], with_j, key=lambda one: one[0])
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
    chosen_mean, even_mean = (
        sum(float(similarity[i - 1, j - 1]) for j, i in some) / m for some in (pairs, STRATEGIES["uniform"](n, m))
    )
    head = (
        f"linear CKA of hidden states over {batches} batches; mean of the chosen pairs {chosen_mean:.3f}, of evenly "
        f"spaced ones {even_mean:.3f}"
    )
    return "\n".join([head, *lines])

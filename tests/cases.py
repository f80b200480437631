"""Features, labels and bound loss models for every line of the tables of losses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.losses import get_loss
from knowledge_distillation.losses.arguments import signature_of
from knowledge_distillation.losses.labels import label_mse
from knowledge_distillation.losses.table import LOSSES, LossSpec, spec_of
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss, Terms

FEATURES = [Feature(f"layer{n}", "feature") for n in (1, 2, 3, 4)]
FEATURE = FEATURES[0]
WIDTH = 5
SEVERAL = {  # losses that compare several features: how many of the student's with how many of the teacher's
    "ensemble_cross_entropy": (1, 3),
    "ensemble_kl": (1, 3),
    "adversarial": (1, 3),
    "fsp": (2, 2),
    "review_kd": (2, 2),
}
NARROWEST = {"objectness_scaled": 6}  # losses that take no narrower feature
NEEDED = {  # what a loss is not built without
    "crd": {"num_samples": 40, "negatives": 6, "embedding_size": 3},
    "margin_relu": {"margin": -0.5},
}
TEACHER_ALONE = ("paraphraser",)  # the student's feature has no part in it
LENGTH = {"tokens": (1,), "heads": (2,), "attention": (2, 3), "vector": (), "map": ()}  # dimensions that are a length


@dataclass(frozen=True)
class Case:
    """One line of a table of losses: a name, on one kind of feature."""

    name: str
    kind: str
    hard: bool

    @property
    def id(self) -> str:
        return f"{'hard' if self.hard else 'soft'}-{self.name}-{self.kind}"

    @property
    def function(self) -> Any:
        return get_loss(self.name, self.kind, self.hard)

    @property
    def method(self) -> LossSpec:
        return spec_of(self.name, self.hard)

    @property
    def has_length(self) -> bool:
        return bool(LENGTH[self.kind])

    @property
    def probabilities(self) -> bool:
        return self.method.probabilities

    @property
    def regression(self) -> bool:
        return self.function is label_mse

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What the loss and, where it has state, its constructor take beyond the two features."""
        return signature_of(self.function).parameters

    @property
    def labelled(self) -> bool:
        """Whether items labelled -100 do not count."""
        labels = self.parameters.get("labels")
        return not self.regression and (self.hard or (labels is not None and labels.default is labels.empty))

    def feature(
        self, batch: int, length: int, generator: torch.Generator, width: int = WIDTH, heads: int = 2
    ) -> Tensor:
        width = 1 if self.regression else max(width, NARROWEST.get(self.name, 1))
        shape = {
            "vector": (batch, width),
            "tokens": (batch, length, width),
            "heads": (batch, heads, length, width),
            "attention": (batch, heads, length, length),
            "map": (batch, width, 2, 3),
        }[self.kind]
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def labels(self, batch: int, length: int, generator: torch.Generator, width: int = WIDTH) -> Tensor:
        if self.regression:
            return torch.randn(batch, generator=generator, dtype=torch.float64)
        shape = (batch, length) if self.kind == "tokens" else (batch,)
        return torch.randint(0, width, shape, generator=generator)

    def batch(self, lengths: list[int], seed: int = 0, width: int = WIDTH, heads: int = 2) -> Batch:
        """Random features of samples of these lengths, padded to the longest. Labels of padding are -100."""
        generator = torch.Generator().manual_seed(seed)
        size, longest = len(lengths), max(lengths, default=1) or 1
        mask = (torch.arange(longest) < torch.tensor(lengths, dtype=torch.long)[:, None]).long()
        numbers = SEVERAL.get(self.name, (1, 1))
        axis = 1 if self.kind in ("map", "attention", "heads") else -1

        def side(number: int) -> Tensor:
            return torch.cat([self.feature(size, longest, generator, width, heads) for _ in range(number)], axis)

        student, teacher = side(numbers[0]), None if self.hard else side(numbers[1])
        if self.probabilities:
            student, teacher = (probabilities(scores, mask) for scores in (student, teacher))
        labels = None
        if self.hard or "labels" in self.parameters:
            labels = self.labels(size, longest, generator, width)
        if labels is not None and labels.dim() == 2:
            labels = labels.masked_fill(mask == 0, -100)
        return Batch(student, teacher, mask, labels, numbers, axis)

    def bind(self, batch: Batch, loss: Any = None, **entry: Any) -> MultiLayerBasedDistillationLoss:
        """A loss model of one entry, `it`, bound to a batch."""
        names = [str(FEATURE)] if batch.numbers == (1, 1) else [[str(f) for f in side] for side in batch.features]
        sides = {"student": names[0]} if self.hard else {"student": names[0], "teacher": names[-1]}
        entry["args"] = {**NEEDED.get(self.name, {}), **entry.get("args", {})}
        model = MultiLayerBasedDistillationLoss([{**sides, "loss": loss or self.name, "name": "it", **entry}])
        torch.manual_seed(0)  # a loss with state begins with the same parameters every time
        model.bind(model.config.check().entries[0], *batch.features, self.kind, batch.context)
        if self.name == "crd":
            at_rest(model, batch)
        return model


def at_rest(model: MultiLayerBasedDistillationLoss, batch: Batch) -> None:
    """A first batch, after which the memory stays as it is; negatives are the numbers that follow, not drawn."""
    module = model.losses["it"]
    following = torch.arange(1, 1 + module.negatives)
    module._drawn = lambda index: (index[:, None] + following) % len(module.student_memory)
    batch.terms(model)
    model.eval()


def probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    """Rows of attention probabilities over the keys that count; 0 on padded keys."""
    powers = scores.exp() * mask[:, None, None]
    return powers / powers.sum(-1, keepdim=True).clamp(min=1e-9)


@dataclass
class Batch:
    """The features of a side, where the loss takes several, lie side by side along `axis`."""

    student: Tensor
    teacher: Tensor | None
    mask: Tensor
    labels: Tensor | None
    numbers: tuple[int, int] = (1, 1)
    axis: int = -1

    @property
    def features(self) -> tuple[dict[Feature, Tensor], dict[Feature, Tensor]]:
        def split(side: Tensor | None, number: int) -> dict[Feature, Tensor]:
            if side is None:
                return {}
            size = side.shape[self.axis] // number
            return {FEATURES[n]: side.narrow(self.axis, n * size, size) for n in range(number)}

        return split(self.student, self.numbers[0]), split(self.teacher, self.numbers[1])

    def equal(self) -> None:
        """Make the teacher what the student is; several teachers are all what one student is."""
        self.teacher = torch.cat([self.student] * (self.numbers[1] // self.numbers[0]), self.axis).detach().clone()

    @property
    def context(self) -> dict[str, Any]:
        inputs = {"input_ids": torch.zeros_like(self.mask), "attention_mask": self.mask}
        inputs["sample_index"] = torch.arange(len(self.mask))
        inputs["query"] = torch.arange(len(self.mask)) // 4
        return make_context(inputs if self.labels is None else {**inputs, "labels": self.labels})

    def terms(self, model: MultiLayerBasedDistillationLoss, counts: Mapping[str, Any] | None = None) -> Terms:
        student, teacher = self.features
        return model.terms(model.project(student), teacher, self.context, counts)

    def gradient(self, model: MultiLayerBasedDistillationLoss) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to the student's feature."""
        self.student = self.student.detach().requires_grad_()
        loss = self.terms(model).loss
        unused = model.config.entries[0].loss_name in TEACHER_ALONE
        gradient = torch.autograd.grad(loss, self.student, allow_unused=unused, materialize_grads=unused)[0]
        return loss.detach(), gradient


CASES = [
    Case(method.name, kind, method.hard)
    for method in LOSSES
    for kind in method.functions
    if kind != "scalar"  # what a model computed itself: nothing is compared, masked or averaged
    if kind != "positions"  # rows of classes, of which padding is none: test_answers.py
]
SOFT = [case for case in CASES if not case.hard]


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])

"""What labels are to an entry: class numbers as they are; positions in a text; or yes or no to each class.

Logits over the positions of a text (where an answer starts) are one choice for each row, whose classes are its tokens.
Labels of 0 and 1 for each class (`multi_label_classification`), and those of one logit, are a choice of two classes
for each logit: the logits 0 and z, whose softmax is (1 - sigmoid(z), sigmoid(z)).

Source: each label its own soft target of two classes: Yang et al., Multi-Label Knowledge Distillation, 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Feature
from ..errors import ConfigError
from ..features.batch_context import Context, once
from ..losses.labels import IGNORED_LABEL, are_yes_or_no
from .loss import Loss


@dataclass(frozen=True)
class Answers:
    """How an entry reads labels and logits.

    Args:
        key: the labels' key in the batch.
        length: the key of what is as long as the positions that labels lie in, which may be a mask of those that are
            classes; None where they are no positions.
        yes_or_no: each class is a choice of its own, and labels are 0 or 1 for each.
    """

    key: str = "labels"
    length: str | None = None
    yes_or_no: bool = False

    def context(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """The context in which `labels` are those of the entry, made once a batch."""
        labels = context.get(self.key)
        if self == _PLAIN or not isinstance(labels, Tensor):
            return context
        return once(context, self, lambda: self._with_labels(context, labels))

    def _with_labels(self, context: Mapping[str, Any], labels: Tensor) -> Mapping[str, Any]:
        if self.length is not None and self.key != "labels":  # an answer that was cut off with the text does not count
            labels, classes = labels.reshape(-1), context[self.length]
            outside = (labels < 0) | (labels >= classes.shape[1])
            if "mask" in self.length:
                outside |= ~classes.bool().gather(1, labels.masked_fill(outside, 0)[:, None])[:, 0]
            labels = labels.masked_fill(outside, IGNORED_LABEL)
        if self.yes_or_no:
            labels = labels.reshape(labels.shape[0], -1)
            if labels.is_floating_point():  # what is neither 0 nor 1 must not become one of them
                labels = torch.where(labels == labels.round(), labels, 2.0)
            labels = labels.long()
        made: Any = copy.copy(context)
        if isinstance(made, Context):
            made.memo = {}
        made["labels"] = labels
        return made

    def logits(self, feature: Tensor) -> Tensor:
        """(batch, classes, 2) of yes or no; all others as they are."""
        return torch.stack([torch.zeros_like(feature), feature], -1) if self.yes_or_no else feature

    def of_rows(self, values: Tensor, labels: Tensor | None) -> Tensor:
        """The mean of a row's values over its classes, without those labelled -100."""
        if not self.yes_or_no or values.dim() < 2:
            return values
        if labels is None:
            return values.mean(-1)
        counted = labels != IGNORED_LABEL
        return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)


_PLAIN = Answers()


def answers_of(
    loss: Loss, kind: str, student: Any, context: Mapping[str, Any], length: str | None, problem_type: str | None
) -> Answers:
    """How an entry reads labels and logits, from its feature and the labels of the probe batch.

    Args:
        kind: of the feature as the loss gets it.
        length: the key of what is as long as the feature's positions.
        problem_type: of the student's config, where it says one.

    Raises:
        ConfigError: each class has a label of its own, and the loss compares classes of one softmax, or weighs them.
    """
    if kind == "positions":
        return Answers(_positions_of(loss.entry.student[0], context), length)
    labels = context.get("labels")
    if kind != "vector" or not loss.by_name or not _says_yes_or_no(loss, student, labels, problem_type):
        return _PLAIN
    feature = f"{loss.entry.student[0]} {tuple(student.shape)}"
    if not loss.spec.softmax:
        if loss.spec.top_k is None:
            return _PLAIN  # no loss of classes
        raise ConfigError(
            f"loss {loss.name} compares the classes of one softmax, and each class of {feature} is a yes or no of its "
            "own: take kl_divergence"
        )
    if loss.class_weights is not None and student.shape[-1] > 1:
        raise ConfigError(f"class_weights weigh the classes of one choice, and each class of {feature} is a yes or no")
    if isinstance(labels, Tensor) and not are_yes_or_no(labels):
        raise ConfigError(f"labels of {feature} are 0 or 1 for each class (-100: not counted); these hold others")
    return Answers(yes_or_no=True)


def _positions_of(feature: Feature, context: Mapping[str, Any]) -> str:
    """The key of a batch that holds the right positions: `start_positions` for `start_logits`, as in transformers."""
    key = f"{feature.output.removesuffix('_logits')}_positions"
    return key if key in context else "labels"


def _says_yes_or_no(loss: Loss, student: Tensor, labels: Any, problem_type: str | None) -> bool:
    one = student.shape[-1] == 1
    if problem_type == "multi_label_classification":
        return True
    if problem_type == "regression" or (problem_type == "single_label_classification" and not one):
        return False
    if not isinstance(labels, Tensor) or not (labels.shape == student.shape or one and labels.numel() == len(student)):
        return False
    if one and labels.is_floating_point() and not loss.entry.hard:
        return False  # real numbers that happen to be 0 and 1
    return are_yes_or_no(labels)

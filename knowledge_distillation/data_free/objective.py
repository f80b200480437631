"""What samples are made for: the terms of a data-free source's own objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config.entry import Feature
from ..errors import ConfigError
from ..losses.arguments import check_arguments, signature_of
from ..losses.table import get_loss

LOGITS = Feature("output", "logits")


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy of the teacher's prediction with its own most probable class: small where it is sure.

    -mean_i log max_c softmax(logits)(i, c), 0 or more; logits (batch, classes).

    Source: Chen et al., Data-Free Learning of Student Networks (DAFL), 2019, eq. 3.
    """
    return -logits.log_softmax(-1).amax(-1).mean()


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute value of a teacher's feature: small where its filters answer.

    Source: Chen et al., 2019, eq. 4; the mean over all values as in the authors' code.
    """
    return -features.abs().mean()


def balance(logits: Tensor) -> Tensor:
    """Minus the entropy of the teacher's mean prediction over the batch: small where all classes are there alike.

    sum_c p(c) log10 p(c) with p = mean_i softmax(logits)(i), from -log10(classes) to 0.

    Source: Chen et al., 2019, eq. 5; the logarithm to base 10 as in the authors' code.
    """
    mean = logits.softmax(-1).mean(0)
    return torch.special.xlogy(mean, mean).sum() / math.log(10)


@dataclass(frozen=True)
class Objective:
    """What a source makes its samples for: the weighted sum of these terms, minimised.

    Args:
        disagreement: weight of minus the loss between student and teacher (Micaelli and Storkey, 2019).
        one_hot, balance: weights of the terms of DAFL on the teacher's logits.
        activation: weight of DAFL's term on `feature`.
        loss: the loss that is maximised, by its name or as a callable `(student_logits, teacher_logits)`;
            `torch.nn.functional.l1_loss` is that of Fang et al., Data-Free Adversarial Distillation, 2019.
        args: arguments of a loss given by name.
        feature: of the teacher, by the names of a distill_config: `fc.input`, `layer-1.hidden_states`.

    Raises:
        ConfigError: no term has a weight, an unknown loss or argument, `activation` without a feature.
    """

    disagreement: float = 1.0
    one_hot: float = 0.0
    activation: float = 0.0
    balance: float = 0.0
    loss: str | Callable[..., Tensor] = "kl_divergence"
    args: Mapping[str, Any] = field(default_factory=dict)
    feature: str = ""

    def __post_init__(self) -> None:
        if not (self.disagreement or self.one_hot or self.activation or self.balance):
            raise ConfigError("objective: every weight is 0, so that there is nothing to make samples for")
        if self.activation and "." not in self.feature:
            raise ConfigError(f"objective: activation needs a teacher feature, as fc.input; found {self.feature!r}")
        if isinstance(self.loss, str):
            problem = check_arguments(self.loss, signature_of(get_loss(self.loss, "vector")), self.args, ())
            if problem:
                raise ConfigError(f"objective: {problem}")

    @property
    def watched(self) -> list[Feature]:
        """The teacher's features it looks at."""
        return [LOGITS, *([Feature(*self.feature.rsplit(".", 1))] if self.activation else [])]

    def __call__(self, student: Tensor | None, teacher: Mapping[Feature, Tensor]) -> Tensor:
        """
        Args:
            student: its logits (batch, classes); None where disagreement has no weight.
            teacher: the features of `watched`.
        """
        logits = teacher[LOGITS].float()
        total = logits.new_zeros(())
        if student is not None:
            loss = get_loss(self.loss, "vector") if isinstance(self.loss, str) else self.loss
            total = total - self.disagreement * loss(student.float(), logits, **self.args).mean()
        if self.one_hot:
            total = total + self.one_hot * one_hot(logits)
        if self.activation:
            total = total + self.activation * activation(teacher[self.watched[1]].float())
        return total + self.balance * balance(logits) if self.balance else total

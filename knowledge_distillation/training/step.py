"""One optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..config.entry import Feature
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..plan.plan import Plan


class StudentAndProjections(nn.Module):
    """The one module that trains: called through its wrapper, so that every gradient is seen by it."""

    def __init__(
        self, students: Mapping[str, nn.Module], loss_model: MultiLayerBasedDistillationLoss, plan: Plan
    ) -> None:
        super().__init__()
        self.student, self.loss_model = students[""], loss_model
        self.peers = nn.ModuleDict({name: model for name, model in students.items() if name})
        self._features = {name: source.features for name, source in plan.students.items()}

    def forward(
        self, inputs: dict[str, dict[str, Any]], progress: float
    ) -> tuple[dict[str, Any], dict[Feature, Tensor]]:
        """Entry name -> its student feature, projected; and the features by which students teach, detached."""
        features = {f: t for name, take in self._features.items() for f, t in take(inputs[name]).items()}
        return self.loss_model.project(features, progress), {
            feature: tensor.detach() for feature, tensor in features.items()
        }

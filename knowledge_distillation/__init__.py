"""Declarative layer-mapping distillation for transformers: a list says which teacher feature teaches which student
feature, by which loss, with what weight; everything else follows from the list.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and their rooms. Importing the package imports none of them: torch and transformers come with first use.
_ROOMS = {
    "KnowledgeDistiller": "distiller",
    "MultiLayerBasedDistillationLoss": "loss_model",
    "MultiLayerBasedDistillationEvaluator": "evaluators",
    "TaskEvaluator": "evaluators",
    "student_from_teacher": "students",
    "parse_config": "config",
    "DistillConfig": "config",
    "Plan": "plan",
    "Callback": "callbacks",
    "EarlyStopping": "callbacks",
    "DistillationError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
__all__ = sorted([*_ROOMS, "__version__"])

if TYPE_CHECKING:
    from .callbacks import Callback as Callback
    from .callbacks import EarlyStopping as EarlyStopping
    from .config import DistillConfig as DistillConfig
    from .config import parse_config as parse_config
    from .distiller import KnowledgeDistiller as KnowledgeDistiller
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DistillationError as DistillationError
    from .evaluators import MultiLayerBasedDistillationEvaluator as MultiLayerBasedDistillationEvaluator
    from .evaluators import TaskEvaluator as TaskEvaluator
    from .loss_model import MultiLayerBasedDistillationLoss as MultiLayerBasedDistillationLoss
    from .plan import Plan as Plan
    from .students import student_from_teacher as student_from_teacher


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

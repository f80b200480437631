"""Declarative layer-mapping distillation for transformers: a list says which teacher feature teaches which student
feature, by which loss, with what weight; everything else follows from the list.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .models.with_transformers import register_with_transformers

__version__ = "0.1.0"

# Public names and their rooms. Importing the package imports none of them: torch and transformers come with first use.
_ROOMS = {
    "KnowledgeDistiller": "training.distiller",
    "MultiLayerBasedDistillationLoss": "objective.loss_model",
    "MultiLayerBasedDistillationEvaluator": "evaluation.evaluators",
    "TaskEvaluator": "evaluation.evaluators",
    "student_from_teacher": "models.cut",
    "load_task_data": "tasks.task_data",
    "parse_config": "config.parse",
    "DistillConfig": "config.entry",
    "Plan": "plan.plan",
    "Callback": "training.callbacks",
    "EarlyStopping": "training.callbacks",
    "DistillationError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
__all__ = sorted([*_ROOMS, "__version__"])

if TYPE_CHECKING:
    from .config.entry import DistillConfig as DistillConfig
    from .config.parse import parse_config as parse_config
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DistillationError as DistillationError
    from .evaluation.evaluators import MultiLayerBasedDistillationEvaluator as MultiLayerBasedDistillationEvaluator
    from .evaluation.evaluators import TaskEvaluator as TaskEvaluator
    from .models.cut import student_from_teacher as student_from_teacher
    from .objective.loss_model import MultiLayerBasedDistillationLoss as MultiLayerBasedDistillationLoss
    from .plan.plan import Plan as Plan
    from .tasks.task_data import load_task_data as load_task_data
    from .training.callbacks import Callback as Callback
    from .training.callbacks import EarlyStopping as EarlyStopping
    from .training.distiller import KnowledgeDistiller as KnowledgeDistiller


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


register_with_transformers()

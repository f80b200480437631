"""When and what to measure. Two forms: a callable the runner calls, or an object that is asked after every step.

The callable is `(student, teacher, dataloader, accelerator) -> {metric: value}`; its `primary_metric` names the metric
by which the best student is kept, and `greater_is_better` says which way.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction

from ..errors import DataError, DistillationError
from ..features.inputs import (
    DataAdaptor,
    adapt_batch,
    forward_inputs,
    named_inputs,
    predicts_next_token,
    same_inputs,
)
from ..features.preserve import resting
from ..losses.labels import IGNORED_LABEL
from ..storage import checkpoint_files
from .glue_metrics import ComputeMetrics, pearson

logger = logging.getLogger(__name__)


class TaskEvaluator:
    """Scores of student and teacher on a task, and how often the two agree.

    Metrics are `<name>` of the student, `teacher_<name>`, and `agreement`: the share of rows (or tokens) for which
    both give the same class, or for a single real output the Pearson correlation; padding and tokens labelled -100 do
    not count. The teacher is frozen, so where the data keeps its order (`fixed_order`) it runs once per evaluator.

    Args:
        compute_metrics: `(logits, labels) -> {name: value}` on numpy arrays, token rows padded with 0 and -100; None
            for accuracy (of causal language models in predicting the next label), or where labels are real numbers for
            the Pearson correlation.
        data_adaptor: as for training; None gives both models the batch.
        primary_metric: None for the first metric of the student, `agreement` where there are no labels.
        fixed_order: the data loader gives the same rows in the same order each time.
    """

    greater_is_better = True

    def __init__(
        self,
        compute_metrics: ComputeMetrics | None = None,
        data_adaptor: DataAdaptor | None = None,
        primary_metric: str = "",
        fixed_order: bool = False,
    ) -> None:
        self.compute_metrics = None if compute_metrics is None else _as_called(compute_metrics)
        self.data_adaptor = data_adaptor or same_inputs
        self.primary_metric = primary_metric
        self.fixed_order = fixed_order
        self._teacher_logits: np.ndarray | None = None

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        runs_teacher = self._teacher_logits is None
        batches = list(self._predictions(student, teacher if runs_teacher else None, dataloader, accelerator))
        return self._scores(student, batches, runs_teacher)

    def _scores(
        self, student: nn.Module, batches: list[tuple[Tensor | None, ...]], runs_teacher: bool
    ) -> dict[str, float]:
        student_logits, teacher_logits, labels, mask = (_join([batch[i] for batch in batches]) for i in range(4))
        if not runs_teacher:
            teacher_logits = self._teacher_logits
        elif self.fixed_order:
            self._teacher_logits = teacher_logits
        if student_logits is None:
            return {}
        compute = self.compute_metrics or partial(_default_metrics, predicts_next_token(student))
        metrics = dict(compute(student_logits, labels)) if labels is not None else {}
        self.primary_metric = self.primary_metric or next(iter(metrics), "agreement")
        if teacher_logits is not None:
            if labels is not None:
                scores = compute(teacher_logits, labels)
                metrics |= {f"teacher_{name}": value for name, value in scores.items()}
            if teacher_logits.shape == student_logits.shape:
                if mask is not None and labels is not None and labels.shape == mask.shape:
                    mask = mask & (labels != IGNORED_LABEL)
                counted = slice(None) if mask is None else mask
                metrics["agreement"] = agreement(student_logits[counted], teacher_logits[counted])
        return {name: float(value) for name, value in metrics.items()}

    def names(self, student: nn.Module, teacher: nn.Module | None, batches: list[Any], accelerator: Any) -> list[str]:
        """The metrics it gives, tried on a batch; none where so few rows cannot be scored.

        Raises:
            DataError: a model cannot run on the batch, or gives nothing to evaluate.
        """
        trial = TaskEvaluator(self.compute_metrics, self.data_adaptor)
        try:
            predictions = list(trial._predictions(student, teacher, batches, accelerator))
        except (DistillationError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            keys = ", ".join(map(str, batches[0])) if isinstance(batches[0], Mapping) else type(batches[0]).__name__
            raise DataError(
                f"the models fail on the first batch of the evaluation data ({keys}): {type(error).__name__}: {error}"
            ) from error
        try:
            return list(trial._scores(student, predictions, runs_teacher=True))
        except DistillationError:
            raise
        except Exception:  # the metrics are the user's: some need more rows than these
            return []

    def _predictions(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> Iterator[tuple[Tensor | None, ...]]:
        with resting(student), torch.no_grad():
            for batch in dataloader:
                teacher_inputs, student_inputs = adapt_batch(self.data_adaptor, accelerator.device, batch)
                student_inputs = named_inputs(student_inputs, student, "student")
                with accelerator.autocast():
                    student_logits = _logits(student(**forward_inputs(student_inputs, student)))
                teacher_logits = None
                if teacher is not None:
                    model = getattr(teacher, "model", teacher)
                    teacher_inputs = forward_inputs(named_inputs(teacher_inputs, model, "teacher"), model)
                    cast: Any = getattr(teacher, "cast", dict)
                    teacher_logits = _logits(teacher(**cast(teacher_inputs)))
                labels = student_inputs.get("labels")
                if labels is None and isinstance(batch, dict):
                    labels = batch.get("labels")
                tensors = (student_logits, teacher_logits, labels, _mask_of(student_logits, student_inputs))
                yield tuple(
                    t if t is None else t.detach().float().cpu() if t.is_floating_point() else t.cpu() for t in tensors
                )


class MultiLayerBasedDistillationEvaluator:
    """Logs the loss every `print_loss_step` steps and saves the student every `save_step` steps.

    Args:
        save_dir: folder of the saved students, `epoch_{epoch}_step_{step}` each; None saves nothing.
        save_step: steps between two saves; None saves nothing.
        print_loss_step: steps between two log lines, each the mean loss since the last.
    """

    def __init__(
        self, save_dir: str | Path | None = None, save_step: int | None = None, print_loss_step: int | None = 20
    ) -> None:
        self.save_dir = None if save_dir is None else Path(save_dir)
        self.save_step, self.print_loss_step = save_step, print_loss_step
        self._sum: Tensor | None = None
        self._steps = 0

    def evaluate(
        self,
        teacher_model: nn.Module,
        student_model: nn.Module,
        dev_data: Any,
        dev_data_adaptor: Any,
        epoch: int,
        step: int,
        loss_value: Tensor,
    ) -> None:
        """Called after every step. `epoch` and `step` count from 1, `step` over the whole run."""
        self._sum = loss_value if self._sum is None else self._sum + loss_value
        self._steps += 1
        if self.print_loss_step and step % self.print_loss_step == 0:
            logger.info("epoch %d  step %d  loss %.6f", epoch, step, self._sum.item() / self._steps)
            self._sum, self._steps = None, 0
        if self.save_dir is not None and self.save_step and step % self.save_step == 0:
            checkpoint_files.save_student(self.save_dir / f"epoch_{epoch}_step_{step}", student_model)


def _mask_of(logits: Tensor, inputs: Mapping[str, Any]) -> Tensor | None:
    """Which tokens of a batch count; None where logits are one for each row."""
    if logits.dim() != 3:
        return None
    mask = inputs.get("attention_mask")
    fits = isinstance(mask, Tensor) and mask.shape == logits.shape[:-1]
    return mask.bool() if fits else torch.ones(logits.shape[:-1], dtype=torch.bool)  # type: ignore[union-attr]


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Share of rows with the same class, in [0, 1]; for one real output the Pearson correlation, in [-1, 1]."""
    if student.shape[-1] > 1:
        return float((student.argmax(-1) == teacher.argmax(-1)).mean())
    return pearson(student.ravel(), teacher.ravel())


def _default_metrics(next_token: bool, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if labels.dtype.kind == "f" and logits.size == labels.size:
        return {"pearson": pearson(logits.ravel(), labels.ravel())}
    if next_token and labels.ndim == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != IGNORED_LABEL
    return {"accuracy": float((logits.argmax(-1) == labels)[counted].mean())}


def _as_called(function: Any) -> ComputeMetrics:
    """`(logits, labels)` as it is; a function of one argument gets an `EvalPrediction`, as from transformers."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) != 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    return lambda logits, labels: function(EvalPrediction(predictions=logits, label_ids=labels))


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise DataError(
                f"a model's output has no 'logits' to evaluate; it has: {', '.join(map(str, output))}. Give an "
                "evaluator of your own, a callable (student, teacher, dataloader, accelerator) -> metrics, or leave "
                "the evaluation data out"
            )
        return output["logits"]
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output[0]


def _join(parts: list[Tensor | None]) -> np.ndarray | None:
    """All processes' parts as one array, in the order of the processes; token rows are padded to one length."""
    from accelerate.utils import gather_object

    arrays = gather_object([None if part is None else part.numpy() for part in parts])
    if not arrays or any(array is None for array in arrays):
        return None
    if arrays[0].ndim < 2 or len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    rows = [torch.from_numpy(row) for array in arrays for row in array]
    fill = IGNORED_LABEL if arrays[0].dtype.kind == "i" else 0
    return pad_sequence(rows, batch_first=True, padding_value=fill).numpy()

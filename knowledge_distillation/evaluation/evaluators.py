"""When and what to measure. Two forms: a callable the runner calls, or an object that is asked after every step.

The callable is `(student, teacher, dataloader, accelerator) -> {metric: value}`; its `primary_metric` names the metric
by which the best student is kept, and `greater_is_better` says which way.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction

from ..errors import ConfigError, DataError, DistillationError, shown
from ..features.inputs import (
    DataAdaptor,
    adapt_batch,
    forward_inputs,
    named_inputs,
    same_inputs,
    shape_of,
    shapes_of,
)
from ..features.label_shift import label_shift, marks_tokens
from ..features.preserve import resting
from ..features.signature import inner_model
from ..losses.labels import IGNORED_LABEL
from ..storage import checkpoint_files
from .glue_metrics import ComputeMetrics, pearson
from .scoring import Answer, Targets, Task, Totals, add, added, task_of

logger = logging.getLogger(__name__)

_NO_BATCH = "the evaluation data gave no batch: can it be iterated more than once?"
_Outputs = tuple[Any, Any, Targets]  # what student and teacher gave for a batch, and what it has to score against


class TaskEvaluator:
    """Scores of student and teacher on a task, and how often the two agree.

    Metrics are `<name>` of the student, `teacher_<name>`, and `agreement`: the share of rows (tokens, labels, spans)
    for which both predict the same, or for a single real output the Pearson correlation; padding and what is labelled
    -100 do not count. They are summed batch by batch: of a large vocabulary no more than one batch is held. A teacher
    is frozen: where the data keeps its order (`fixed_order`) it runs once per evaluator.

    Args:
        compute_metrics: `(logits, labels) -> {name: value}` on numpy arrays of all rows, token rows padded with 0 and
            -100 (pairs of them for the starts and ends of spans); None for accuracy (of causal language models in
            predicting the next label; of models that say words, their perplexity too), micro and macro F1 where each
            class has a label of its own, F1 and exact match of spans, or where labels are real numbers the Pearson
            correlation.
        data_adaptor: as for training; None gives both models the batch.
        primary_metric: None for the first metric of the student, `agreement` where there are no labels.
        fixed_order: the data loader gives the same rows in the same order each time.
        shift_labels: whether position i of the logits is for label i + 1; None to measure it on the first batch.
        task: how predictions are scored where there is no `compute_metrics`; None to tell it by outputs and labels.
    """

    greater_is_better = True

    def __init__(
        self,
        compute_metrics: ComputeMetrics | None = None,
        data_adaptor: DataAdaptor | None = None,
        primary_metric: str = "",
        fixed_order: bool = False,
        shift_labels: bool | None = None,
        task: Task | None = None,
    ) -> None:
        self.compute_metrics = None if compute_metrics is None else _as_called(compute_metrics)
        self.data_adaptor = data_adaptor or same_inputs
        self.primary_metric = primary_metric
        self.fixed_order = fixed_order
        self.shift_labels = shift_labels
        self.task = task
        self._teacher: Any = None  # what it said of each batch, or with `compute_metrics` its logits

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        runs_teacher = self._teacher is None
        outputs = self._outputs(student, teacher if runs_teacher else None, dataloader, accelerator)
        return self._scores(student, outputs)

    def _scores(self, student: nn.Module, outputs: Iterable[_Outputs]) -> dict[str, float]:
        score = self._summed if self.compute_metrics is None else self._of_all_rows
        of_student, of_teacher, agreed = score(student, outputs)
        self.primary_metric = self.primary_metric or next(iter(of_student), "agreement")
        metrics = {**of_student, **{f"teacher_{name}": value for name, value in of_teacher.items()}}
        return as_metrics({**metrics, **agreed}, "the evaluator")

    def _summed(self, student: nn.Module, outputs: Iterable[_Outputs]) -> tuple[dict[str, float], ...]:
        """The scores of student and teacher, and their agreement, without holding more than one batch."""
        from accelerate.utils import gather_object

        task = self.task
        said: list[Answer] = []
        totals: tuple[Totals, ...] = ({}, {}, {})
        problem_type = getattr(getattr(student, "config", None), "problem_type", None)
        remembered = iter(self._teacher or ())
        for own, others, targets in outputs:
            task = task or task_of(own, targets, problem_type)
            answer = task.answer(own, targets)
            known = next(remembered, None) if others is None else task.answer(others, targets)
            del own, others  # before the next batch gives as many
            add(totals[0], answer.sums)
            if known is not None:
                said.append(known)
                add(totals[1], known.sums)
                if known.classes == answer.classes and known.predictions.shape == answer.predictions.shape:
                    add(totals[2], task.agreement(answer.predictions, known.predictions, targets))
        if self.fixed_order and said:
            self._teacher = said
        of_processes = gather_object([(None if self.task else task, *totals)])
        task = self.task or next((one[0] for one in of_processes if one[0] is not None), None)
        if task is None:
            raise DataError(_NO_BATCH)
        own, others, both = (added(one[place] for one in of_processes) for place in (1, 2, 3))
        return task.scores(own), task.scores(others), {"agreement": task.agreed(both)} if both else {}

    def _of_all_rows(self, student: nn.Module, outputs: Iterable[_Outputs]) -> tuple[dict[str, Any], ...]:
        """The user's own metrics, which are given the logits of all rows at once."""
        assert self.compute_metrics is not None
        columns = [tuple(map(_on_cpu, (own, others, t.labels, t.mask))) for own, others, t in outputs]
        student_logits, teacher_logits, labels, mask = (_join([batch[i] for batch in columns]) for i in range(4))
        if teacher_logits is None:
            teacher_logits = self._teacher
        elif self.fixed_order:
            self._teacher = teacher_logits
        if student_logits is None:
            raise DataError(_NO_BATCH)
        scored = labels is not None
        own = self._own_metrics(student_logits, labels) if scored else {}
        if teacher_logits is None:
            return own, {}, {}
        others = self._own_metrics(teacher_logits, labels) if scored else {}
        if isinstance(student_logits, tuple) or teacher_logits.shape != student_logits.shape:
            return own, others, {}
        if mask is not None and scored and labels.shape == mask.shape:
            mask = mask & (labels != IGNORED_LABEL)
        counted = slice(None) if mask is None else mask
        return own, others, {"agreement": agreement(student_logits[counted], teacher_logits[counted])}

    def _own_metrics(self, logits: Any, labels: Any) -> dict[str, float]:
        assert self.compute_metrics is not None
        return as_metrics(self.compute_metrics(logits, labels), "compute_metrics")

    def names(self, student: nn.Module, teacher: nn.Module | None, batches: list[Any], accelerator: Any) -> list[str]:
        """The metrics it gives, tried on a batch; none where so few rows cannot be scored.

        Raises:
            DataError: a model cannot run on the batch, or gives nothing to evaluate.
        """
        trial = TaskEvaluator(self.compute_metrics, self.data_adaptor, shift_labels=self.shift_labels, task=self.task)
        outputs = list(trial._outputs(student, teacher, batches, accelerator))
        try:
            return list(trial._scores(student, outputs))
        except DistillationError:
            raise
        except Exception:  # the metrics are the user's: some need more rows than these
            return []

    def _outputs(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> Iterator[_Outputs]:
        labelled: bool | None = None  # as the first batch is
        for number, batch in enumerate(dataloader, start=1):
            try:
                with resting(student), torch.no_grad():  # not beyond: a generator that is left keeps its contexts
                    outputs = self._of_batch(student, teacher, batch, accelerator)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                said = error if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
                raise DataError(f"batch {number} of the evaluation data ({shapes_of(batch)}): {said}") from error
            has_labels = outputs[2].labels is not None
            if labelled not in (None, has_labels):
                odd = "no labels, which those before it have" if labelled else "labels, and those before it none"
                raise DataError(f"batch {number} of the evaluation data ({shapes_of(batch)}) has {odd}")
            labelled = has_labels
            yield outputs
            del outputs  # nothing of it is held here

    def _of_batch(self, student: nn.Module, teacher: nn.Module | None, batch: Any, accelerator: Any) -> _Outputs:
        teacher_inputs, student_inputs = adapt_batch(self.data_adaptor, accelerator.device, batch)
        student_inputs = named_inputs(student_inputs, student, "student")
        with accelerator.autocast():
            own = _predicted(student(**forward_inputs(student_inputs, student)))
        others = None
        if teacher is not None:
            model = getattr(teacher, "model", teacher)
            teacher_inputs = forward_inputs(named_inputs(teacher_inputs, model, "teacher"), model)
            cast: Any = getattr(teacher, "cast", dict)
            others = _predicted(teacher(**cast(teacher_inputs)))
        known = {**batch, **student_inputs} if isinstance(batch, Mapping) else student_inputs
        return own, others, self._targets(student, student_inputs, own, known)

    def _targets(self, student: nn.Module, own: Mapping[str, Any], output: Any, inputs: Mapping[str, Any]) -> Targets:
        """What a batch has to score against, where the student's output is; `own` are the student's inputs."""
        if isinstance(output, tuple):
            keys = ("start_positions", "end_positions")
            positions = tuple(inputs[key] for key in keys) if inputs.keys() >= {*keys} else None
            return Targets(positions, _fitting(inputs, output[0].shape), inputs=inputs)
        labels = inputs.get("labels")
        if labels is not None:
            labels = labels.to(output.device)
            if self.compute_metrics is None:
                _check_labels(labels, output)
        mask = None
        if output.dim() == 3:
            mask = _fitting(inputs, output.shape[:-1])
            mask = torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device) if mask is None else mask
        if self.shift_labels is None and marks_tokens(labels):
            shift = label_shift(student, own, labels)
            self.shift_labels = shift is not None and bool(shift.shifted)
        shifted = bool(self.shift_labels)
        of_words = mask is not None and marks_tokens(labels) and (shifted or _says_words(student))
        return Targets(labels, mask, shifted, inputs, of_words=of_words)


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


def as_metrics(returned: Any, who: str) -> dict[str, float]:
    """What an evaluator or `compute_metrics` returned, as numbers by name.

    Raises:
        ConfigError: it is something else.
    """
    try:
        named = isinstance(returned, Mapping) and all(isinstance(name, str) for name in returned)
        numbers = (
            {name: float(value) for name, value in returned.items() if not isinstance(value, str)} if named else {}
        )
    except (TypeError, ValueError, RuntimeError):  # RuntimeError of a tensor of several numbers
        named = False
    if not named or len(numbers) < len(returned):
        raise ConfigError(f"{who} returned {shown(returned)}; a dict of numbers by name is needed")
    return numbers


def _check_labels(labels: Tensor, output: Tensor) -> None:
    """See that labels can be scored: one row for each of the output, and where they are classes, of those it has."""
    rows, classes = output.shape[0], output.shape[-1]
    if labels.shape[:1] != (rows,):
        raise DataError(f"labels {shape_of(labels)} are not one for each of {rows} rows")
    if labels.shape != output.shape[:-1] or classes == 1:
        return
    odd = ((labels < 0) | (labels >= classes) | (labels != labels.long())) & (labels != IGNORED_LABEL)
    if odd.any():
        place = int(odd.flatten().nonzero()[0])
        row = place // max(1, labels[0].numel())
        raise DataError(
            f"row {row} has label {labels.flatten()[place].item()}, and the classes are 0 to {classes - 1}"
        )


def _says_words(model: nn.Module) -> bool:
    """Whether the classes of a model are the tokens of its vocabulary."""
    inner: Any = inner_model(model)[0]
    return getattr(inner, "get_output_embeddings", lambda: None)() is not None


def _fitting(inputs: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    """The attention mask of tokens of this shape, if there is one."""
    mask = inputs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == shape else None


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Share of rows with the same class, in [0, 1]; for one real output the Pearson correlation, in [-1, 1]."""
    if student.shape[-1] > 1:
        return float((student.argmax(-1) == teacher.argmax(-1)).mean())
    return pearson(student.ravel(), teacher.ravel())


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


def _predicted(output: Any) -> Any:
    """A model's logits; of a model that finds spans, those of starts and of ends."""
    if isinstance(output, Mapping) and "logits" not in output and {"start_logits", "end_logits"} <= output.keys():
        return output["start_logits"], output["end_logits"]
    return _logits(output)


def _on_cpu(values: Any) -> Any:
    if isinstance(values, tuple):
        return tuple(map(_on_cpu, values))
    if not isinstance(values, Tensor):
        return values
    return values.detach().float().cpu() if values.is_floating_point() else values.cpu()


def _join(parts: list[Any]) -> Any:
    """All processes' parts as one array, in the order of the processes; token rows are padded to one length.

    Parts that are pairs become a pair.
    """
    from accelerate.utils import gather_object

    gathered = gather_object(parts)
    if not gathered or any(part is None for part in gathered):
        return None
    if isinstance(gathered[0], tuple):
        return tuple(_joined(list(column)) for column in zip(*gathered, strict=True))
    return _joined(gathered)


def _joined(parts: list[Tensor]) -> np.ndarray:
    arrays = [part.numpy() for part in parts]
    if arrays[0].ndim < 2 or len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    rows = [torch.from_numpy(row) for array in arrays for row in array]
    fill = IGNORED_LABEL if arrays[0].dtype.kind == "i" else 0
    return pad_sequence(rows, batch_first=True, padding_value=fill).numpy()

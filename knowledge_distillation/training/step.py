"""One optimizer step: teachers, student, loss, backward, on a window of batches whose average is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import Feature
from ..objective.balance import gradient_norms
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..plan.plan import Plan
from .batch import Batch
from .run import Run


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
        detached = {feature: tensor.detach() for feature, tensor in features.items()}
        return self.loss_model.project(features, progress), detached


def step(run: Run, window: Sequence[Batch]) -> dict[str, Tensor]:
    """One optimizer step on an accumulation window. Returns this process's share of the loss and of every term."""
    accelerator = run.accelerator
    counts, progress = count_items(run, window), run.stage_progress
    batches = fill_up(run, window)
    values: dict[str, Tensor] = {}
    term_sizes: dict[str, Tensor] = {}
    for batch_number, batch in enumerate(batches, start=1):
        with nullcontext() if batch_number == len(batches) else accelerator.no_sync(run.module):
            wait_for_teachers = run.stage_teachers.start(batch.teachers, batch.teachers_on_cpu)
            projected, student_features = run.module(batch.students, progress)
            features = {**student_features, **wait_for_teachers()}
            terms = run.loss_model.terms(projected, features, batch.context, counts, progress)
            if batch_number == 1 and measures_gradients(run):
                parameters = nn.ModuleList(run.students.values()).parameters()
                term_sizes = gradient_norms(terms.attached, [p for p in parameters if p.requires_grad])
            share = 1.0 if batch_number <= len(window) else 0.0
            # Gradients are averaged over processes and counts are summed over them: the sum is what is wanted.
            factor = share * accelerator.num_processes
            accelerator.backward(terms.loss if factor == 1 else terms.loss * factor)
        for name, value in {"loss": terms.loss.detach(), **terms.values}.items():
            value = value if share == 1 else value * share
            values[name] = values[name] + value if name in values else value
    if run.settings.max_grad_norm:
        accelerator.clip_grad_norm_(run.parameters, run.settings.max_grad_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    run.idle_batch = batches[-1]
    return values | rebalance(run, term_sizes or {name: v for name, v in values.items() if name != "loss"})


def count_items(run: Run, window: Sequence[Batch]) -> dict[str, Any] | None:
    """What each entry's sum is divided by: counted over the whole window and all processes, before any pass."""
    if run.accelerator.num_processes == 1 and len(window) == 1:
        return None  # the batch is the whole
    device = run.accelerator.device
    sums = {name: torch.zeros((), device=device) for name in run.loss_model.bound}
    for batch in window:
        for name, number in run.loss_model.counts(batch.context).items():
            sums[name] = sums[name] + number
    reduced = run.accelerator.reduce(torch.stack(list(sums.values())), "sum")
    return dict(zip(sums, reduced, strict=True))


def fill_up(run: Run, window: Sequence[Batch]) -> list[Batch]:
    """The batches of a window, filled up where other processes have more: those beyond it count for nothing."""
    batches = list(window) or [run.idle_batch]
    if run.accelerator.num_processes > 1 and run.loss_model.losses:  # CRD's memory gathers from all processes
        batches += [run.idle_batch] * (run.settings.gradient_accumulation_steps - len(batches))
    return batches


def measures_gradients(run: Run) -> bool:
    """Whether terms are balanced by their gradients, and this is a step at which these are measured."""
    return run.settings.balance == "gradient_norm" and run.steps_in_stage % run.settings.balance_steps == 0


def rebalance(run: Run, term_sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take in the sizes of this step's terms; this process's share of the factors it had, for the history."""
    balance = run.loss_model.balance
    if balance is None:
        return {}
    factors = balance.values(run.loss_model.bound)
    if term_sizes and (run.settings.balance != "gradient_norm" or measures_gradients(run)):
        summed = run.accelerator.reduce(torch.stack([size.float() for size in term_sizes.values()]), "sum")
        balance.update(dict(zip(term_sizes, summed, strict=True)))
    return {name: factor / run.accelerator.num_processes for name, factor in factors.items()}

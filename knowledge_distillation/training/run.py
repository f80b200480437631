"""A run: its models, settings and data, and where it is. The loop works on it; callbacks and checkpoints read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..config.settings import TrainingSettings
from ..config.stages import Stage
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..teachers.frozen import FrozenTeacher
from ..teachers.teachers import Teachers
from .progress import Progress, RunningMean


@dataclass(eq=False)
class Run:
    """One run of `KnowledgeDistiller`.

    `students` holds the student under the empty name, and its peers; `teachers` the frozen teachers by name, one that
    is alone under the empty name. `own_optimizer` and `own_scheduler` are the user's, where there are any. What stands
    from `plan` on belongs to the present stage: `prepare` makes it, `close` lets go of it.
    """

    students: dict[str, nn.Module]
    teachers: dict[str, FrozenTeacher]
    loss_model: MultiLayerBasedDistillationLoss
    settings: TrainingSettings
    stages: list[Stage]
    accelerator: Accelerator
    train_data_adaptor: Callable[..., Any]
    dev_data_adaptor: Callable[..., Any]
    callbacks: list[Any]
    batches: Any = None  # TrainBatches of `train_dataloader`; None without one
    train_dataloader: Any = None
    dev_dataloader: Any = None
    own_optimizer: torch.optim.Optimizer | None = None
    own_scheduler: Any = None
    evaluator: Any = None
    processing_class: Any = None
    output_dir: Path | None = None
    num_samples: int | None = None  # rows of the training set, for losses with a memory of it
    lent: Sequence[tuple[nn.Module, bool]] = ()  # modules of a teacher that a student has too, and their modes
    notes: list[str] = field(default_factory=list)  # lines of the plan on precision
    recipe: Mapping[str, Any] | None = None  # what made the data and the models, where a file says it
    progress: Progress = field(default_factory=Progress)
    losses: dict[str, float] = field(default_factory=dict)  # means of the last epoch
    metrics: dict[str, float] = field(default_factory=dict)
    stop_asked: bool = False
    data_note: str = ""  # what the data is, and how many rows it has
    classes_settled: bool = False
    class_notes: list[str] = field(default_factory=list)  # what is worth knowing of the models' classes
    names: dict[nn.Module, Any] = field(default_factory=dict)  # the `Catalogue` of each model that was bound
    plan: Any = None  # the `Plan` of the present stage
    stage_teachers: Teachers = field(default_factory=lambda: Teachers({}, {}))  # those of the stage, cached or not
    module: Any = None  # students and projections, as Accelerate prepared them
    parameters: list[nn.Parameter] = field(default_factory=list)
    optimizer: Any = None
    scheduler: Any = None
    idle_batch: Any = None  # the `Batch` with which a process that is out of batches takes part
    steps_per_epoch: int = 0  # 0 where the data has no length
    since_log: RunningMean = field(default_factory=RunningMean)
    of_epoch: RunningMean = field(default_factory=RunningMean)  # since the present epoch began
    release: Callable[[], None] | None = None  # lets go of the output directory, which this process has
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def student(self) -> nn.Module:
        return self.students[""]

    @property
    def peers(self) -> dict[str, nn.Module]:
        return {name: model for name, model in self.students.items() if name}

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The teacher, of several the first: the one that evaluators compare with."""
        return next(iter(self.teachers.values()), None)

    @property
    def is_taught(self) -> bool:
        """Whether any entry is more than the labels."""
        return not all(entry.hard for stage in self.stages for entry in stage.entries)

    # --- where the run is

    @property
    def stage(self) -> Stage:
        return self.stages[self.progress.stage]

    @property
    def steps_in_stage(self) -> int:
        """The steps that the present stage has made."""
        return self.progress.step - self.progress.stage_steps

    def steps_of(self, settings: TrainingSettings) -> int | None:
        """The steps of a stage; None where the data has no length and nothing limits it."""
        whole = self.steps_per_epoch * settings.num_train_epochs or None
        limit = settings.max_steps if settings.max_steps > 0 else None
        return min(filter(None, (whole, limit)), default=None)

    @property
    def total_steps(self) -> int | None:
        """The steps of the present stage."""
        return self.steps_of(self.stage.settings)

    @property
    def run_steps(self) -> int | None:
        """The steps of all stages; None where they are not known."""
        steps = [self.steps_of(stage.settings) for stage in self.stages]
        return None if None in steps else sum(filter(None, steps))

    @property
    def stage_progress(self) -> float:
        """How much of the present stage is done, from 0 to 1: where schedules are."""
        return self.steps_in_stage / self.total_steps if self.total_steps else 0.0

    @property
    def out_of_steps(self) -> bool:
        """Whether the present stage makes no further step: it was stopped, or has made its `max_steps`."""
        return self.progress.stopped or 0 < self.stage.settings.max_steps <= self.steps_in_stage

    @property
    def stage_is_over(self) -> bool:
        epochs = self.progress.epoch - self.progress.stage_epochs
        return self.out_of_steps or epochs >= self.stage.settings.num_train_epochs

    @property
    def has_next_stage(self) -> bool:
        return self.progress.stage + 1 < len(self.stages)

    def advance(self, batches: int) -> None:
        """Count a step that took so many batches."""
        progress = self.progress
        progress.step, progress.batches = progress.step + 1, progress.batches + batches
        if self.steps_per_epoch:
            part = progress.batches / self.settings.gradient_accumulation_steps / self.steps_per_epoch
            progress.fraction = progress.epoch + part

    # --- its end

    def stop(self) -> None:
        """End the run after the present step; several processes end it together, after an evaluation or an epoch."""
        self.stop_asked = True
        if self.accelerator.num_processes == 1:
            self.progress.stopped = True

    def agree_to_stop(self) -> None:
        if self.accelerator.num_processes > 1:
            here = torch.tensor(int(self.stop_asked), device=self.accelerator.device)
            self.progress.stopped = bool(self.accelerator.reduce(here, "sum"))

    # --- what is told of it

    def call(self, event: str, *data: Any) -> None:
        """Let the callbacks of the main process know."""
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                getattr(callback, event)(self, *data)

    def open_trackers(self) -> None:
        if self.settings.report_to and not self.accelerator.trackers:
            self.accelerator.init_trackers("distillation", {k: str(v) for k, v in self.settings.to_dict().items()})

    def log(self, values: Mapping[str, float]) -> None:
        """Hand values to the trackers of `report_to`, at the present step."""
        self.open_trackers()
        self.accelerator.log(dict(values), step=self.progress.step)

    def log_means(self) -> None:
        """The means of loss and terms since the last line go to trackers and callbacks."""
        values = self.since_log.read(self.accelerator)
        if values:
            values["learning_rate"] = self.scheduler.get_last_lr()[0]
            self.accelerator.log(values, step=self.progress.step)
            self.call("on_log", values)

    def stop_if_not_finite(self) -> None:
        """Before anything is measured or kept: a loss that is no number is logged now, and the guard ends the run."""
        loss = self.since_log.sums.get("loss")
        if loss is not None and not torch.isfinite(self.accelerator.reduce(loss, "sum")):
            self.log_means()

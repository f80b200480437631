"""The runner: one loop for distillation and for fine-tuning, from a batch to a saved student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config.entry import Entry
from ..config.settings import TrainingSettings
from ..config.stages import stages_of
from ..data.loading import TrainBatches, choose, loader_of, seeded
from ..data.two_tokenizers import two_token_streams
from ..errors import CheckpointError, ConfigError, DataError, raise_all
from ..evaluation.evaluators import TaskEvaluator
from ..features import attention
from ..features.batch_context import batch_size, make_context
from ..features.inputs import (
    adapt_batch,
    forward_inputs,
    merged_inputs,
    named_inputs,
    predicts_next_token,
    same_inputs,
)
from ..features.preserve import modes_kept, preserved, resting
from ..objective.balance import gradient_norms
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..plan.bind import bind, token_by_token
from ..plan.plan import Plan
from ..storage import checkpoint
from ..teachers.frozen import FrozenTeacher
from ..teachers.teachers import Teachers, open_teachers
from . import accelerate as placement
from . import channels_last as layout
from . import checkpoints as keeping
from . import optimizers
from .batch import Batch
from .best_student import _no_such_metric
from .callbacks import Callback, History, NonFiniteGuard, ProgressBar
from .compiling import compile_layers
from .progress import Progress, Running
from .roles import cohort_of
from .step import StudentAndProjections

logger = logging.getLogger(__name__)


class KnowledgeDistiller:
    """Teach a student what a `distill_config` says. `train()` and `distillate()` are the same call.

    Args:
        teacher_model: the teacher, or several by name; None where no entry needs one (fine-tuning, `self` and `peer`
            teachers). They stay as they are.
        student_model: the student; it is trained in place.
        distill_config: a list of entries, a DistillConfig or the path of a YAML file; or give a `loss_model`.
        peer_model: another student, or several by name, trained beside it by the same config; with `teacher_name:
            peer` they teach each other (Zhang et al., Deep Mutual Learning, 2018). Saved in `output_dir/peers`.
        train_dataloader: any iterable of batches, sized or not; or give a `train_dataset`.
        dev_dataloader: iterable of batches for the evaluator; or give an `eval_dataset`.
        train_dataset, eval_dataset: tokenized rows; batched by length and padded to the longest row of the batch.
        data_collator, processing_class, compute_metrics: as in transformers' `Trainer`; `compute_metrics` is called
            as `(logits, labels)` on numpy arrays.
        train_data_adaptor, dev_data_adaptor: `(device, batch) -> (teacher_inputs, student_inputs)`, each a dict or a
            tuple. None: both models get the batch.
        teacher_output_adaptor, student_output_adaptor: model output -> `{"layer": {"output": tensor}}`. None: the
            ready-made names.
        loss_model: a `MultiLayerBasedDistillationLoss`, in place of `distill_config`.
        optimizer: None for AdamW. Projections join it as one more group.
        lr_scheduler: None for `lr_scheduler_type`; with an optimizer of your own, for a constant rate.
        evaluator: a callable `(student, teacher, dataloader, accelerator) -> metrics`, or an object with
            `evaluate(teacher_model, student_model, dev_data, dev_data_adaptor, epoch, step, loss_value)`, which is
            called after every step. None: `TaskEvaluator` where there is evaluation data.
        callbacks: further `Callback`s.
        output_dir: where student, checkpoints and history go; None writes nothing.
        device: None lets Accelerate choose.
        num_epoch: the older name of `num_train_epochs`.
        **settings: the fields of `TrainingSettings`.

    Raises:
        ConfigError, DataError, CheckpointError: before the first step and before anything is written.
    """

    def __init__(
        self,
        teacher_model: nn.Module | Mapping[str, nn.Module] | None = None,
        student_model: nn.Module | None = None,
        distill_config: Any = None,
        *,
        peer_model: nn.Module | Mapping[str, nn.Module] | None = None,
        train_dataloader: Iterable[Any] | None = None,
        dev_dataloader: Iterable[Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Callable[..., Any] | None = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        train_data_adaptor: Callable[..., Any] | None = None,
        dev_data_adaptor: Callable[..., Any] | None = None,
        teacher_output_adaptor: Callable[..., Any] | None = None,
        student_output_adaptor: Callable[..., Any] | None = None,
        loss_model: MultiLayerBasedDistillationLoss | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: Any = None,
        evaluator: Any = None,
        callbacks: Sequence[Callback] = (),
        output_dir: str | Path | None = None,
        device: torch.device | str | None = None,
        num_epoch: int | None = None,
        **settings: Any,
    ) -> None:
        teachers, peers = cohort_of(student_model, teacher_model, peer_model)
        assert student_model is not None
        if evaluator is not None and not callable(evaluator) and not hasattr(evaluator, "evaluate"):
            raise ConfigError(f"evaluator is a callable, or an object with a method evaluate; found {evaluator!r}")
        if (loss_model is None) == (distill_config is None):
            raise ConfigError("give either distill_config or loss_model")
        if num_epoch is not None:
            settings.setdefault("num_train_epochs", num_epoch)
        self.settings = TrainingSettings.parse(settings)
        self.loss_model = loss_model or MultiLayerBasedDistillationLoss(
            distill_config, teacher_output_adaptor, student_output_adaptor
        )
        self.student = student_model
        self.students = {"": student_model, **peers}
        self.loss_model.prepare(list(peers), balanced=self.settings.balance != "none")
        self.stages = stages_of(self.loss_model.config, self.settings)
        if len(self.stages) > 1 and (optimizer is not None or lr_scheduler is not None):
            raise ConfigError("each stage has an optimizer and a schedule of its own: leave yours out, or the stages")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.processing_class = processing_class
        self.train_data_adaptor = train_data_adaptor or same_inputs
        self.dev_data_adaptor = dev_data_adaptor or self.train_data_adaptor
        self.evaluator = evaluator
        self.callbacks: list[Callback] = list(callbacks)
        if isinstance(train_dataloader, Callback) and train_dataloader not in self.callbacks:
            self.callbacks.insert(0, train_dataloader)  # a data-free source learns between the steps
        self.progress = Progress()
        self.total_steps: int | None = None
        self._optimizer, self._scheduler = optimizer, lr_scheduler
        self._undo = ExitStack()
        self._plan: Plan | None = None
        self._all_teachers = Teachers({}, {})
        self._ready = self._optimizer_ready = self._stop_asked = self._tracked = False
        self.metrics: dict[str, float] = {}
        self.recipe: Mapping[str, Any] | None = None  # what made the data and the models, where a file says it
        self._losses: dict[str, float] = {}
        self._idle_batch: Batch
        self._logged = Running()

        self.accelerator = placement.make_accelerator(self.settings, device, self.output_dir)
        choose(train_dataloader, train_dataset, "train")
        choose(dev_dataloader, eval_dataset, "dev")
        self._train_loader, self.dev_dataloader = train_dataloader, dev_dataloader
        self._num_samples: int | None = None
        if train_dataset is not None:
            self._train_loader = self._loader(train_dataset, data_collator, train=True)
            self._num_samples = len(train_dataset)
        if eval_dataset is not None:
            self.dev_dataloader = self._loader(eval_dataset, data_collator, train=False)
        if self.evaluator is None and self.dev_dataloader is not None:
            self.evaluator = TaskEvaluator(
                compute_metrics, self.dev_data_adaptor, fixed_order=eval_dataset is not None
            )
        self._asked_each_step = hasattr(self.evaluator, "evaluate")
        for model in self.students.values():
            model.to(self.accelerator.device)
        dtype = placement.teacher_dtype(self.settings, self.accelerator)
        self.teachers = {
            name: FrozenTeacher(model, dtype, self.accelerator.device, nn.ModuleList(self.students.values()))
            for name, model in teachers.items()
        }
        for callback in self.callbacks:
            callback.on_init_end(self)

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The teacher, of several the first: the one that evaluators compare with."""
        return next(iter(self.teachers.values()), None)

    # --- the algorithm -------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | Path = False) -> dict[str, float]:
        """Train to the end.

        Returns the mean loss and terms of the last epoch, the metrics of the last evaluation (`eval_…`) and the best
        value of the primary one (`best_…`), which is that of the student in `output_dir/student`; the student in
        memory is the last one.

        Args:
            resume_from_checkpoint: go on from the last checkpoint of `output_dir` (True), or from the checkpoint or
                run directory named; a run that has no checkpoint yet starts afresh.
        """
        try:
            self._prepare()
            self._check_evaluation()
            self._open_output(resume_from_checkpoint)
            self._run()
        finally:
            self.close()
        return {**self._losses, **self.metrics}

    distillate = train

    def _run(self) -> None:
        settings, progress = self.settings, self.progress
        try:
            self._call("on_train_begin")
            for number in range(progress.stage, len(self.stages)):
                self._enter(number)
                while not self._stage_is_over():
                    self._losses = self._epoch(managed=True)
                    last = self._stage_is_over()
                    if last or not settings.eval_steps:
                        self._evaluate_and_keep_best()
                    if last or not settings.save_steps:
                        self._save_checkpoint()
                if progress.stopped:
                    break
            if self.output_dir is not None:
                keeping.save_students(self, self.output_dir, student=not self._keeps_best())
        finally:
            try:
                self._call("on_train_end")
            finally:
                for tracker in self.accelerator.trackers:  # the processes go on together: a run may be measured now
                    tracker.finish()

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training data, for a loop of one's own. Returns the mean of the loss and of every term."""
        self._prepare()
        self._open_trackers()
        while self._stage_is_over() and not self.progress.stopped and self._is_followed():
            self._enter(self.progress.stage + 1)
        return {} if self._finished() else self._epoch(managed=False)

    def _epoch(self, managed: bool) -> dict[str, float]:
        """The rest of the present epoch. A managed one evaluates and saves as the settings say."""
        self.module.train()
        self._all_teachers.begin_epoch()
        fresh = self.progress.batches == 0
        whole = Running()
        size = self.settings.gradient_accumulation_steps
        for window in self.batches.windows(self.progress.epoch, size, skip=self.progress.batches):
            values = self._step([self._batch(raw) for raw in window])
            whole.add(values)
            self._after_step(values, len(window), managed)
            if self._finished():
                break
        else:
            self.progress.epoch, self.progress.batches = self.progress.epoch + 1, 0
            self.progress.fraction = float(self.progress.epoch)
            self._all_teachers.end_epoch(self.accelerator, whole=fresh)
            self._agree_to_stop()
        if self._finished() and not self.progress.stopped and self._is_followed():
            self.progress.end_epoch()
        self._log()
        return whole.read(self.accelerator)

    def cache_teachers(self) -> dict[str, int]:
        """Fill the caches of `teacher_cache` ahead of time: one pass of every teacher over the training data.

        What is there already is not computed again, so a fill that was broken off goes on.

        Returns:
            The number of samples in the cache of each folder.

        Raises:
            ConfigError: there is no `teacher_cache`, or no entry has a teacher that could be cached.
            CacheError: the folder is of something else, or the disk or the limit would not hold it.
        """
        if self.settings.teacher_cache is None:
            raise ConfigError("teacher_cache is missing: the folder in which the teacher's features are kept")
        filled: dict[str, int] = {}
        before = replace(self.progress)
        try:
            for number in range(len(self.stages)):
                self._enter(number)
                filled |= self._fill_caches()
        finally:
            self._leave(unless=before.stage)
            self.close()
            self.progress = before
        if not filled:
            raise ConfigError("no entry has a teacher of its own, so there is nothing to cache")
        return filled

    def _fill_caches(self) -> dict[str, int]:
        teachers = self._all_teachers
        if not teachers.caches:
            return {}
        teachers.begin_epoch(judged=False)
        quiet = self.settings.disable_tqdm or not self.accelerator.is_main_process
        total = self._steps_per_epoch * self.settings.gradient_accumulation_steps
        windows = self.batches.windows(0, 1)
        with self.batches.unmoved():
            for window in tqdm(windows, "teacher cache", total or None, leave=False, disable=quiet, unit="batch"):
                for batch in map(self._batch, window):
                    teachers.start(batch.teachers, batch.teachers_on_cpu)()
        teachers.end_epoch(self.accelerator, whole=True)
        return teachers.sizes()

    def _step(self, window: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step on an accumulation window. Returns this process's share of the loss and of its terms."""
        counts, progress = self._counts(window), self._stage_progress()
        values: dict[str, Tensor] = {}
        batches = window or [self._idle_batch]  # a process out of batches takes part with a loss of zero
        if self.accelerator.num_processes > 1 and self.loss_model.losses:  # a memory may ask the other processes
            missing = self.settings.gradient_accumulation_steps - len(batches)
            batches = batches + [self._idle_batch] * missing
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.module):
                teacher_features = self._all_teachers.start(batch.teachers, batch.teachers_on_cpu)
                projected, own = self.module(batch.students, progress)
                features = {**own, **teacher_features()}
                terms = self.loss_model.terms(projected, features, batch.context, counts, progress)
                share = 1.0 if number <= len(window) else 0.0
                if number == 1:
                    sizes = self._gradient_norms(terms.attached)
                # Gradients are averaged over processes and counts are summed over them: the sum is what is wanted.
                factor = share * self.accelerator.num_processes
                self.accelerator.backward(terms.loss if factor == 1 else terms.loss * factor)
            for name, value in {"loss": terms.loss.detach(), **terms.values}.items():
                value = value if share == 1 else value * share
                values[name] = values[name] + value if name in values else value
        if self.settings.max_grad_norm:
            self.accelerator.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self._idle_batch = batches[-1]
        return values | self._rebalance(sizes or {name: v for name, v in values.items() if name != "loss"})

    def _counts(self, window: list[Batch]) -> dict[str, Any] | None:
        """What each entry's sum is divided by: counted over the whole window and all processes, before any pass."""
        if self.accelerator.num_processes == 1 and len(window) == 1:
            return None  # the batch is the whole
        device = self.accelerator.device
        sums = {name: torch.zeros((), device=device) for name in self.loss_model.bound}
        for batch in window:
            for name, number in self.loss_model.counts(batch.context).items():
                sums[name] = sums[name] + number
        reduced = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
        return dict(zip(sums, reduced, strict=True))

    def _gradient_norms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every `balance_steps` steps, where terms are balanced by their gradients: the norms of these."""
        if self.settings.balance != "gradient_norm" or not self._measures_gradients():
            return {}
        students = nn.ModuleList(self.students.values())
        return gradient_norms(terms, [p for p in students.parameters() if p.requires_grad])

    def _measures_gradients(self) -> bool:
        return (self.progress.step - self.progress.stage_steps) % self.settings.balance_steps == 0

    def _rebalance(self, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take in the sizes of this step's terms; this process's share of the factors it had, for the history."""
        balance = self.loss_model.balance
        if balance is None:
            return {}
        factors = balance.values(self.loss_model.bound)
        if sizes and (self.settings.balance != "gradient_norm" or self._measures_gradients()):
            summed = self.accelerator.reduce(torch.stack([size.float() for size in sizes.values()]), "sum")
            balance.update(dict(zip(sizes, summed, strict=True)))
        return {name: factor / self.accelerator.num_processes for name, factor in factors.items()}

    def _after_step(self, values: dict[str, Tensor], batches: int, managed: bool) -> None:
        progress, settings = self.progress, self.settings
        progress.step, progress.batches = progress.step + 1, progress.batches + batches
        if self._steps_per_epoch:
            progress.fraction = (
                progress.epoch + progress.batches / settings.gradient_accumulation_steps / self._steps_per_epoch
            )
        self._logged.add(values)
        self._call("on_step_end")
        if progress.step % settings.logging_steps == 0:
            self._log()
        if self._asked_each_step:
            self._ask_evaluator(values["loss"])
        if managed and settings.eval_steps and progress.step % settings.eval_steps == 0:
            self._evaluate_and_keep_best()
        if managed and settings.save_steps and progress.step % settings.save_steps == 0 and not self._finished():
            self._save_checkpoint()

    def _sides(self, raw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the data adaptor makes of a batch, for each student and each teacher, each by its own names.

        With caches it is on the CPU, where looking at it waits for nothing.
        """
        device = torch.device("cpu") if self._all_teachers.caches else self.accelerator.device
        for_teacher, for_student = adapt_batch(self.train_data_adaptor, device, raw)
        students = {name: named_inputs(for_student, model, name or "student") for name, model in self.students.items()}
        teachers = {
            name: named_inputs(for_teacher, teacher.model, f"teacher {name}".strip())
            for name, teacher in self.teachers.items()
        }
        return students, teachers

    def _batch(self, raw: Any) -> Batch:
        students, teachers = self._sides(raw)
        on_cpu = self._all_teachers.on_cpu(teachers)
        if on_cpu:
            device = self.accelerator.device
            students, teachers = send_to_device((students, teachers), device, non_blocking=device.type == "cuda")
        own = self.loss_model.reads_own_loss
        context = make_context(students[""], merged_inputs(teachers) or None, predicts_next_token(self.student))
        return Batch(
            {name: forward_inputs(inputs, self.students[name], own) for name, inputs in students.items()},
            {name: forward_inputs(inputs, self.teachers[name].model) for name, inputs in teachers.items()},
            context,
            on_cpu,
        )

    # --- measuring -----------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """The evaluator's metrics of the student as it is now.

        Raises:
            ConfigError: there is nothing to evaluate on, or the evaluator decides for itself when to measure.
        """
        if self._asked_each_step or self.evaluator is None:
            raise ConfigError("evaluate() needs dev_dataloader or eval_dataset, and an evaluator that is a callable")
        with resting(self.student), torch.no_grad():
            metrics = self.evaluator(self.student, self.teacher, self.dev_dataloader, self.accelerator)
        if not isinstance(metrics, Mapping):
            raise ConfigError(f"the evaluator returned {metrics!r}; a dict of metrics by name is needed")
        return {name: float(value) for name, value in metrics.items()}

    def log(self, values: Mapping[str, float]) -> None:
        """Hand values to the trackers of `report_to`, at the present step: for a loop of one's own."""
        self._prepare()
        self._open_trackers()
        self.accelerator.log(dict(values), step=self.progress.step)

    def _evaluate_and_keep_best(self) -> None:
        if self.evaluator is None or self._asked_each_step or self.progress.evaluated == self.progress.step:
            return
        self._end_if_not_finite()
        self.progress.evaluated = self.progress.step
        metrics = self.evaluate()
        self.metrics = {f"eval_{name}": value for name, value in metrics.items()}
        self.accelerator.log(self.metrics, step=self.progress.step)
        if self._keeps_best():
            name = self._keep_if_best(metrics)
            self.metrics[f"best_{name}"] = self.progress.best  # type: ignore[assignment]
        self._call("on_evaluate", metrics)
        self._agree_to_stop()

    def _keep_if_best(self, metrics: dict[str, float]) -> str:
        name = self.settings.metric_for_best_model or self.evaluator.primary_metric
        if name not in metrics:
            raise _no_such_metric(name, metrics)
        greater = self.settings.greater_is_better
        greater = getattr(self.evaluator, "greater_is_better", True) if greater is None else greater
        best, value = self.progress.best, metrics[name]
        if best is None or math.isnan(best) or (value > best if greater else value < best):
            self.progress.best = value
            if self.output_dir is not None:
                keeping.save_students(self, self.output_dir, peers=False)
        return name

    def _keeps_best(self) -> bool:
        named = self.settings.metric_for_best_model or getattr(self.evaluator, "primary_metric", None) is not None
        return self.evaluator is not None and not self._asked_each_step and bool(named)

    def _ask_evaluator(self, loss: Tensor) -> None:
        """The long-known form: asked after every step, with the loss as a detached 0-d tensor."""
        loss = self.accelerator.reduce(loss, "sum")
        if self.accelerator.is_main_process:
            with modes_kept(self.student):
                self.evaluator.evaluate(
                    teacher_model=self.teacher,
                    student_model=self.student,
                    dev_data=self.dev_dataloader,
                    dev_data_adaptor=self.dev_data_adaptor,
                    epoch=self.progress.epoch + 1,
                    step=self.progress.step,
                    loss_value=loss,
                )

    def _log(self) -> None:
        values = self._logged.read(self.accelerator)
        if values:
            values["learning_rate"] = self.scheduler.get_last_lr()[0]
            self.accelerator.log(values, step=self.progress.step)
            self._call("on_log", values)

    def _end_if_not_finite(self) -> None:
        """Before anything is measured or kept: a loss that is no number is logged now, and the guard ends the run."""
        loss = self._logged.sums.get("loss")
        if loss is not None and not torch.isfinite(self.accelerator.reduce(loss, "sum")):
            self._log()

    # --- preparing -----------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Bind the config to all models on the first batch, and check everything; `print` it to read it."""
        if self._plan is None:
            if self._train_loader is None:
                raise ConfigError("train_dataloader or train_dataset is missing")
            if not hasattr(self, "batches"):
                self.batches = TrainBatches(self._train_loader, self.settings.seed, self.accelerator)
            self._plan = self._bound(self.loss_model.config.entries, cached=len(self.stages) == 1)
            for note in self._plan.notes:
                if note.startswith("warning: "):
                    logger.warning(note.removeprefix("warning: "))
        return self._plan

    def _bound(self, entries: Sequence[Entry], cached: bool) -> Plan:
        with seeded(self.settings.seed):  # projections begin alike on every process
            raw = self.batches.peek()
            students, teachers = self._sides(raw)
            sides = (self.students, self.teachers, students, teachers)
            plan = bind(self.loss_model, *sides, entries, self._num_samples, self.processing_class)
        if self.train_data_adaptor is two_token_streams:
            raise_all(ConfigError, "distill_config", token_by_token(plan, entries))
        self._undo.callback(plan.close)
        try:
            if self.settings.torch_compile:
                self._compile(plan)
            else:
                self._speed_up_attention()
            for model in self._in_half_precision():
                self._undo.callback(layout.channels_last(model))
            if cached:
                stage, adaptor = self.stages[self.progress.stage].name, self.loss_model.teacher_output_adaptor
                self._all_teachers = open_teachers(
                    self.settings, self.teachers, plan.teachers, teachers, stage, adaptor
                )
                self._undo.callback(self._all_teachers.close)
            self._idle_batch = self._batch(raw)
            if self._all_teachers.caches:
                plan.notes += self._all_teachers.cache_notes(*self._sizes(), self._idle_batch.teachers_on_cpu)
        except BaseException:
            self.close()
            raise
        return plan

    def _speed_up_attention(self) -> None:
        for model in filter(attention.pays, self._in_half_precision(torch.bfloat16)):
            self._undo.callback(attention.use(model))  # type: ignore[arg-type]

    def _in_half_precision(self, *types: torch.dtype) -> list[nn.Module]:
        """The models that compute in one of `types`, of bfloat16 and float16 where none is given."""
        types = types or (torch.bfloat16, torch.float16)
        models = [teacher.model for teacher in self.teachers.values() if teacher.dtype in types]
        return [*models, *(self.students.values() if placement.half_precision(self.accelerator) in types else ())]

    def _sizes(self) -> tuple[Any, int | None]:
        """The length of every training sample, and about how many there are, as far as it is known."""
        lengths = getattr(getattr(self._train_loader, "batch_sampler", None), "lengths", None)
        rows: Any = getattr(self._train_loader, "dataset", None)
        if lengths is not None or hasattr(rows, "__len__"):
            return lengths, len(rows if lengths is None else lengths)
        try:
            batches = len(self._train_loader)  # type: ignore[arg-type]
        except TypeError:
            return None, None
        return None, batches * batch_size(self._idle_batch.context)

    def _compile(self, plan: Plan) -> None:
        models = {
            f"teacher {name}".strip(): self.teachers[name].model for name in plan.teachers if name in self.teachers
        }
        models |= {name or "student": self.students[name] for name in plan.students}
        notes, restore = compile_layers(models, self.accelerator.device)
        self._undo.callback(restore)
        plan.notes += notes

    def _prepare(self) -> None:
        """Everything before the first step of a stage, once: plan, frozen rest, optimizer, schedule, placement."""
        if self._ready:
            return
        plan, stage = self.plan(), self.stages[self.progress.stage]
        if len(self.stages) > 1:
            self._undo.close()
            self._plan = plan = self._bound(stage.entries, cached=True)
        for parameter in plan.idle:
            parameter.requires_grad_(False)
            self._undo.callback(parameter.requires_grad_, True)
        module = StudentAndProjections(self.students, self.loss_model, plan)
        module.to(self.accelerator.device)
        # A memory of the training set is kept equal by the loss that has it: no need to send it around at each step.
        memories = [name for name, _ in module.named_buffers() if name.endswith("_memory")]
        module._ddp_params_and_buffers_to_ignore = memories  # type: ignore[assignment]
        self._count_steps()
        for other in self.stages:  # nothing wrong starts: a later stage is checked now as well
            if self._steps_of(other.settings) is None and any(entry.schedule for entry in other.entries):
                raise ConfigError(
                    "a schedule follows the progress of the run, and the data has no length: set max_steps"
                )
            if self._scheduler is None:
                optimizers.check_scheduler(other.settings)
        if self._optimizer_ready:  # closed and opened again: optimizer and schedule go on
            self.module = self.accelerator.prepare(module)
            self._parameters = list(module.parameters())
            self._ready = True
            return
        own, rates = self._optimizer, self.loss_model.learning_rates()
        if own is None:
            optimizer = optimizers.make_optimizer(stage.settings, module, rates)
        else:
            optimizer = own
            known = {id(p) for group in own.param_groups for p in group["params"]}
            left_out = [n for n, peer in self.students.items() if n and not known & {id(p) for p in peer.parameters()}]
            if left_out:
                raise ConfigError(
                    f"optimizer holds no parameter of {', '.join(left_out)}: give it the parameters of every student"
                )
            extra = [p for p in self.loss_model.parameters() if id(p) not in known and p.requires_grad]
            for rate in dict.fromkeys(rates.get(id(p)) for p in extra) if self._scheduler is None else ():
                group = {"params": [p for p in extra if rates.get(id(p)) == rate]}
                optimizer.add_param_group(group if rate is None else {**group, "lr": rate})
            if self._scheduler is not None and any(id(p) in rates for p in extra):
                raise ConfigError("an entry has a learning_rate, and your lr_scheduler does not know it: leave it out")
            if extra and self._scheduler is not None:  # a schedule made before knows only the groups that were there
                optimizer.param_groups[0]["params"].extend(extra)
        layout.keep_alike(optimizer)
        scheduler = self._scheduler or (
            optimizers.make_scheduler(stage.settings, optimizer, self.total_steps)
            if own is None
            else optimizers.constant_rate(optimizer)
        )
        self.module, self.optimizer, self.scheduler = self.accelerator.prepare(module, optimizer, scheduler)
        self._parameters = list(module.parameters())
        set_seed(self.settings.seed + self.progress.stage, device_specific=True)
        self._ready = self._optimizer_ready = True

    def _enter(self, number: int) -> None:
        """Begin a stage, or go on with it: its entries alone are bound, its optimizer and schedule are fresh."""
        self._leave(unless=number)
        if number != self.progress.stage:
            self.progress.enter(number)
        self._prepare()

    def _leave(self, unless: int) -> None:
        """Let go of what belongs to the present stage, unless it is that one."""
        if unless != self.progress.stage:
            self.close()
            self.accelerator.free_memory()
            self._optimizer_ready = False

    def _stage_progress(self) -> float:
        """How much of the present stage is done, from 0 to 1."""
        return (self.progress.step - self.progress.stage_steps) / self.total_steps if self.total_steps else 0.0

    def _is_followed(self) -> bool:
        """Whether a stage comes after the present one."""
        return self.progress.stage + 1 < len(self.stages)

    def _stage_is_over(self) -> bool:
        epochs = self.progress.epoch - self.progress.stage_epochs
        return self._finished() or epochs >= self.stages[self.progress.stage].settings.num_train_epochs

    def _check_evaluation(self) -> None:
        """See before the first step that there is something to evaluate on, and the metric to keep the best by."""
        data, wanted = self.dev_dataloader, self.settings.metric_for_best_model
        if data is None or self.evaluator is None or self._asked_each_step or isinstance(data, Iterator):
            return
        batches = TrainBatches(data, self.settings.seed, self.accelerator, "evaluation")
        first = batches.first()
        if not batches.most(len(first)):
            raise DataError("the evaluation data is empty: it has no batch")
        if wanted and isinstance(self.evaluator, TaskEvaluator):
            with preserved(self.student):
                names = self.evaluator.names(self.student, self.teacher, first, self.accelerator)
            if names and wanted not in names:
                raise _no_such_metric(wanted, names)

    def _count_steps(self) -> None:
        try:
            self._steps_per_epoch = math.ceil(len(self.batches) / self.settings.gradient_accumulation_steps)
        except TypeError:
            self._steps_per_epoch = 0
        self.total_steps = self._steps_of(self.stages[self.progress.stage].settings)

    def _steps_of(self, settings: TrainingSettings) -> int | None:
        """The steps of a stage; None where the data has no length and nothing limits it."""
        most = self._steps_per_epoch * settings.num_train_epochs or None
        limit = settings.max_steps if settings.max_steps > 0 else None
        return min(filter(None, (most, limit)), default=None)

    @property
    def run_steps(self) -> int | None:
        """The steps of all stages; None where they are not known."""
        steps = [self._steps_of(stage.settings) for stage in self.stages]
        return None if None in steps else sum(filter(None, steps))

    def _loader(self, dataset: Any, data_collator: Callable[..., Any] | None, train: bool) -> Any:
        indexed = train and self.loss_model.asks_for("sample_index")
        return loader_of(
            dataset, self.settings, self.accelerator, data_collator, self.processing_class, train, indexed
        )

    def stop(self) -> None:
        """End the run after the present step; several processes end it together, after an evaluation or an epoch."""
        self._stop_asked = True
        if self.accelerator.num_processes == 1:
            self.progress.stopped = True

    def _agree_to_stop(self) -> None:
        if self.accelerator.num_processes > 1:
            here = torch.tensor(int(self._stop_asked), device=self.accelerator.device)
            self.progress.stopped = bool(self.accelerator.reduce(here, "sum"))

    def _finished(self) -> bool:
        limit = self.stages[self.progress.stage].settings.max_steps
        return self.progress.stopped or (0 < limit <= self.progress.step - self.progress.stage_steps)

    @property
    def is_taught(self) -> bool:
        """Whether any entry is more than the labels."""
        return not all(entry.hard for stage in self.stages for entry in stage.entries)

    def close(self) -> None:
        """Take every hook off the models, and let frozen parameters train again."""
        try:
            self._undo.close()
        finally:
            self._plan, self._ready = None, False

    # --- keeping -------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path | None = None) -> None:
        """Write the student and a checkpoint to go on from, in the layout of an `output_dir`."""
        target = self.output_dir if directory is None else Path(directory)
        if target is None:
            raise ConfigError("save() needs a directory, since there is no output_dir")
        self._prepare()
        keeping.save_students(self, target)
        self._save_checkpoint(target)

    def load_state(
        self,
        *,
        student: str | Path | None = None,
        projections: str | Path | None = None,
        optimizer: str | Path | None = None,
        progress: str | Path | None = None,
    ) -> int:
        """Load parts of an earlier run, each from a run directory or a checkpoint; what is left out stays as it is.

        Args:
            student: also a student directory.
            optimizer: state of the optimizer and its schedule.
            progress: place in the training, and random states.

        Returns:
            The number of epochs done: where a loop of one's own goes on.
        """
        parts = [None if part is None else Path(part) for part in (student, projections, optimizer, progress)]
        staged = [checkpoint.latest(part) for part in (parts[3], parts[2]) if part is not None]
        if staged:  # the stage says which entries there are, and so which parameters
            stage = keeping.stage_in(staged[0], len(self.stages))
            self._leave(unless=stage)
            self.progress.stage = stage
        self._prepare()
        keeping.load(self, *parts)
        return self.progress.epoch

    def _open_output(self, resume: bool | str | Path) -> None:
        if self.output_dir is not None:
            shape = {
                "batches": self._steps_per_epoch,
                "processes": self.accelerator.num_processes,
                "mixed_precision": self.accelerator.mixed_precision,
            }
            keeping.open_output(self, self.output_dir, resume, shape)
        elif resume:
            raise CheckpointError("resume_from_checkpoint needs an output_dir")
        self._add_standard_callbacks()
        self._open_trackers()

    def _open_trackers(self) -> None:
        if self.settings.report_to and not self._tracked:
            self.accelerator.init_trackers("distillation", {k: str(v) for k, v in self.settings.to_dict().items()})
            self._tracked = True

    def _add_standard_callbacks(self) -> None:
        standard: list[Callback] = [NonFiniteGuard()]
        if self.output_dir is not None:
            standard.append(History(self.output_dir / "history.jsonl"))
        if not self.settings.disable_tqdm:
            standard.append(ProgressBar())
        present = {type(callback) for callback in self.callbacks}
        self.callbacks += [callback for callback in standard if type(callback) not in present]

    def _save_checkpoint(self, directory: Path | None = None) -> None:
        directory = directory or self.output_dir
        if directory is None:
            return
        self._end_if_not_finite()
        self._all_teachers.flush()
        saved = keeping.save_checkpoint(self, directory)
        self._call("on_save", saved)
        self.accelerator.wait_for_everyone()

    def _call(self, event: str, *data: Any) -> None:
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                getattr(callback, event)(self, *data)

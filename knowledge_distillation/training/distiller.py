"""`KnowledgeDistiller`: what a person hands over, checked and made into a run; and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..config.settings import TrainingSettings
from ..config.stages import stages_of
from ..data.class_labels import with_class_numbers
from ..data.row_files import rows_of_file
from ..data.streams import is_stream
from ..data.train_batches import TrainBatches, check_one_source, loader_of
from ..errors import CheckpointError, ConfigError
from ..evaluation.evaluators import TaskEvaluator
from ..features.inputs import same_inputs
from ..models.classes import class_names
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..plan.plan import Plan
from ..storage import checkpoint_files
from ..storage.run_directory import as_place
from ..teachers.frozen import FrozenTeacher
from . import checkpoints, loop
from .accelerate import join_processes, make_accelerator, others_may_end
from .batch import adapt, make_batch
from .best_student import check_evaluation, evaluate
from .callbacks import Callback, check_callbacks, standard_callbacks
from .given import check_adaptors, check_calls, check_read, notes_of_unread
from .precision import choose, kept_precision, rows_of, to_float32
from .prepare import close, enter_stage, leave_stage, make_plan, prepare
from .roles import check_apart, lent_modules, models_by_role
from .run import Run


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
        train_dataset, eval_dataset: tokenized rows, or the path of a file of them; batched by length and padded to the
            longest row of the batch. Streams (`IterableDataset`) come in their own order, and end by `max_steps`.
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
        args: the settings, parsed; or give their fields by name.
        num_epoch: the older name of `num_train_epochs`.
        **settings: the fields of `TrainingSettings`.

    What the run holds is read and set under its name: `progress`, `student`, `teachers`, `loss_model`, `accelerator`,
    `evaluator`, `optimizer` and the others of `Run`.

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
        callbacks: Sequence[Callback] | None = None,
        output_dir: str | Path | None = None,
        device: torch.device | str | None = None,
        args: TrainingSettings | None = None,
        num_epoch: int | None = None,
        **settings: Any,
    ) -> None:
        teachers, peers = models_by_role(student_model, teacher_model, peer_model)
        assert student_model is not None
        students = {"": student_model, **peers}
        check_apart(students, teachers)
        check_calls(
            evaluator=evaluator,
            compute_metrics=compute_metrics,
            data_collator=data_collator,
            train_data_adaptor=train_data_adaptor,
            dev_data_adaptor=dev_data_adaptor,
            teacher_output_adaptor=teacher_output_adaptor,
            student_output_adaptor=student_output_adaptor,
        )
        if (loss_model is None) == (distill_config is None):
            raise ConfigError("give either distill_config or loss_model")
        if num_epoch is not None:
            settings.setdefault("num_train_epochs", num_epoch)
        if args is not None and settings:
            raise ConfigError(f"give either args, or settings by name: {', '.join(settings)}")
        args = args or TrainingSettings.parse(settings)
        check_adaptors(loss_model, teacher=teacher_output_adaptor, student=student_output_adaptor)
        loss_model = loss_model or MultiLayerBasedDistillationLoss(
            distill_config, teacher_output_adaptor, student_output_adaptor
        )
        loss_model.prepare(list(peers), balanced=args.balance != "none")
        loss_model.say_shift(args.shift_labels)
        stages = stages_of(loss_model.config, args)
        if len(stages) > 1 and (optimizer is not None or lr_scheduler is not None):
            raise ConfigError("each stage has an optimizer and a schedule of its own: leave yours out, or the stages")
        output_dir = None if output_dir is None else as_place(output_dir)
        place = join_processes(device)

        check_one_source(train_dataloader, train_dataset, "train")
        check_one_source(dev_dataloader, eval_dataset, "dev")
        datasets_given = [rows is not None for rows in (train_dataset, eval_dataset)]
        has_dev_data = dev_dataloader is not None or eval_dataset is not None
        check_read(compute_metrics, evaluator, has_dev_data)
        names = class_names(student_model)
        train_dataset, eval_dataset = (
            with_class_numbers(rows_of_file(rows), names) for rows in (train_dataset, eval_dataset)
        )
        if train_dataset is not None:
            indexed = loss_model.asks_for("sample_index")
            train_dataloader = loader_of(
                train_dataset,
                args,
                place,
                data_collator,
                processing_class,
                train=True,
                indexed=indexed,
                student=student_model,
            )
        if eval_dataset is not None:
            dev_dataloader = loader_of(
                eval_dataset, args, place, data_collator, processing_class, train=False, student=student_model
            )
        train_data_adaptor = train_data_adaptor or same_inputs
        dev_data_adaptor = dev_data_adaptor or train_data_adaptor
        if evaluator is None and dev_dataloader is not None:
            fixed_order = eval_dataset is not None and not is_stream(eval_dataset)
            evaluator = TaskEvaluator(
                compute_metrics, dev_data_adaptor, fixed_order=fixed_order, shift_labels=args.shift_labels
            )

        with others_may_end(place):
            precision = choose(
                args,
                place,
                student_model,
                teachers.values(),
                lambda: rows_of(train_dataloader, args.seed, place),
                kept_precision(args, output_dir),
            )
        accelerator = make_accelerator(args, place, precision.mixed_precision, output_dir)
        for model in students.values():
            model.to(accelerator.device)
        callbacks = check_callbacks(callbacks)
        notes = to_float32(students, args)
        own = {"batches": train_dataloader is not None and not datasets_given[0], "optimizer": optimizer is not None}
        own |= {
            "schedule": lr_scheduler is not None,
            "collator": data_collator is not None and not any(datasets_given),
        }
        notes += notes_of_unread(args, own, output_dir, evaluator)
        if isinstance(train_dataloader, Callback) and train_dataloader not in callbacks:
            callbacks.insert(0, train_dataloader)  # a data-free source learns between the steps
        self.run = Run(
            students=students,
            teachers={
                name: FrozenTeacher(model, precision.teacher, accelerator.device) for name, model in teachers.items()
            },
            loss_model=loss_model,
            settings=args,
            stages=stages,
            accelerator=accelerator,
            train_data_adaptor=train_data_adaptor,
            dev_data_adaptor=dev_data_adaptor,
            callbacks=callbacks,
            batches=None if train_dataloader is None else TrainBatches(train_dataloader, args.seed, accelerator),
            train_dataloader=train_dataloader,
            dev_dataloader=dev_dataloader,
            own_optimizer=optimizer,
            own_scheduler=lr_scheduler,
            evaluator=evaluator,
            processing_class=processing_class,
            output_dir=output_dir,
            lent=lent_modules(students, teachers),
            notes=[*filter(None, [precision.why]), *notes],
            num_samples=len(train_dataset) if hasattr(train_dataset, "__len__") else None,
        )
        for callback in callbacks:
            callback.on_init_end(self.run)

    def __getattr__(self, name: str) -> Any:
        if name == "run":
            raise AttributeError(name)
        try:
            return getattr(self.run, name)
        except AttributeError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "run" and not hasattr(type(self), name) and hasattr(self.run, name):
            setattr(self.run, name, value)
        else:
            super().__setattr__(name, value)

    def plan(self) -> Plan:
        """Bind the config to all models on the first batch, and check everything; `print` it to read it."""
        return make_plan(self.run)

    def train(self, resume_from_checkpoint: bool | str | Path = False) -> dict[str, float]:
        """Train to the end.

        Returns the mean loss and terms of the last epoch, the metrics of the last evaluation (`eval_…`) and the best
        value of the primary one (`best_…`), which is that of the student in `output_dir/student`; the student in
        memory is the last one.

        Args:
            resume_from_checkpoint: go on from the last checkpoint of `output_dir` (True), or from the checkpoint or
                run directory named; a run that has no checkpoint yet starts afresh.
        """
        run = self.run
        try:
            with others_may_end(run.accelerator):
                prepare(run)
                check_evaluation(run)
                run.callbacks += standard_callbacks(run)
                if run.output_dir is not None:
                    self._open_output(run.output_dir, resume_from_checkpoint)
                elif resume_from_checkpoint:
                    raise CheckpointError("resume_from_checkpoint needs an output_dir")
                run.open_trackers()
                loop.train(run)
        finally:
            try:
                self.close()
            finally:
                if run.release is not None:
                    run.release()
                    run.release = None
        return {**run.losses, **run.metrics}

    distillate = train

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training data, for a loop of one's own. Returns the mean of the loss and of every term."""
        run = self.run
        with others_may_end(run.accelerator):
            prepare(run)
            run.open_trackers()
            while run.stage_is_over and not run.progress.stopped and run.has_next_stage:
                enter_stage(run, run.progress.stage + 1)
            return {} if run.out_of_steps else loop.train_epoch(run, managed=False)

    def evaluate(self) -> dict[str, float]:
        """The evaluator's metrics of the student as it is now.

        Raises:
            ConfigError: there is nothing to evaluate on, or the evaluator decides for itself when to measure.
        """
        return evaluate(self.run)

    def log(self, values: Mapping[str, float]) -> None:
        """Hand values to the trackers of `report_to`, at the present step: for a loop of one's own."""
        prepare(self.run)
        self.run.log(values)

    def cache_teachers(self) -> dict[str, int]:
        """Fill the caches of `teacher_cache` ahead of time: one pass of every teacher over the training data.

        What is there already is not computed again, so a fill that was broken off goes on.

        Returns:
            The number of samples in the cache of each folder.

        Raises:
            ConfigError: there is no `teacher_cache`, or no entry has a teacher that could be cached.
            CacheError: the folder is of something else, or the disk or the limit would not hold it.
        """
        run = self.run
        if run.settings.teacher_cache is None:
            raise ConfigError("teacher_cache is missing: the folder in which the teacher's features are kept")
        samples: dict[str, int] = {}
        before = replace(run.progress)
        try:
            for number in range(len(run.stages)):
                enter_stage(run, number)
                samples |= self._fill_caches()
        finally:
            leave_stage(run, unless=before.stage)
            self.close()
            run.progress = before
        if not samples:
            raise ConfigError("no entry has a teacher of its own, so there is nothing to cache")
        return samples

    def _fill_caches(self) -> dict[str, int]:
        run, teachers = self.run, self.run.stage_teachers
        if not teachers.caches:
            return {}
        teachers.begin_epoch(judged=False)
        quiet = run.settings.disable_tqdm or not run.accelerator.is_main_process
        total = run.steps_per_epoch * run.settings.gradient_accumulation_steps
        windows = run.batches.windows(0, 1)
        with run.batches.generators_kept():
            for window in tqdm(windows, "teacher cache", total or None, leave=False, disable=quiet, unit="batch"):
                for raw in window:
                    batch = make_batch(run, adapt(run, raw))
                    teachers.start(batch.teachers, batch.teachers_on_cpu)()
        teachers.end_epoch(run.accelerator, whole=True)
        return teachers.sizes()

    def stop(self) -> None:
        """End the run after the present step; several processes end it together, after an evaluation or an epoch."""
        self.run.stop()

    def close(self) -> None:
        """Take every hook off the models, and let frozen parameters train again."""
        close(self.run)

    def save(self, directory: str | Path | None = None) -> None:
        """Write the student and a checkpoint to go on from, in the layout of an `output_dir`."""
        target = self.run.output_dir if directory is None else Path(directory)
        if target is None:
            raise ConfigError("save() needs a directory, since there is no output_dir")
        prepare(self.run)
        checkpoints.save_students(self.run, target)
        checkpoints.save(self.run, target)
        checkpoints.mark(self.run, target)

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
        run = self.run
        parts = [None if part is None else Path(part) for part in (student, projections, optimizer, progress)]
        staged = [checkpoint_files.latest(part) for part in (parts[3], parts[2]) if part is not None]
        if staged:  # the stage says which entries there are, and so which parameters
            stage = checkpoints.read_stage(run, staged[0])
            leave_stage(run, unless=stage)
            run.progress.stage = stage
        prepare(run)
        checkpoints.read(run, *parts)
        return run.progress.epoch

    def _open_output(self, directory: Path, resume: bool | str | Path) -> None:
        """Make the output directory this run's own, or go on from what it holds."""
        if not isinstance(resume, bool):
            resume = as_place(resume, "resume_from_checkpoint")
        identity = checkpoints.check_directory(self.run, bool(resume))
        folder = directory if isinstance(resume, bool) else resume
        if resume and (checkpoint_files.checkpoints(folder) or folder != directory):
            self.load_state(student=folder, projections=folder, optimizer=folder, progress=folder)
        checkpoints.claim_directory(self.run, identity, bool(resume))

"""Everything before the first step of a stage, and the way back: plan, caches, optimizer, schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ..config.entry import Entry
from ..data.train_batches import seeded
from ..data.two_tokenizers import two_token_streams
from ..errors import ConfigError, DataError, raise_all
from ..features import attention
from ..features.batch_context import batch_size
from ..plan.bind import bind, token_by_token
from ..plan.plan import Plan
from ..plan.top_k import temperatures_of_top_k
from ..teachers.teachers import Teachers, open_teachers
from .accelerate import half_precision
from .batch import adapt, make_batch, on_device
from .channels_last import channels_last, follow_layout
from .class_order import settle_classes
from .fit_projections import fit_projections
from .optimizers import check_scheduler, constant_rate, make_optimizer, make_scheduler
from .row_checks import check_rows, naming_first_rows
from .run import Run
from .step import StudentAndProjections

logger = logging.getLogger(__name__)


def make_plan(run: Run) -> Plan:
    """Bind the config to all models on the first batch, and check everything."""
    if run.plan is None:
        if run.batches is None:
            raise ConfigError("train_dataloader or train_dataset is missing")
        with naming_first_rows(run):
            run.plan = bind_entries(run, run.loss_model.config.entries, cached=len(run.stages) == 1)
        try:
            check_rows(run)
        except BaseException:
            close(run)
            raise
        for note in run.plan.notes:
            if note.startswith("warning: "):
                logger.warning(note.removeprefix("warning: "))
    return run.plan


def bind_entries(run: Run, entries: Sequence[Entry], cached: bool) -> Plan:
    """Bind some entries on the first batch; open the teachers' caches for them where `cached`."""
    settle_classes(run)
    with seeded(run.settings.seed):  # projections begin alike on every process
        inputs = adapt(run, run.batches.peek())
        students, teachers = on_device(run, inputs)
        sides = (run.students, run.teachers, students, teachers)
        plan = bind(run.loss_model, *sides, entries, run.num_samples, run.processing_class, run.names)
    run.undo.callback(plan.close)
    for module, mode in run.lent:
        run.undo.callback(setattr, module, "training", mode)
    plan.notes += [*filter(None, [run.data_note]), *run.class_notes]
    try:
        if run.train_data_adaptor is two_token_streams:
            raise_all(ConfigError, "distill_config", token_by_token(plan, entries))
        top_k = run.settings.teacher_cache_top_k if run.settings.teacher_cache else None
        temperatures, problems = temperatures_of_top_k(plan, entries, top_k)
        raise_all(ConfigError, "distill_config", problems)
        for model in filter(attention.is_faster, models_in(run, torch.bfloat16)):
            run.undo.callback(attention.switch_on(model))
        for model in models_in(run, torch.bfloat16, torch.float16):
            run.undo.callback(channels_last(model))
        if cached:
            adaptor = run.loss_model.teacher_output_adaptor
            run.stage_teachers = open_teachers(
                run.settings, run.teachers, plan.teachers, teachers, run.stage.name, adaptor, temperatures
            )
            run.undo.callback(run.stage_teachers.close)
        run.idle_batch = make_batch(run, inputs)
        plan.notes += run.notes
        if run.stage_teachers.caches:
            plan.notes += run.stage_teachers.cache_notes(*sizes_of_data(run), run.idle_batch.teachers_on_cpu)
    except BaseException:
        close(run)
        raise
    return plan


def prepare(run: Run) -> None:
    """Everything before the first step of the present stage, once."""
    if run.module is not None:
        return
    plan = make_plan(run)
    if len(run.stages) > 1:
        run.undo.close()
        run.plan = plan = bind_entries(run, run.stage.entries, cached=True)
    for parameter in plan.idle:
        parameter.requires_grad_(False)
        run.undo.callback(parameter.requires_grad_, True)
    module = StudentAndProjections(run.students, run.loss_model, plan)
    module.to(run.accelerator.device)
    # A memory of the training set is kept equal by the loss that has it: no need to send it around at each step.
    memories = [name for name, _ in module.named_buffers() if name.endswith("_memory")]
    module._ddp_params_and_buffers_to_ignore = memories  # type: ignore[assignment]
    run.parameters = list(module.parameters())
    count_steps(run)
    fit_projections(run)
    if run.optimizer is None:
        optimizer, scheduler = optimizer_of(run, module)
        follow_layout(optimizer)
        run.module, run.optimizer, run.scheduler = run.accelerator.prepare(module, optimizer, scheduler)
        set_seed(run.settings.seed + run.progress.stage, device_specific=True)
    else:  # closed and opened again: optimizer and schedule go on
        run.module = run.accelerator.prepare(module)


def count_steps(run: Run) -> None:
    """How many steps an epoch has; and a later stage that could not know its length is an error now."""
    try:
        run.steps_per_epoch = math.ceil(len(run.batches) / run.settings.gradient_accumulation_steps)
    except TypeError:
        run.steps_per_epoch = 0
    else:
        if not run.steps_per_epoch:
            raise DataError("the training data says that it has 0 batches, and has some: its length is wrong")
    for stage in run.stages:
        if run.steps_of(stage.settings) is None and any(entry.schedule for entry in stage.entries):
            raise ConfigError("a schedule follows the progress of the run, and the data has no length: set max_steps")
        if run.own_scheduler is None:
            check_scheduler(stage.settings)


def optimizer_of(run: Run, module: nn.Module) -> tuple[Any, Any]:
    """Optimizer and schedule of a stage: the user's own, with the projections as one more group; or new ones."""
    rates, optimizer, scheduler = run.loss_model.learning_rates(), run.own_optimizer, run.own_scheduler
    if optimizer is None:
        optimizer = make_optimizer(run.stage.settings, module, rates)
        return optimizer, scheduler or make_scheduler(run.stage.settings, optimizer, run.total_steps)
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, peer in run.peers.items() if not present & {id(p) for p in peer.parameters()}]
    if left_out:
        raise ConfigError(
            f"optimizer holds no parameter of {', '.join(left_out)}: give it the parameters of every student"
        )
    extra = [p for p in run.loss_model.parameters() if id(p) not in present and p.requires_grad]
    if scheduler is None:
        for rate in dict.fromkeys(rates.get(id(p)) for p in extra):
            group = {"params": [p for p in extra if rates.get(id(p)) == rate]}
            optimizer.add_param_group(group if rate is None else {**group, "lr": rate})
        return optimizer, constant_rate(optimizer)
    if any(id(p) in rates for p in extra):
        raise ConfigError("an entry has a learning_rate, and your lr_scheduler does not know it: leave it out")
    if extra:  # a schedule made before knows only the groups that were there
        optimizer.param_groups[0]["params"].extend(extra)
    return optimizer, scheduler


def enter_stage(run: Run, number: int) -> None:
    """Begin a stage, or go on with it: its entries alone are bound, its optimizer and schedule are fresh."""
    leave_stage(run, unless=number)
    if number != run.progress.stage:
        run.progress.enter(number)
    prepare(run)


def leave_stage(run: Run, unless: int) -> None:
    """Let go of what belongs to the present stage, unless it is that one."""
    if unless != run.progress.stage:
        close(run)
        run.accelerator.free_memory()
        run.optimizer = run.scheduler = None


def close(run: Run) -> None:
    """Take every hook off the models, and let frozen parameters train again."""
    try:
        run.undo.close()
    finally:
        run.plan = run.module = None
        run.stage_teachers = Teachers({}, {})


def models_in(run: Run, *types: torch.dtype) -> list[nn.Module]:
    """The models that compute in one of these types."""
    teachers = [teacher.model for teacher in run.teachers.values() if teacher.dtype in types]
    return [*teachers, *(run.students.values() if half_precision(run.accelerator) in types else ())]


def sizes_of_data(run: Run) -> tuple[Any, int | None]:
    """The length of every training sample, and about how many there are, as far as it is known."""
    loader: Any = run.train_dataloader
    lengths = getattr(getattr(loader, "batch_sampler", None), "lengths", None)
    rows: Any = getattr(loader, "dataset", None)
    if lengths is not None or hasattr(rows, "__len__"):
        return lengths, len(rows if lengths is None else lengths)
    try:
        return None, len(loader) * batch_size(run.idle_batch.context)
    except TypeError:
        return None, None

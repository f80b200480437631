"""Bind entries to all models on one probe batch: everything checked, every problem raised at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import PEER, SELF, Entry, Feature
from ..errors import ConfigError, nearest, raise_all
from ..features.batch_context import PER_TOKEN, make_context
from ..features.deferred import Deferred
from ..features.inputs import (
    Inputs,
    check_vocabulary,
    checked_inputs,
    merged_inputs,
    on_first_batch,
    predicts_next_token,
)
from ..features.preserve import preserved
from ..features.source import Source
from ..objective.loss import loss_of
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..objective.projections import kind_after
from ..teachers.frozen import FrozenTeacher
from .plan import Plan
from .rows import notes_of, row_of
from .sources import _said_of_deferred, _source


def bind(
    loss_model: MultiLayerBasedDistillationLoss,
    students: Mapping[str, nn.Module],
    teachers: Mapping[str, FrozenTeacher],
    student_inputs: Mapping[str, Inputs],
    teacher_inputs: Mapping[str, Inputs],
    entries: Sequence[Entry] | None = None,
    num_samples: int | None = None,
    tokenizer: Any = None,
) -> Plan:
    """Bind a loss model to its models. The probe leaves weights, buffers and random state as they were.

    Args:
        students: the models that train by name: the student under the empty name, and its peers.
        teachers: the frozen ones; one that is alone has the empty name.
        student_inputs, teacher_inputs: `named_inputs` of each of them on one batch.
        entries: those to bind; None for all of the config.
        num_samples: the size of the training set, where it is known.
        tokenizer: the students', and that of every teacher that reads the student's tokens.

    Raises:
        ConfigError: every problem in the config, each with its entry.
        DataError: a model cannot run on the batch.
    """
    config = loss_model.config
    bound = config.entries if entries is None else tuple(entries)
    problems = [*config.problems, *_unknown_teachers(bound, students, teachers)]
    student = students[""]
    context = make_context(student_inputs[""], merged_inputs(teacher_inputs) or None, predicts_next_token(student))
    modes = {name: model.training for name, model in students.items()} | {None: loss_model.training}
    loss_model.eval()  # what a loss remembers begins with the run, not with the probe
    taken: dict[str, dict[str, Source]] = {"student": {}, "teacher": {}}
    found: dict[str, dict[Feature, Any]] = {"student": {}, "teacher": {}}
    runs: dict[str, dict[str, Any]] = {}
    for name, model in students.items():
        check_vocabulary(model, student_inputs[name], name or "student", tokenizer)
    for name, teacher in teachers.items():
        same_tokens = teacher_inputs[name].get("input_ids") is student_inputs[""].get("input_ids")
        if any(f.model == name for entry in bound for f in entry.teacher):
            words = tokenizer if same_tokens else None
            check_vocabulary(teacher.model, teacher_inputs[name], f"teacher {name}".strip(), words)
    try:
        for name, teacher in teachers.items():
            wanted = _readers((entry, [f for f in entry.teacher if f.model == name]) for entry in bound)
            if wanted:
                who = f"teacher {name}".strip()
                run = teacher.cast(checked_inputs(teacher_inputs[name], teacher.model, who))
                adaptor = loss_model.teacher_output_adaptor
                taken["teacher"][name] = source = _source(teacher.model, run, wanted, who, adaptor, problems)
                with on_first_batch(who, run):
                    given = teacher.features(source.features, run)
                source.shapes = {feature: torch.empty(one.shape, device="meta") for feature, one in given.items()}
                found["teacher"] |= given
        for name, model in students.items():
            model.train()
            who = name or "student"
            runs[name] = checked_inputs(student_inputs[name], model, who, loss_model.reads_own_loss)
            wanted = _readers((entry, _of(name, entry)) for entry in bound)
            adaptor = loss_model.student_output_adaptor
            taken["student"][name] = _source(model, runs[name], wanted, who, adaptor, problems)
        with ExitStack() as stack, torch.enable_grad():
            for name, model in students.items():
                stack.enter_context(preserved(model))
                with torch.enable_grad(), on_first_batch(name or "student", runs[name]):
                    found["student"] |= taken["student"][name].features(runs[name])
            with torch.enable_grad():
                models = {name: teacher.model for name, teacher in teachers.items()}
                models |= {name or SELF: model for name, model in students.items()}
                rows, losses = _bind_entries(loss_model, bound, found, taken, context, problems, models, num_samples)
                trained = nn.ModuleList([*students.values(), loss_model])
                reached = _reached(losses, trained)
                problems += [] if problems else _frozen_projections(loss_model, bound, reached)
                for name, model in students.items():
                    if not problems and any(p.requires_grad and id(p) not in reached for p in model.parameters()):
                        model.eval()  # a pass that skips layers at random must not decide what is frozen
                        reached |= _reached(taken["student"][name].features(runs[name]).values(), model)
        raise_all(ConfigError, "distill_config", problems)
    except BaseException:
        for source in (*taken["student"].values(), *taken["teacher"].values()):
            source.close()
        raise
    finally:
        for name, model in students.items():
            model.train(modes[name])
        loss_model.train(modes[None])
    unreached = [n for n, p in student.named_parameters() if p.requires_grad and id(p) not in reached]
    idle = [p for p in trained.parameters() if p.requires_grad and id(p) not in reached]
    for side, sources in taken.items():
        for source in sources.values():
            source.notes += _said_of_deferred(source, found[side])
    notes = notes_of(taken, students, teachers, loss_model, unreached)
    return Plan(taken["student"], taken["teacher"], rows, notes, unreached, idle)


def _frozen_projections(
    loss_model: MultiLayerBasedDistillationLoss, entries: Iterable[Entry], reached: set[int]
) -> Iterator[tuple[int, str]]:
    """Projections of the teacher's side that are to be trained, by a loss that gives that side no gradient."""
    for entry in entries:
        parameters = [p for module in loss_model.projections_of(entry, "teacher") for p in module.parameters()]
        if any(p.requires_grad for p in parameters) and not any(id(p) in reached for p in parameters):
            yield (
                entry.index,
                f"loss {entry.loss_name} gives its teacher's side no gradient, so teacher_projection would stay as it "
                "begins. Project the student's side, or load one: projection_checkpoint, with trainable: false",
            )


def _of(name: str, entry: Entry) -> list[Feature]:
    """The features of an entry that a student gives: those it learns by, and those it teaches itself or a peer."""
    teaching = [f for f in entry.teacher if f.model == (name or SELF)]
    return [f for f in entry.student if f.model == name] + teaching


def _readers(read: Iterable[tuple[Entry, list[Feature]]]) -> dict[Feature, list[Entry]]:
    """The entries that read each feature."""
    readers: dict[Feature, list[Entry]] = {}
    for entry, features in read:
        for feature in dict.fromkeys(features):
            readers.setdefault(feature, []).append(entry)
    return readers


def _unknown_teachers(
    entries: Iterable[Entry], students: Mapping[str, nn.Module], teachers: Mapping[str, FrozenTeacher]
) -> Iterator[tuple[int, str]]:
    known = [*filter(None, (*teachers, *students)), SELF]
    for entry in entries:
        for name in dict.fromkeys(feature.model for feature in entry.teacher):
            if name == SELF or name in teachers or (name and name in students):
                continue
            if not name and not teachers:
                yield entry.index, "compares with a teacher, and there is no teacher_model"
            elif not name:
                yield entry.index, f"there are several teachers: say which by teacher_name, of {', '.join(teachers)}"
            elif name == PEER:
                yield entry.index, "teacher_name peer needs a peer_model"
            else:
                near = nearest(name, known)
                yield entry.index, f"teacher_name {name!r} is no teacher here.{near} Known: {', '.join(known)}"


def token_by_token(plan: Plan, entries: Iterable[Entry]) -> list[tuple[int, str]]:
    """The entries that would compare the tokens of two models that read different ones."""
    kinds = {feature: kind for source in plan.students.values() for feature, kind in source.kinds.items()}
    taught = {feature for source in plan.teachers.values() for feature in source.kinds}
    return [
        (
            entry.index,
            f"{entry.teacher[0]} and {entry.student[0]} have values for each token, and the two models read different "
            "tokens: map logits or pooled vectors",
        )
        for entry in entries
        if taught.intersection(entry.teacher) and kind_after(entry.projection, kinds[entry.student[0]]) in PER_TOKEN
    ]


def _bind_entries(
    loss_model: MultiLayerBasedDistillationLoss,
    entries: Iterable[Entry],
    found: Mapping[str, Mapping[Feature, Any]],
    taken: Mapping[str, Mapping[str, Source]],
    context: Mapping[str, Any],
    problems: list[tuple[int, str]],
    models: Mapping[str, nn.Module],
    num_samples: int | None,
) -> tuple[list[tuple[str, ...]], list[Tensor]]:
    rows, losses = [], []
    learning, teaching = found["student"], {**found["student"], **found["teacher"]}
    kinds = {feature: kind for source in taken["student"].values() for feature, kind in source.kinds.items()}
    loss_model.unbind()
    flawed = {index for index, _ in loss_model.config.problems}
    for entry in entries:
        if entry.index in flawed:
            problems += [(entry.index, text) for text in _loss_problems(entry, context)]
            continue
        teacher_side = found["teacher"] if all(f in found["teacher"] for f in entry.teacher) else teaching
        nowhere = [f for f in entry.student if f not in learning]
        nowhere += [f for f in entry.teacher if f not in teacher_side or f.model not in models]
        if nowhere:
            problems += [(entry.index, text) for text in _loss_problems(entry, context)]
            continue
        target = {feature: teacher_side[feature].detach() for feature in entry.teacher}
        try:
            teacher_model = models[entry.teacher[0].model] if entry.teacher else None
            kind = kinds[entry.student[0]]
            terms = loss_model.bind(entry, learning, target, kind, context, teacher_model, num_samples)
            projected = entry.name in loss_model.projections or bool(entry.projection.shared)
            if not projected and not any(learning[feature].requires_grad for feature in entry.student):
                raise ConfigError(
                    f"{entry.student[0]}: no gradient can reach the student from here: its parameters are frozen"
                )
            if not terms.loss.requires_grad:
                raise ConfigError(
                    f"loss {entry.loss_name} cuts the gradient: its value does not depend on the student"
                )
        except ConfigError as error:
            problems.append((entry.index, str(error)))
            continue
        losses.append(terms.loss)
        rows.append(row_of(loss_model, entry, learning, target))
    return rows, losses


def _loss_problems(entry: Entry, context: Mapping[str, Any]) -> list[str]:
    """What can be said of an entry's loss without its features."""
    try:
        problem = loss_of(entry, None).argument_problem(context)
    except ConfigError as error:
        return [str(error)]
    return [problem] if problem else []


def _reached(features: Iterable[Tensor | Deferred], student: nn.Module) -> set[int]:
    """The ids of a model's parameters that a gradient of these tensors reaches."""
    parts = [f.parts.values() if isinstance(f, Deferred) else [f] for f in features]
    total = [tensor.sum() for tensor in chain.from_iterable(parts) if tensor.requires_grad]
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not total or not parameters:
        return set()
    try:
        gradients = torch.autograd.grad(torch.stack(total).sum(), parameters, allow_unused=True)
    except RuntimeError as error:
        raise ConfigError(f"the student's gradient cannot be taken ({error}): set use_reentrant=False") from error
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

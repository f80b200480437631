"""Bind entries to all models on one probe batch: everything checked, every problem raised at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..config.entry import PEER, SELF, Entry
from ..errors import ConfigError, nearest, raise_all
from ..features.batch_context import PER_TOKEN, make_context
from ..features.catalogue import Catalogue
from ..features.deferred import Deferred
from ..features.inputs import (
    Inputs,
    check_mask,
    check_token_ids,
    check_tokenizer,
    checked_inputs,
    merged_inputs,
    same_tokens,
)
from ..features.label_shift import label_shift
from ..features.preserve import modes_kept, preserved
from ..objective.loss import loss_of
from ..objective.loss_model import MultiLayerBasedDistillationLoss
from ..objective.projections import kind_after
from ..teachers.frozen import FrozenTeacher
from .plan import Plan
from .printed import notes_of, row_of
from .probe import Probe, Problems, readers_of, source_of
from .tokens import notes_of_classes, notes_of_tokens, other_shifts, unshared


def bind(
    loss_model: MultiLayerBasedDistillationLoss,
    students: Mapping[str, nn.Module],
    teachers: Mapping[str, FrozenTeacher],
    student_inputs: Mapping[str, Inputs],
    teacher_inputs: Mapping[str, Inputs],
    entries: Sequence[Entry] | None = None,
    num_samples: int | None = None,
    tokenizer: Any = None,
    names: MutableMapping[nn.Module, Catalogue] | None = None,
) -> Plan:
    """Bind a loss model to its models. The probe leaves weights, buffers and random state as they were.

    Args:
        students: the models that train by name: the student under the empty name, and its peers.
        teachers: the frozen ones; one that is alone has the empty name.
        student_inputs, teacher_inputs: `named_inputs` of each of them on one batch.
        entries: those to bind; None for all of the config.
        num_samples: the size of the training set, where it is known.
        tokenizer: the students', and that of every teacher that reads the student's tokens.
        names: those of models that were bound before on these inputs; those found now are added.

    Raises:
        ConfigError: every problem in the config, each with its entry.
        DataError: a model cannot run on the batch.
    """
    entries = loss_model.config.entries if entries is None else tuple(entries)
    names = {} if names is None else names
    problems = [*loss_model.config.problems, *_unknown_teachers(entries, students, teachers), *_weightless(entries)]
    teacher_probes = _probe_teachers(teachers, teacher_inputs, entries)
    student_probes = _probe_students(students, student_inputs, entries, loss_model.reads_own_loss)
    # Of every teacher, since an evaluator may ask one that no entry reads.
    _check_vocabularies(students, teachers, student_inputs, teacher_inputs, tokenizer)
    of_teachers = merged_inputs(teacher_inputs)
    labels = {**of_teachers, **student_inputs[""]}.get("labels")
    if loss_model.label_shift is None and loss_model.reads_labels:
        tokens = _tokens_of(student_inputs[""]) if labels is None else labels  # what a mask marks, where not labels
        loss_model.label_shift = label_shift(students[""], student_inputs[""], tokens)
    context = make_context(student_inputs[""], of_teachers or None, loss_model.shifts_labels)
    trained = nn.ModuleList([*students.values(), loss_model])
    with _preserved(students.values(), loss_model), ExitStack() as sources:
        for probe in (*teacher_probes, *student_probes):
            adaptor = loss_model.teacher_output_adaptor if probe.teacher else loss_model.student_output_adaptor
            probe.source = source_of(probe, adaptor, problems, names)
            sources.callback(probe.source.close)
        for probe in (*teacher_probes, *student_probes):
            probe.run()
        rows, losses = _bind_entries(
            loss_model, entries, teacher_probes, student_probes, context, num_samples, problems
        )
        with_gradient = set() if problems else _with_gradient(losses, trained)
        problems += [] if problems else _frozen_projections(loss_model, entries, with_gradient)
        problems += [] if problems else other_shifts(loss_model, (*teacher_probes, *student_probes), labels)
        problems += [] if problems else unshared(loss_model, (*teacher_probes, *student_probes), tokenizer)
        raise_all(ConfigError, "distill_config", problems)
        for probe in student_probes:
            if any(p.requires_grad and id(p) not in with_gradient for p in probe.model.parameters()):
                probe.model.eval()  # a pass that skips layers at random must not decide what is frozen
                with_gradient |= _with_gradient(probe.source.features(probe.inputs).values(), probe.model)
        idle = [p for p in trained.parameters() if p.requires_grad and id(p) not in with_gradient]
        unreached = [n for n, p in students[""].named_parameters() if p.requires_grad and id(p) not in with_gradient]
        notes = notes_of([*teacher_probes, *student_probes], loss_model, unreached)
        notes += notes_of_tokens(loss_model, context)
        notes += notes_of_classes(loss_model, (*teacher_probes, *student_probes), tokenizer)
        sources.pop_all()
    of_students, of_teachers = (
        {probe.name: probe.source for probe in side} for side in (student_probes, teacher_probes)
    )
    return Plan(of_students, of_teachers, rows, notes, unreached, idle)


def _tokens_of(inputs: Inputs) -> Any:
    return inputs.get("decoder_input_ids", inputs.get("input_ids"))


def _check_vocabularies(
    students: Mapping[str, nn.Module],
    teachers: Mapping[str, FrozenTeacher],
    student_inputs: Mapping[str, Inputs],
    teacher_inputs: Mapping[str, Inputs],
    tokenizer: Any,
) -> None:
    """See that every model knows the tokens of the batch, and those of the tokenizer where it made them."""
    of_students = [(model, student_inputs[name], name or "student") for name, model in students.items()]
    of_teachers = [(t.model, teacher_inputs[name], f"teacher {name}".strip()) for name, t in teachers.items()]
    ids = student_inputs[""].get("input_ids")
    for model, inputs, who in of_students + of_teachers:
        if same_tokens(inputs.get("input_ids"), ids):
            check_tokenizer(model, who, tokenizer)
    for model, inputs, who in of_teachers + of_students:
        check_token_ids(model, inputs, who)
        check_mask(inputs, who)


# --- every model on the batch ----------------------------------------------------------------------------------------


def _probe_teachers(
    teachers: Mapping[str, FrozenTeacher], inputs: Mapping[str, Inputs], entries: Sequence[Entry]
) -> list[Probe]:
    """Of the teachers that an entry reads."""
    probes = []
    for name, teacher in teachers.items():
        title, readers = f"teacher {name}".strip(), readers_of(entries, teacher=name)
        if readers:
            accepted = teacher.cast(checked_inputs(inputs[name], teacher.model, title))
            probes.append(Probe(name, title, teacher.model, accepted, readers, teacher))
    return probes


def _probe_students(
    students: Mapping[str, nn.Module], inputs: Mapping[str, Inputs], entries: Sequence[Entry], with_labels: bool
) -> list[Probe]:
    """Of every student: with the features it learns by, and those by which it teaches itself or a peer."""
    probes = []
    for name, model in students.items():
        title, readers = name or "student", readers_of(entries, teacher=name or SELF, student=name)
        probes.append(Probe(name, title, model, checked_inputs(inputs[name], model, title, with_labels), readers))
    return probes


@contextmanager
def _preserved(students: Iterable[nn.Module], loss_model: nn.Module) -> Iterator[None]:
    """Students run as in a step and are left as they were; what a loss remembers begins with the run."""
    with ExitStack() as state:
        for model in students:
            state.enter_context(modes_kept(model))
            state.enter_context(preserved(model))
            model.train()
        state.callback(loss_model.train, loss_model.training)
        loss_model.eval()
        state.enter_context(torch.enable_grad())
        yield


# --- every entry -----------------------------------------------------------------------------------------------------


def _bind_entries(
    loss_model: MultiLayerBasedDistillationLoss,
    entries: Iterable[Entry],
    teacher_probes: Sequence[Probe],
    student_probes: Sequence[Probe],
    context: Mapping[str, Any],
    num_samples: int | None,
    problems: Problems,
) -> tuple[list[tuple[str, ...]], list[Tensor]]:
    """The row and the loss of every entry that has no problem."""
    rows, losses = [], []
    student_features = {feature: value for probe in student_probes for feature, value in probe.features.items()}
    teacher_features = {feature: value for feature, value in student_features.items() if feature.model}
    for probe in teacher_probes:
        teacher_features |= probe.features
    students = {p.name: p.model for p in student_probes}
    models = {p.name: p.model for p in teacher_probes} | {p.name or SELF: p.model for p in student_probes}
    kinds = {feature: kind for probe in student_probes for feature, kind in probe.source.kinds.items()}
    flawed = loss_model.config.flawed
    loss_model.unbind()
    for entry in entries:
        missing = not (student_features.keys() >= {*entry.student} and teacher_features.keys() >= {*entry.teacher})
        if missing or entry.index in flawed:
            problems += [(entry.index, text) for text in _loss_problems(entry, context)]
            continue
        target = {feature: teacher_features[feature].detach() for feature in entry.teacher}
        try:
            teacher_model = models[entry.teacher[0].model] if entry.teacher else None
            kind = kinds[entry.student[0]]
            problem_type = getattr(getattr(students[entry.student[0].model], "config", None), "problem_type", None)
            of_run = (teacher_model, num_samples, problem_type)
            terms = loss_model.bind(entry, student_features, target, kind, context, *of_run)
            projected = entry.name in loss_model.projections or bool(entry.projection.shared)
            if not projected and not any(student_features[feature].requires_grad for feature in entry.student):
                why = _why_no_gradient(students[entry.student[0].model])
                raise ConfigError(f"{entry.student[0]}: no gradient can reach the student from here: {why}")
            if not terms.loss.requires_grad:
                raise ConfigError(
                    f"loss {entry.loss_name} cuts the gradient: its value does not depend on the student"
                )
        except ConfigError as error:
            problems.append((entry.index, str(error)))
            continue
        losses.append(terms.loss)
        rows.append(row_of(loss_model, entry, student_features, target))
    return rows, losses


def _why_no_gradient(student: nn.Module) -> str:
    if any(getattr(module, "gradient_checkpointing", False) for module in student.modules()):
        return "within reentrant gradient checkpointing there is none, set use_reentrant=False; or it is frozen"
    return "its parameters are frozen"


def _loss_problems(entry: Entry, context: Mapping[str, Any]) -> list[str]:
    """What can be said of an entry's loss without its features."""
    try:
        problem = loss_of(entry, None).argument_problem(context)
    except ConfigError as error:
        return [str(error)]
    return [problem] if problem else []


def _frozen_projections(
    loss_model: MultiLayerBasedDistillationLoss, entries: Iterable[Entry], with_gradient: set[int]
) -> Iterator[tuple[int, str]]:
    """Projections of the teacher's side that are to be trained, by a loss that gives that side no gradient."""
    for entry in entries:
        parameters = [p for module in loss_model.projections_of(entry, "teacher") for p in module.parameters()]
        if any(p.requires_grad for p in parameters) and not any(id(p) in with_gradient for p in parameters):
            yield (
                entry.index,
                f"loss {entry.loss_name} gives its teacher's side no gradient, so teacher_projection would stay as it "
                "begins. Project the student's side, or load one: projection_checkpoint, with trainable: false",
            )


def _unknown_teachers(
    entries: Iterable[Entry], students: Mapping[str, nn.Module], teachers: Mapping[str, FrozenTeacher]
) -> Iterator[tuple[int, str]]:
    names = [*filter(None, (*teachers, *students)), SELF]
    for entry in entries:
        for name in dict.fromkeys(feature.model for feature in entry.teacher):
            if name in names or name in teachers:
                continue
            if not name and not teachers:
                yield entry.index, "compares with a teacher, and there is no teacher_model"
            elif not name:
                yield entry.index, f"there are several teachers: say which by teacher_name, of {', '.join(teachers)}"
            elif name == PEER:
                yield entry.index, "teacher_name peer needs a peer_model"
            else:
                near = nearest(name, names)
                yield entry.index, f"teacher_name {name!r} is no teacher here.{near} Known: {', '.join(names)}"


def _weightless(entries: Sequence[Entry]) -> list[tuple[int, str]]:
    """Where no entry ever has a weight, the first of them."""
    if any(entry.schedule["weight"].highest if "weight" in entry.schedule else entry.weight for entry in entries):
        return []
    return [(entry.index, "the weight of every entry is 0, so nothing is learnt") for entry in entries[:1]]


def token_by_token(plan: Plan, entries: Iterable[Entry]) -> list[tuple[int, str]]:
    """The entries that would compare the tokens of two models that read different ones."""
    kinds = {feature: kind for source in plan.students.values() for feature, kind in source.kinds.items()}
    of_teachers = {feature for source in plan.teachers.values() for feature in source.kinds}
    return [
        (
            entry.index,
            f"{entry.teacher[0]} and {entry.student[0]} have values for each token, and the two models read different "
            "tokens: map logits or pooled vectors",
        )
        for entry in entries
        if of_teachers.intersection(entry.teacher)
        and kind_after(entry.projection, kinds[entry.student[0]]) in PER_TOKEN
    ]


def _with_gradient(features: Iterable[Tensor | Deferred], student: nn.Module) -> set[int]:
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

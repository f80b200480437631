"""Bind entries to all models on one probe batch: everything checked, every problem raised at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .adaptors import AdaptedOutput, Inputs, accepted, predicts_next_token, with_context
from .binding import argument_problem, takes_deferred
from .capture import Capture, Location, forward_parameters
from .config import PEER, SELF, Entry, Feature
from .context import kind_by_name, make_context
from .deferred import Deferred
from .errors import ConfigError, DataError, DistillationError, nearest, raise_all
from .features import Catalogue, Known, catalogue, first_rows, preserved, probe_kinds
from .loss_model import OWN_LOSS, MultiLayerBasedDistillationLoss
from .losses import functions_of
from .losses.reduction import PER_TOKEN
from .plan import Plan, Source, notes_of, row_of, shape_of
from .projections import kind_after
from .teachers import FrozenTeacher


def bind(
    loss_model: MultiLayerBasedDistillationLoss,
    students: Mapping[str, nn.Module],
    teachers: Mapping[str, FrozenTeacher],
    student_inputs: Mapping[str, Inputs],
    teacher_inputs: Mapping[str, Inputs],
    entries: Sequence[Entry] | None = None,
) -> Plan:
    """Bind a loss model to its models. The probe leaves weights, buffers and random state as they were.

    Args:
        students: the models that train by name: the student under the empty name, and its peers.
        teachers: the frozen ones; one that is alone has the empty name.
        student_inputs, teacher_inputs: what the data adaptor gave for each of them on one batch.
        entries: those to bind; None for all of the config.

    Raises:
        ConfigError: every problem in the config, each with its entry.
        DataError: a model cannot run on the batch.
    """
    config = loss_model.config
    bound = config.entries if entries is None else tuple(entries)
    problems = [*config.problems, *_unknown_teachers(bound, students, teachers)]
    student = students[""]
    loss_model.shift_labels = predicts_next_token(student)
    told = with_context(student_inputs[""], student)[1]
    taught = {
        key: value
        for name, teacher in reversed(list(teachers.items()))
        for key, value in with_context(teacher_inputs[name], teacher.model)[1].items()
    }
    context = make_context(told, taught or told, loss_model.shift_labels)
    modes = {name: model.training for name, model in students.items()} | {None: loss_model.training}
    loss_model.eval()  # what a loss remembers begins with the run, not with the probe
    taken: dict[str, dict[str, Source]] = {"student": {}, "teacher": {}}
    found: dict[str, dict[Feature, Any]] = {"student": {}, "teacher": {}}
    runs: dict[str, dict[str, Any]] = {}
    try:
        for name, teacher in teachers.items():
            wanted = _readers((entry, [f for f in entry.teacher if f.model == name]) for entry in bound)
            if wanted:
                who = f"teacher {name}".strip()
                check_vocabulary(teacher.model, teacher_inputs[name], who)
                run = teacher.cast(inputs_for(teacher_inputs[name], teacher.model, who))
                adaptor = loss_model.teacher_output_adaptor
                taken["teacher"][name] = source = _source(teacher.model, run, wanted, who, adaptor, problems)
                with on_first_batch(who, run):
                    given = teacher.features(source.features, run)
                source.shapes = {feature: torch.empty(one.shape, device="meta") for feature, one in given.items()}
                found["teacher"] |= given
        for name, model in students.items():
            model.train()
            who = name or "student"
            check_vocabulary(model, student_inputs[name], who)
            runs[name] = inputs_for(student_inputs[name], model, who, loss_model.reads_own_loss)
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
                rows, losses = _bind_entries(loss_model, bound, found, taken, context, problems, models)
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


def _said_of_deferred(source: Source, features: Mapping[Feature, Any]) -> list[str]:
    deferred = [str(feature) for feature in source.kinds if isinstance(features.get(feature), Deferred)]
    return [f"{', '.join(deferred)}: compared part by part, never kept whole"] if deferred else []


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


def check_vocabulary(model: nn.Module, inputs: Inputs, who: str) -> None:
    """Raise where a batch holds token ids that the model's embedding does not have."""
    ids = inputs.get("input_ids")
    get = getattr(model, "get_input_embeddings", None)
    try:
        rows = getattr(get() if get else None, "num_embeddings", None)
    except NotImplementedError:
        rows = None
    if not rows or not isinstance(ids, Tensor) or not ids.numel() or ids.is_floating_point():
        return
    if int(ids.max()) >= rows:
        raise ConfigError(
            f"input_ids hold id {int(ids.max())}, and the {who}'s vocabulary has {rows} entries. The text was "
            f"tokenized for another model: use the {who}'s own tokenizer, or a student with the teacher's vocabulary"
        )


def inputs_for(inputs: Inputs, model: nn.Module, who: str, labels_too: bool = False) -> dict[str, Any]:
    """The inputs that a model takes; a DataError where it takes none of what the batch has."""
    taken = accepted(inputs, model, labels_too)
    if not taken:
        takes = ", ".join(forward_parameters(model)[0])
        raise DataError(
            f"the {who} takes nothing of what the batch has ({', '.join(inputs) or 'nothing'}). It takes: {takes}"
        )
    return taken


@contextmanager
def on_first_batch(who: str, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Say which model failed and on what inputs."""
    try:
        yield
    except (DistillationError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = {k: shape_of(v) if isinstance(v, Tensor) else type(v).__name__ for k, v in inputs.items()}
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DataError(f"the {who} fails on the first batch ({shown}): {type(error).__name__}: {error}") from error


def _source(
    model: nn.Module,
    inputs: dict[str, Any],
    asked: Mapping[Feature, list[Entry]],
    who: str,
    adaptor: Any,
    problems: list[tuple[int, str]],
) -> Source:
    if adaptor is not None:
        return _adapted(model, inputs, asked, who, adaptor)
    with on_first_batch(who, inputs):
        names = catalogue(model, first_rows(inputs))
    known: dict[Feature, Known] = {}
    for feature, readers in asked.items():
        found = names.find(feature)
        if found is None:
            why = _no_own_loss(feature, inputs, model, who) or names.explain(feature, who)
            problems.append((readers[0].index, why))
        else:
            known[feature] = found
    places = {feature: one.location for feature, one in known.items()}
    kinds = {feature: one.kind for feature, one in known.items() if one.kind}
    unclear = {feature: place for feature, place in places.items() if feature not in kinds}
    kinds |= _probe(model, unclear, inputs, asked, problems)
    places = {feature: place for feature, place in places.items() if feature in kinds}
    deferred = [
        feature
        for feature, place in places.items()
        if place.source == "attention" and all(takes_deferred(entry, kinds[feature]) for entry in asked[feature])
    ]
    heads = {
        feature: head
        for feature in places
        if (head := known[feature].head) and all(takes_deferred(entry, kinds[feature]) for entry in asked[feature])
    }
    places |= heads
    source = Source(Capture(model, places, deferred=deferred), kinds, list(names.notes), heads=frozenset(heads))
    source.canonical = {
        feature: names.canonical(feature) for feature in places if names.canonical(feature) in names.known
    }
    for feature in heads:
        classes = known[feature].shape[-1]
        source.notes.append(
            f"{feature}: {classes} classes are compared some tokens at a time, and the logits not kept"
        )
    source.ran = _depth(names, places, source.features.stop_early) if places else "not at all"  # type: ignore[union-attr]
    return source


def _no_own_loss(feature: Feature, inputs: Inputs, model: nn.Module, who: str) -> str | None:
    """Why a model computes no loss of its own, where that is what was asked for."""
    if feature[:2] != OWN_LOSS or "labels" in inputs:
        return None
    if who.startswith("teacher"):
        return f"{feature}: only a student is given labels to compute a loss from"
    takes = "labels" in forward_parameters(model)[0]
    why = "the batch has no 'labels'" if takes else f"the forward of {type(model).__name__} takes no 'labels'"
    return f"{feature} is what the {who} computes from labels, and {why}"


def _probe(
    model: nn.Module,
    unclear: Mapping[Feature, Location],
    inputs: dict[str, Any],
    asked: Mapping[Feature, list[Entry]],
    problems: list[tuple[int, str]],
) -> dict[Feature, str]:
    kinds: dict[Feature, str] = {}
    for feature, place in unclear.items():
        try:
            kinds |= probe_kinds(model, {feature: place}, first_rows(inputs))
        except (ConfigError, KeyError, IndexError, TypeError) as error:
            problems.append((asked[feature][0].index, f"{feature}: {error}"))
    return kinds


def _adapted(
    model: nn.Module, inputs: dict[str, Any], asked: Mapping[Feature, list[Entry]], who: str, adaptor: Any
) -> Source:
    with preserved(model):
        features = AdaptedOutput(model, adaptor, list(asked), inputs, who)
        kinds = {feature: kind_by_name(feature, tensor) for feature, tensor in features(inputs).items()}
    return Source(
        features, kinds, [f"the {who}'s output adaptor takes its whole output"], "whole, for its output adaptor"
    )


def _depth(names: Catalogue, places: Mapping[Feature, Location], stops_early: bool) -> str:
    """How deep a model runs when it stops after the last of `places`."""
    if not stops_early:
        return "whole"
    last = max(place.order for place in places.values())
    parts = []
    for stack in ("encoder_layer", "decoder_layer", "layer"):
        depth = names.depth(stack)
        orders = [names.known[Feature(f"{stack}{n}", "hidden_states")].location.order for n in range(1, depth + 1)]
        if depth:
            begun = sum(order <= last for order in orders)
            inside = next((n for n, order in enumerate(orders, 1) if order > last), depth)
            touched = any(
                known.location.order <= last for f, known in names.known.items() if f.layer == f"{stack}{inside}"
            )
            parts.append(f"{max(begun, inside if touched else begun)} of {depth} {stack.replace('_', ' ')}s")
    logits = names.known.get(Feature("output", "logits"))
    whole = logits is not None and logits.location.order <= last
    return ", ".join(parts) + (", and the head" if whole else "") if parts else "to the deepest mapped module"


def _bind_entries(
    loss_model: MultiLayerBasedDistillationLoss,
    entries: Iterable[Entry],
    found: Mapping[str, Mapping[Feature, Any]],
    taken: Mapping[str, Mapping[str, Source]],
    context: Mapping[str, Any],
    problems: list[tuple[int, str]],
    models: Mapping[str, nn.Module],
) -> tuple[list[tuple[str, ...]], list[Tensor]]:
    rows, losses = [], []
    learning, teaching = found["student"], {**found["student"], **found["teacher"]}
    kinds = {feature: kind for source in taken["student"].values() for feature, kind in source.kinds.items()}
    loss_model.bound.clear()
    for entry in loss_model.config.sound_entries(entries):
        teacher_side = found["teacher"] if all(f in found["teacher"] for f in entry.teacher) else teaching
        nowhere = [f for f in entry.student if f not in learning]
        nowhere += [f for f in entry.teacher if f not in teacher_side or f.model not in models]
        if nowhere:
            problems += [(entry.index, text) for text in _loss_problems(entry, context)]
            continue
        target = {feature: teacher_side[feature].detach() for feature in entry.teacher}
        try:
            teacher_model = models[entry.teacher[0].model] if entry.teacher else None
            terms = loss_model.bind(entry, learning, target, kinds[entry.student[0]], context, teacher_model)
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
        functions = [entry.loss] if callable(entry.loss) else list(functions_of(entry.loss, entry.hard).values())
    except ConfigError as error:
        return [str(error)]
    problem = argument_problem(entry, functions[0], context)
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

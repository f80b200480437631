"""Entries and features in, loss and named terms out: every entry that is on, with its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config.entry import DistillConfig, Entry, Feature
from ..config.parse import parse_config
from ..errors import ConfigError, raise_all
from ..features.adaptors import OutputAdaptor
from ..features.batch_context import batch_size, make_context, mask_keys
from ..features.deferred import Deferred, HeadLogits, materialized
from ..features.inputs import Inputs
from ..features.kinds import kind_by_name
from ..features.label_shift import LabelShift, marks_tokens, shift_of_outputs
from .answers import answers_of
from .averaging import BoundEntry, average, call_loss, naming_entry, value_of, values_of, weights_of
from .balance import Balance
from .fitting import Modules, fit_labels, fit_loss, fit_student, fit_teacher, in_one_vocabulary
from .fused.vocabulary import HeadTerm, head_loss
from .loss import Loss, keywords_of, loss_of, reads_labels
from .marked import marked_positions, marks_by_name, marks_of
from .masking import Items, sizes_of
from .not_finite import why_not_finite
from .outputs import features_of_outputs, see_features
from .projections import apply_projections, key_of, kind_after, see_fitted

Features = Mapping[Feature, Any]  # tensors, large ones perhaps Deferred
OWN_LOSS = ("output", "loss")


class Terms(NamedTuple):
    """The weighted sum with gradient; every entry's own value by name, unweighted: detached, and with gradient.

    Entries on deferred logits have a gradient of their own only where terms are balanced.
    """

    loss: Tensor
    values: dict[str, Tensor]
    attached: dict[str, Tensor]


class MultiLayerBasedDistillationLoss(nn.Module):
    """The loss of a whole `distill_config`.

    Inside `KnowledgeDistiller` it is bound to both models on a probe batch. Alone, in a loop of one's own, call it as
    `loss_model(teacher_output, student_output, teacher_inputs, student_inputs)`; where widths differ, call
    `bind_outputs` with the same arguments once before making the optimizer, so that `parameters()` holds the
    projections.

    Args:
        distill_config: a list of entries, a parsed DistillConfig, or the path of a YAML file.
        teacher_output_adaptor: model output -> `{"layer": {"output": tensor}}`; None for the ready-made names.
        student_output_adaptor: the same for the student.
        shift_labels: whether position i of the logits is for label i + 1, as in causal language models; None to
            measure it: by the student's own loss, else by whether it sees the next token and the labels repeat those
            that it reads.
    """

    def __init__(
        self,
        distill_config: Any,
        teacher_output_adaptor: OutputAdaptor | None = None,
        student_output_adaptor: OutputAdaptor | None = None,
        shift_labels: bool | None = None,
    ) -> None:
        super().__init__()
        self.config: DistillConfig = _with_usable_names(parse_config(distill_config))
        self.teacher_output_adaptor = teacher_output_adaptor
        self.student_output_adaptor = student_output_adaptor
        self.projections = nn.ModuleDict()
        # Losses that are modules train and are saved with the projections.
        trained = {entry.name: entry.loss for entry in self.config.entries if isinstance(entry.loss, nn.Module)}
        self.losses = nn.ModuleDict(trained)
        self.bound: dict[str, BoundEntry] = {}
        self.label_shift: LabelShift | None = None  # None until there are labels to tell it by
        self.say_shift(shift_labels)
        self.balance: Balance | None = None  # factors beside the weights

    def prepare(self, peers: Sequence[str], balanced: bool) -> None:
        """Take part in a run: entries for every student of a cohort, and, `balanced`, factors beside the weights."""
        if peers:
            self.config = self.config.among(peers)
        if balanced:
            self.balance = Balance(self.config.entries)

    def say_shift(self, shift_labels: bool | None) -> None:
        """Say whether position i is for label i + 1, where it is not to be measured."""
        if shift_labels is not None:
            self.label_shift = LabelShift(shift_labels, "as shift_labels says")

    @property
    def shifts_labels(self) -> bool:
        return self.label_shift is not None and bool(self.label_shift.shifted)

    @property
    def reads_labels(self) -> bool:
        """Whether it may matter to an entry which label a position is for."""
        return any(reads_labels(entry) for entry in self.config.entries)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "progress":
            raise ConfigError(f"progress is an argument of the call: loss_model(..., progress={value})")
        super().__setattr__(name, value)

    # --- alone, in anybody's loop --------------------------------------------------------------------------------

    def forward(
        self,
        teacher_output: Any,
        student_output: Any,
        teacher_inputs: Inputs | None,
        student_inputs: Inputs | None,
        progress: float = 0.0,
    ) -> Tensor:
        """The weighted sum of all terms, averaged over this batch; `progress` says where schedules are, in [0, 1]."""
        student, teacher, context = self._read(teacher_output, student_output, teacher_inputs, student_inputs)
        if not self.bound:
            self.bind_outputs(teacher_output, student_output, teacher_inputs, student_inputs)
            if self.projections:
                self.unbind()
                self.projections.clear()
                raise ConfigError(
                    "widths differ, so projections were added: call loss_model.bind_outputs(...) with these arguments "
                    "before making the optimizer, and give it loss_model.parameters() as well"
                )
        return self.terms(self.project(student, progress), teacher, context, progress=progress).loss

    def bind_outputs(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> None:
        """Bind every entry to one example of both outputs. Raises a ConfigError with every problem."""
        was_training = self.training
        self.eval()  # what a loss remembers begins with the first step
        try:
            self._bind_features(*self._read(teacher_output, student_output, teacher_inputs, student_inputs))
        finally:
            self.train(was_training)

    def _bind_features(
        self, student: dict[Feature, Tensor], teacher: dict[Feature, Tensor], context: dict[str, Any]
    ) -> None:
        problems = list(self.config.problems)
        for entry in self.config.entries:
            try:
                see_features(entry, student, teacher)
                if entry.index not in self.config.flawed:
                    kind = kind_by_name(entry.student[0], student[entry.student[0]])
                    self.bind(entry, student, teacher, kind, context)
                    see_fitted(self.projections_of(entry, "teacher"))
            except ConfigError as error:
                problems.append((entry.index, str(error)))
        if problems:
            self.unbind()  # or the next call would go on with the entries that fit
        raise_all(ConfigError, "distill_config", problems)

    def _read(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> tuple[dict[Feature, Tensor], dict[Feature, Tensor], dict[str, Any]]:
        adaptors = self.teacher_output_adaptor, self.student_output_adaptor
        teacher, student = features_of_outputs(self.config, adaptors, teacher_output, student_output)
        of_student, of_teacher = (one if isinstance(one, Mapping) else {} for one in (student_inputs, teacher_inputs))
        labels = {**of_teacher, **of_student}.get("labels")
        if self.label_shift is None and self.reads_labels:
            self.label_shift = shift_of_outputs(student_output, of_student, labels)
        if self.label_shift is None and labels is None and any(map(marks_by_name, self.config.entries)):
            self.label_shift = LabelShift(None, "there are no labels to tell it by")
        return student, teacher, make_context(of_student, of_teacher, self.shifts_labels)

    # --- bound to two models -------------------------------------------------------------------------------------

    def bind(
        self,
        entry: Entry,
        student: Features,
        teacher: Features,
        kind: str,
        context: Mapping[str, Any],
        teacher_model: nn.Module | None = None,
        num_samples: int | None = None,
        problem_type: str | None = None,
    ) -> Terms:
        """Settle one entry on probed features and return its value there.

        Args:
            kind: of the student's features.
            num_samples: the size of the training set, for losses with a memory of it.
            problem_type: of the student's config, where it says one.

        Raises:
            ConfigError: the loss, its arguments, or the shapes do not fit.
        """
        own = tuple(student[feature] for feature in entry.student)
        target = tuple(teacher[feature] for feature in entry.teacher)
        kind_of_loss = kind_after(entry.projection, kind)
        loss = loss_of(entry, kind_of_loss)
        own, target = in_one_vocabulary(entry, kind, own, target)
        if loss.fused is None:
            own, target = materialized(own), materialized(target)
        rows, keys = mask_keys(entry.student[0], kind, own[0], context) if kind == kind_of_loss else (None, None)
        keys = marked_positions(entry, own[0], context, keys) if kind_of_loss == "positions" else keys
        answers = answers_of(loss, kind_of_loss, own[0], context, keys, problem_type)
        context = answers.context(context)
        loss.check([*context, *([] if num_samples is None else ["num_samples"])])
        modules = Modules(self.projections, self.losses, self.training)
        target = fit_teacher(modules, entry, kind, own, target)
        for number, tensor in enumerate(own):
            other = target[number if len(target) == len(own) else 0] if target else None
            fit_student(modules, loss, kind, number, tensor, other, answers.yes_or_no)
        projected = apply_projections(self.projections, entry, own)
        fit_labels(loss, answers.logits(projected[0]), context.get("labels"))
        loss = fit_loss(modules, loss, projected, target, teacher_model, num_samples)
        self._check_shift(loss, projected[0], context)
        of_tokens, marks = kind_of_loss == "tokens", marks_of(loss, kind_of_loss, own[0], context)
        keys = rows if of_tokens else keys
        items = Items(rows, keys, marks, of_tokens, entry.reduction, class_weights=loss.class_weights)
        classes, samples = (projected[0].shape[-1], projected[0].shape[0]) if projected[0].dim() else (0, 0)
        classes = 2 if answers.yes_or_no else classes
        bound = BoundEntry(loss, loss.context_keys(context), kind_of_loss, items, classes, samples, answers)
        values, layout = values_of(bound, projected, target, context, loss.call_args)
        bound = replace(bound, items=replace(items, layout=layout, sizes=sizes_of(values.shape, layout)))
        of_rows = layout.name in ("batch", "samples") and kind_of_loss != "positions"
        if entry.mask and marks and of_rows and "mask" not in bound.context_keys:
            raise ConfigError(
                f"mask {entry.mask!r}: loss {loss.name} returns no value for each token and asks for no mask, so that "
                "it cannot be told which count"
            )
        self.bound[entry.name] = bound
        for name, course in entry.schedule.items():
            for extreme in (course.lowest, course.highest) if name != "weight" and loss.by_name else ():
                with torch.no_grad():
                    values_of(bound, projected, target, context, {**loss.call_args, name: extreme})
        if isinstance(projected[0], Deferred):
            value = value_of(bound, projected, target, context, loss.call_args, None)
        else:
            value = average(bound, values, context, None)
        if not torch.isfinite(value.detach()).all():
            why = why_not_finite(entry, projected, target)
            raise ConfigError(f"loss {entry.loss_name} is {value.item()} on the probe batch{why}")
        return Terms(value * entry.weight, {entry.name: value.detach()}, {entry.name: value})

    def _check_shift(self, loss: Loss, feature: Tensor, context: Mapping[str, Any]) -> None:
        """Raise where labels are compared with a feature, and nothing tells which position is for which."""
        labels, shift = context.get("labels"), self.label_shift
        if shift is None or shift.shifted is not None or not reads_labels(loss.entry):
            return
        labelled = isinstance(labels, Tensor) and marks_tokens(labels) and labels.shape == feature.shape[:-1]
        if labelled or feature.dim() > 2 and marks_by_name(loss.entry):
            raise ConfigError(
                f"whether position i of {loss.entry.student[0]} is for label i or for label i + 1 cannot be measured: "
                f"{shift.known_by}. Say shift_labels: true or false"
            )

    def unbind(self) -> None:
        """Let go of all bound entries; what they trained stays."""
        self.bound.clear()

    def project(self, student: Features, progress: float = 0.0) -> dict[str, tuple[Tensor, ...]]:
        """Entry name -> its student features, projected where it has a projection, for every entry that is on."""
        projected = {}
        for bound, _, _ in self._now(progress):
            features = bound.of_vocabulary(tuple(student[feature] for feature in bound.entry.student))
            projected[bound.entry.name] = apply_projections(self.projections, bound.entry, features)
        return projected

    def terms(
        self,
        student: Mapping[str, Any],
        teacher: Features,
        context: Mapping[str, Any],
        counts: Mapping[str, Tensor | int] | None = None,
        progress: float = 0.0,
    ) -> Terms:
        """Loss and named terms of one batch.

        Args:
            student: what `project` returned.
            teacher: the teacher's features; no gradient reaches them.
            context: what `make_context` returned.
            counts: entry name -> the number of values to divide by, where a batch is part of a larger whole; None
                averages over this batch alone.
            progress: of the run or stage, in [0, 1]: where schedules are.
        """
        if not self.bound:
            raise ConfigError("no entry is bound")
        attached, loss = {}, None
        heads: dict[HeadLogits, list[tuple[BoundEntry, Any, HeadTerm]]] = {}
        now = self._now(progress)
        for bound, weight, args in now:
            name = bound.entry.name
            target = bound.of_vocabulary(tuple(teacher[feature].detach() for feature in bound.entry.teacher))
            with torch.autocast(student[name][0].device.type, enabled=False):
                target = apply_projections(self.projections, bound.entry, target, "teacher")
            feature, own_context = student[name][0], bound.answers.context(context)
            with naming_entry(bound):
                if isinstance(feature, HeadLogits) and self.balance is None:
                    rows, _, number = weights_of(bound, feature, own_context, counts)
                    reference = own_context["labels"] if bound.entry.hard else target[0]
                    part = HeadTerm(bound.loss.function, reference, rows, args, weight / number)
                    heads.setdefault(feature, []).append((bound, number, part))
                    continue
                value = value_of(bound, student[name], target, own_context, args, counts)
            weighted = value * (weight if self.balance is None else weight * self.balance[name])
            loss = weighted if loss is None else loss + weighted
            attached[name] = value
        for logits, entries in heads.items():  # one pass over a head for all that look at its logits
            parts = [part for _, _, part in entries]
            with naming_entry(entries[0][0]):
                weighted, sums = call_loss(entries[0][0].loss, head_loss, logits.device, logits, parts)
            loss = weighted if loss is None else loss + weighted
            for (bound, number, _), summed in zip(entries, sums, strict=True):
                attached[bound.entry.name] = summed / number
        assert loss is not None
        attached = {b.entry.name: attached[b.entry.name] for b, weight, _ in now if _is_on(b, weight)}
        return Terms(loss, {name: term.detach() for name, term in attached.items()}, attached)

    def counts(self, context: Mapping[str, Any]) -> dict[str, Tensor | int]:
        """How many values of each entry one batch will have: known from its inputs, before any forward pass."""
        size = batch_size(context)
        return {name: bound.items.count(bound.answers.context(context), size) for name, bound in self.bound.items()}

    def _now(self, progress: float) -> list[tuple[BoundEntry, Any, Mapping[str, Any]]]:
        """The entries with their weights and arguments at the present progress, without those whose schedule is at 0.

        Over several processes these are computed as well, since every gradient has to be there.
        """
        now: list[tuple[BoundEntry, Any, Mapping[str, Any]]] = []
        for bound in self.bound.values():
            at = {name: course(progress) for name, course in bound.entry.schedule.items()}
            weight = at.pop("weight", bound.entry.weight)
            now.append((bound, weight, {**bound.loss.call_args, **at}))
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (not together and [one for one in now if _is_on(*one[:2])]) or now

    def projections_of(self, entry: Entry, *sides: str) -> list[nn.Module]:
        """The projections of an entry, those of its student side first; or those of one side."""
        numbers = {"student": len(entry.student), "teacher": len(entry.teacher)}
        keys = [
            key_of(entry, side, number, numbers[side])
            for side in sides or ("student", "teacher")
            for number in range(numbers[side])
        ]
        return [self.projections[key] for key in dict.fromkeys(keys) if key in self.projections]

    def learning_rates(self, *entries: Entry) -> dict[int, float]:
        """Id of a parameter -> its learning rate, where its entry has one; of all entries or of some."""
        rates: dict[int, float] = {}
        for entry in entries or self.config.entries:
            modules = self.projections_of(entry) + [self.losses[name] for name in self.losses if name == entry.name]
            if entry.learning_rate is not None:
                rates |= {id(p): entry.learning_rate for module in modules for p in module.parameters()}
        return rates

    @property
    def reads_own_loss(self) -> bool:
        """Whether an entry reads the loss that a student computes itself, which therefore gets the labels."""
        return any(feature[:2] == OWN_LOSS for entry in self.config.entries for feature in entry.student)

    def asks_for(self, keyword: str) -> bool:
        """Whether the loss of an entry has a parameter of this name."""
        return any(keyword in keywords_of(entry) for entry in self.config.entries)


def _is_on(bound: BoundEntry, weight: float) -> bool:
    """Whether an entry counts as a term now: not where its schedule is at 0."""
    return bool(weight) or "weight" not in bound.entry.schedule


def _with_usable_names(config: DistillConfig) -> DistillConfig:
    """Names of entries and shared projections are names of modules, of which torch keeps some for itself."""
    names = [
        (entry.index, name)
        for entry in config.entries
        for name in (entry.name, entry.projection.shared, entry.teacher_projection.shared)
    ]
    problems = tuple(
        (index, f"name {name!r} is one torch uses itself; choose another")
        for index, name in names
        if name and not usable_name(name)
    )
    return replace(config, problems=config.problems + problems)


def usable_name(name: Any) -> bool:
    """Whether a torch module, a file and a table of a tracker can have this name."""
    return isinstance(name, str) and name != "" and not set(name) & set("./") and not hasattr(nn.ModuleDict, name)

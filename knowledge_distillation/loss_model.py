"""Entries and features in, loss and named terms out. Precision, masking, averaging and weights are settled here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adaptors import Inputs, OutputAdaptor, flatten, readable, ready_made_output
from .balance import Balance
from .binding import (
    MASK_WORDS,
    Held,
    build_loss,
    fit_labels,
    fit_student,
    fit_teacher,
    names_of,
    needs_labels,
    see_call,
    takes_deferred,
)
from .config import DistillConfig, Entry, Feature, parse_config
from .context import batch_size, keeps_all, kind_by_name, make_context, mask_keys, mask_of, once
from .deferred import Deferred, HeadLogits, whole
from .errors import ConfigError, nearest, raise_all
from .losses import (
    FUSED,
    HARD_LOSSES,
    SEVERAL,
    SOFT_LOSSES,
    SUMMED,
    constructor_parameters,
    functions_of,
    get_loss,
    parameters_of,
)
from .losses.causal_lm import Part, head_loss
from .losses.logits import IGNORED_LABEL
from .losses.reduction import Layout, Masks, blanked, count, layout_of, per_sample, row_weights, sizes_of, total
from .projections import apply_projections, at_least_float32, key_of, kind_after

Features = Mapping[Feature, Any]  # tensors, large ones perhaps Deferred
WITH_ROWS = ("tokens", "heads", "attention")
_SPELLED = re.compile(r"^(?!encoder_|decoder_)\w+?_(?=(?:encoder_|decoder_)?layer\d)")


class Terms(NamedTuple):
    """The weighted sum with gradient; every entry's own value by name, unweighted: detached, and with gradient.

    Entries on deferred logits have a gradient of their own only where terms are balanced.
    """

    loss: Tensor
    values: dict[str, Tensor]
    attached: dict[str, Tensor]


@dataclass(frozen=True)
class BoundEntry:
    """An entry that knows its loss function and what its features look like."""

    entry: Entry
    function: Callable[..., Any]
    args: Mapping[str, Any]  # of the loss's call
    asks_for: tuple[str, ...]
    kind: str  # of the feature as the loss gets it
    rows: str | None  # the context key of the mask of rows, and of keys; None where the feature has no length
    keys: str | None
    layout: Layout = field(default=Layout("batch"))
    sizes: tuple[int, int] = (1, 1)  # rows and keys where nothing masks them
    labelled: bool = False  # items labelled -100 do not count
    classes: int = 0  # width of what the loss gets
    samples: int = 0  # rows of the probe batch


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
    """

    def __init__(
        self,
        distill_config: Any,
        teacher_output_adaptor: OutputAdaptor | None = None,
        student_output_adaptor: OutputAdaptor | None = None,
    ) -> None:
        super().__init__()
        self.config: DistillConfig = _with_usable_names(parse_config(distill_config))
        self.teacher_output_adaptor = teacher_output_adaptor
        self.student_output_adaptor = student_output_adaptor
        self.projections = nn.ModuleDict()
        # Losses that are modules train and are saved with the projections.
        modules = {entry.name: entry.loss for entry in self.config.entries if isinstance(entry.loss, nn.Module)}
        self.losses = nn.ModuleDict(modules)
        self.bound: dict[str, BoundEntry] = {}
        self.shift_labels = False  # True for causal language models: position i predicts label i + 1
        self.progress = 0.0  # of the run or stage, in [0, 1]: where schedules are
        self.num_samples: int | None = None  # size of the training set, for losses with a memory of it
        self.balance: Balance | None = None  # factors beside the weights

    # --- alone, in anybody's loop --------------------------------------------------------------------------------

    def forward(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> Tensor:
        """The weighted sum of all terms, averaged over this batch."""
        student, teacher, context = self._read(teacher_output, student_output, teacher_inputs, student_inputs)
        if not self.bound:
            self.bind_outputs(teacher_output, student_output, teacher_inputs, student_inputs)
            if self.projections:
                self.bound.clear()
                self.projections.clear()
                raise ConfigError(
                    "widths differ, so projections were added: call loss_model.bind_outputs(...) with these arguments "
                    "before making the optimizer, and give it loss_model.parameters() as well"
                )
        return self.terms(self.project(student), teacher, context).loss

    def bind_outputs(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> None:
        """Bind every entry to one example of both outputs. Raises a ConfigError with every problem."""
        was_training = self.training
        self.eval()  # what a loss remembers begins with the first step
        try:
            self._bind_outputs(teacher_output, student_output, teacher_inputs, student_inputs)
        finally:
            self.train(was_training)

    def _bind_outputs(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> None:
        teachers = {f.model for entry in self.config.entries for f in entry.teacher}
        if len(teachers) > 1:
            named = ", ".join(sorted(name or "one without a name" for name in teachers))
            raise ConfigError(
                f"alone, the loss model gets the output of one teacher, and the config names {named}: "
                "use KnowledgeDistiller"
            )
        student, teacher, context = self._read(teacher_output, student_output, teacher_inputs, student_inputs)
        problems = list(self.config.problems)
        for entry in self.config.sound_entries():
            try:
                for features, asked, who in ((student, entry.student, "student"), (teacher, entry.teacher, "teacher")):
                    missing = next((str(f) for f in asked if f not in features), None)
                    if missing:
                        near = nearest(missing, map(str, features))
                        raise ConfigError(f"{missing}: the {who}'s output has no such feature.{near}")
                kind = kind_by_name(entry.student[0], student[entry.student[0]])
                self.bind(entry, student, teacher, kind, context)
            except ConfigError as error:
                problems.append((entry.index, str(error)))
        if problems:
            self.bound.clear()  # or the next call would go on with the entries that fit
        raise_all(ConfigError, "distill_config", problems)

    def _read(
        self, teacher_output: Any, student_output: Any, teacher_inputs: Inputs | None, student_inputs: Inputs | None
    ) -> tuple[dict[Feature, Tensor], dict[Feature, Tensor], dict[str, Any]]:
        student = _adapted(self.student_output_adaptor, student_output, "student")
        teacher = (
            _adapted(self.teacher_output_adaptor, teacher_output, "teacher") if teacher_output is not None else {}
        )
        detached = {feature: tensor.detach() for feature, tensor in teacher.items()}
        given, taught = (inputs if isinstance(inputs, Mapping) else {} for inputs in (student_inputs, teacher_inputs))
        shift = self.shift_labels or "CausalLM" in type(student_output).__name__
        context = make_context(given, taught, shift)
        return self._canonical(student), self._canonical(detached), context

    def _canonical(self, features: dict[Feature, Tensor]) -> dict[Feature, Tensor]:
        """Add the `{model_type}_layer{n}` spellings the config uses for ready-made `layer{n}`."""
        asked = {f for entry in self.config.entries for f in entry.student + entry.teacher}
        for feature in asked - set(features):
            plain = next(
                (f for f in features if _SPELLED.sub("", feature.layer) == f.layer and f.output == feature.output),
                None,
            )
            if plain:
                features[feature] = features[plain]
        return features

    # --- bound to two models -------------------------------------------------------------------------------------

    def bind(
        self,
        entry: Entry,
        student: Features,
        teacher: Features,
        kind: str,
        context: Mapping[str, Any],
        teacher_model: nn.Module | None = None,
    ) -> Terms:
        """Settle one entry on probed features and return its value there.

        Raises:
            ConfigError: the loss, its arguments, or the shapes do not fit.
        """
        given = tuple(student[feature] for feature in entry.student)
        target = tuple(teacher[feature] for feature in entry.teacher)
        kind_given, kind = kind, kind_after(entry.projection, kind)
        function = entry.loss if callable(entry.loss) else get_loss(entry.loss, kind, entry.hard)
        if not takes_deferred(entry, kind_given):
            given, target = whole(given), whole(target)
        see_call(entry, function, [*context, *self._told()])
        held = Held(self.projections, self.losses, self.training)
        target = fit_teacher(held, entry, kind_given, given, target)
        for number, tensor in enumerate(given):
            other = target[number if len(target) == len(given) else 0] if target else None
            fit_student(held, entry, function, kind_given, number, tensor, other)
        projected = apply_projections(self.projections, entry, given)
        if entry.hard or (entry.args.get("probability_shift") or needs_labels(function) and not callable(entry.loss)):
            fit_labels(entry, projected[0], context.get("labels"))
        args = dict(entry.args)
        if isinstance(function, type):
            for_constructor = names_of(constructor_parameters(function))
            args = {name: value for name, value in args.items() if name not in for_constructor}
            offered = {"teacher_model": teacher_model, "teacher_features": entry.teacher, "losses": self.losses}
            offered |= {**self._told(), **entry.args}
            said = entry.args.get("num_samples")
            if said is not None and self.num_samples is not None and said < self.num_samples:
                raise ConfigError(
                    f"loss {entry.loss_name}: num_samples is {said}, and the training data has {self.num_samples} rows"
                )
            function = build_loss(
                held, entry, function, projected, target, {k: v for k, v in offered.items() if k in for_constructor}
            )
        elif isinstance(function, nn.Module):
            function.to(given[0].device)
        rows, keys = mask_keys(entry.student[0], kind_given, given[0], context) if kind == kind_given else (None, None)
        asked = [p for p in parameters_of(function) or [] if p.name not in entry.args]
        shape = projected[0].shape
        bound = BoundEntry(
            entry,
            function,
            args,
            tuple(p.name for p in asked if p.name in MASK_WORDS or p.name in context),
            kind,
            rows,
            rows if kind == "tokens" else keys,
            labelled=entry.hard or needs_labels(function),
            classes=shape[-1],
            samples=shape[0],
        )
        values, layout = self._values(bound, projected, target, context, args)
        bound = replace(bound, layout=layout, sizes=sizes_of(values.shape, layout))
        self.bound[entry.name] = bound
        for name, course in entry.schedule.items():
            for extreme in (course.lowest, course.highest) if name != "weight" and not callable(entry.loss) else ():
                with torch.no_grad():
                    self._values(bound, projected, target, context, {**args, name: extreme})
        if isinstance(projected[0], Deferred):
            value = self._fused(bound, projected[0], target, context, args, None)
        else:
            value = self._average(bound, values, context, None)
        if not torch.isfinite(value.detach()).all():
            raise ConfigError(f"loss {entry.loss_name} is {value.item()} on the probe batch")
        return Terms(value * entry.weight, {entry.name: value.detach()}, {entry.name: value})

    def project(self, student: Features) -> dict[str, tuple[Tensor, ...]]:
        """Entry name -> its student features, projected where it has a projection, for every entry that is on."""
        projected = {}
        for entry in (bound.entry for bound, _, _ in self._now()):
            given = tuple(student[feature] for feature in entry.student)
            projected[entry.name] = apply_projections(self.projections, entry, given)
        return projected

    def terms(
        self,
        student: Mapping[str, Any],
        teacher: Features,
        context: Mapping[str, Any],
        counts: Mapping[str, Tensor | int] | None = None,
    ) -> Terms:
        """Loss and named terms of one batch.

        Args:
            student: what `project` returned.
            teacher: the teacher's features; no gradient reaches them.
            context: what `make_context` returned.
            counts: entry name -> the number of values to divide by, where a batch is part of a larger whole; None
                averages over this batch alone.
        """
        if not self.bound:
            raise ConfigError("no entry is bound")
        attached, loss = {}, None
        heads: dict[HeadLogits, list[tuple[BoundEntry, Any, Part]]] = {}
        now = self._now()
        for bound, weight, args in now:
            name = bound.entry.name
            target = tuple(teacher[feature].detach() for feature in bound.entry.teacher)
            with torch.autocast(student[name][0].device.type, enabled=False):
                target = apply_projections(self.projections, bound.entry, target, "teacher")
            given = student[name][0]
            if isinstance(given, HeadLogits) and self.balance is None:
                rows, _, number = self._weights(bound, given, context, counts)
                reference = context["labels"] if bound.entry.hard else target[0]
                part = Part(bound.function, reference, rows, args, weight / number)
                heads.setdefault(given, []).append((bound, number, part))
                continue
            if isinstance(given, Deferred) or (bound.function in SUMMED and bound.kind in WITH_ROWS):
                value = self._fused(bound, given, target, context, args, counts)
            else:
                values, _ = self._values(bound, student[name], target, context, args)
                value = self._average(bound, values, context, counts)
            weighted = value * (weight if self.balance is None else weight * self.balance[name])
            loss = weighted if loss is None else loss + weighted
            attached[name] = value
        for logits, entries in heads.items():  # one pass over a head for all that look at its logits
            parts = [part for _, _, part in entries]
            weighted, sums = _called(entries[0][0], head_loss, logits.device, logits, parts)
            loss = weighted if loss is None else loss + weighted
            for (bound, number, _), summed in zip(entries, sums, strict=True):
                attached[bound.entry.name] = summed / number
        assert loss is not None
        attached = {b.entry.name: attached[b.entry.name] for b, weight, _ in now if _is_on(b, weight)}
        return Terms(loss, {name: term.detach() for name, term in attached.items()}, attached)

    def counts(self, context: Mapping[str, Any]) -> dict[str, Tensor | int]:
        """How many values of each entry one batch will have: known from its inputs, before any forward pass."""
        size = batch_size(context)
        return {name: _count(b, self._masks(b, context), context, size, b.sizes) for name, b in self.bound.items()}

    def _now(self) -> list[tuple[BoundEntry, Any, Mapping[str, Any]]]:
        """The entries with their weights and arguments at the present progress, without those whose schedule is at 0.

        Over several processes these are computed as well, since every gradient has to be there.
        """
        now = []
        for bound in self.bound.values():
            at = {name: course(self.progress) for name, course in bound.entry.schedule.items()}
            weight = at.pop("weight", bound.entry.weight)
            now.append((bound, weight, {**bound.args, **at} if at else bound.args))
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (not together and [one for one in now if _is_on(*one[:2])]) or now

    def projections_of(self, entry: Entry, *sides_wanted: str) -> list[nn.Module]:
        """The projections of an entry, those of its student side first; or those of one side."""
        numbers = {"student": len(entry.student), "teacher": len(entry.teacher)}
        sides = [(side, numbers[side]) for side in sides_wanted or ("student", "teacher")]
        keys = [key_of(entry, side, number, features) for side, features in sides for number in range(features)]
        return [self.projections[key] for key in dict.fromkeys(keys) if key in self.projections]

    def learning_rates(self, *entries: Entry) -> dict[int, float]:
        """Id of a parameter -> its learning rate, where its entry has one; of all entries or of some."""
        rates: dict[int, float] = {}
        for entry in entries or self.config.entries:
            if entry.learning_rate is not None:
                modules = [
                    *self.projections_of(entry),
                    *([self.losses[entry.name]] if entry.name in self.losses else []),
                ]
                rates |= {id(p): entry.learning_rate for module in modules for p in module.parameters()}
        return rates

    def asks_for(self, keyword: str) -> bool:
        """Whether the loss of an entry has a parameter of this name."""
        names = [entry.loss for entry in self.config.entries]
        functions = [loss for loss in names if callable(loss)]
        for entry in self.config.entries:
            if isinstance(entry.loss, str) and entry.loss in (HARD_LOSSES if entry.hard else SOFT_LOSSES):
                functions += functions_of(entry.loss, entry.hard).values()
        return any(p.name == keyword for function in functions for p in parameters_of(function) or [])

    def _told(self) -> dict[str, Any]:
        return {} if self.num_samples is None else {"num_samples": self.num_samples}

    def _masks(self, bound: BoundEntry, context: Mapping[str, Any]) -> Masks:
        asked = (bound.rows, bound.keys, bound.labelled)
        return once(context, asked, lambda: self._made_masks(bound, context))  # type: ignore[no-any-return]

    def _made_masks(self, bound: BoundEntry, context: Mapping[str, Any]) -> Masks:
        named = (None if keeps_all(context, key) else key for key in (bound.rows, bound.keys))
        rows, keys = (mask_of(context, key) for key in named)
        if bound.labelled and not context["labels"].is_floating_point():
            labelled = context["labels"] != IGNORED_LABEL
            if rows is None or rows.shape[: labelled.dim()] != labelled.shape:
                rows = labelled
            else:
                rows = rows.bool() & labelled[(...,) + (None,) * (rows.dim() - labelled.dim())]
        return Masks(rows, keys)

    def _values(
        self, bound: BoundEntry, student: Any, teacher: Any, context: Mapping[str, Any], args: Mapping[str, Any]
    ) -> tuple[Tensor, Layout]:
        if isinstance(student[0], Deferred):  # its values are never there at once: their shape has to do
            compared = (student[0], context["labels"] if bound.entry.hard else teacher[0])
            shapes = [torch.empty(side.shape, dtype=side.dtype, device="meta") for side in compared]
            values = _called(bound, bound.function, torch.device("cpu"), *shapes, **args)
            return values, layout_of(bound.kind, student[0].shape, values.shape)
        for_ready_made = not callable(bound.entry.loss)  # they take None for a mask that keeps all
        named = (None if for_ready_made and keeps_all(context, key) else key for key in (bound.rows, bound.keys))
        mask, key_mask = (mask_of(context, key) for key in named)
        taught = context.get(f"teacher_{bound.rows}")
        masks = {"mask": mask, "key_mask": key_mask, "teacher_mask": mask if taught is None else taught.bool()}
        asked = {name: masks[name] if name in MASK_WORDS else context.get(name) for name in bound.asks_for}
        counted = self._masks(bound, context)
        if bound.labelled and "mask" in asked and counted.rows is not None:
            asked["mask"] = counted.rows
        given, target = (
            tuple(at_least_float32(blanked(feature, bound.kind, _left_out(bound, counted))) for feature in whole(side))
            for side in (student, teacher)
        )
        reference = (context["labels"],) if bound.entry.hard else target
        several = bound.entry.many or type(bound.function) in SEVERAL or bound.function in SEVERAL
        sides = (given, reference) if several else (given[0], reference[0])
        values = _called(bound, bound.function, given[0].device, *sides, **args, **asked)
        if not isinstance(values, Tensor):
            raise ConfigError(f"loss {bound.entry.loss_name} returned {type(values).__name__}; a tensor is needed")
        return values, layout_of(bound.kind, given[0].shape, values.shape)

    def _average(
        self, bound: BoundEntry, values: Tensor, context: Mapping[str, Any], counts: Mapping[str, Any] | None
    ) -> Tensor:
        masks, sizes = self._counted(bound, values.shape, context, counts)
        if bound.entry.reduction == "sequence_mean":
            summed = per_sample(values, bound.layout, masks).sum()
        else:
            summed = total(values, bound.layout, masks)
        return summed / self._number(bound, masks, context, sizes, batch_size(context, values), counts)

    def _fused(
        self,
        bound: BoundEntry,
        student: Deferred | Tensor,
        teacher: tuple[Any, ...],
        context: Mapping[str, Any],
        args: Mapping[str, Any],
        counts: Mapping[str, Any] | None,
    ) -> Tensor:
        """The average by a function that sums on its way, of what the student's feature is computed from or of it."""
        rows, keys, number = self._weights(bound, student, context, counts)
        if isinstance(student, Tensor):
            alike = self._masks(bound, context).rows is None and bound.entry.reduction != "sequence_mean"
            sides = (student, *whole(teacher), None if alike else rows, keys)
            return _called(bound, SUMMED[bound.function], student.device, *sides, **args) / number
        reference = context["labels"] if bound.entry.hard else teacher[0]
        return _called(bound, FUSED[bound.function], student.device, student, reference, rows, keys, **args) / number

    def _weights(
        self,
        bound: BoundEntry,
        student: Deferred | Tensor,
        context: Mapping[str, Any],
        counts: Mapping[str, Any] | None,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """What a fused loss is told of rows and keys, and what its sum is divided by."""
        masks, sizes = self._counted(bound, student.shape, context, counts)
        batch, by_sample = student.shape[0], bound.entry.reduction == "sequence_mean"
        dtype = torch.promote_types(student.dtype, torch.float32)

        def weights() -> Tensor:
            like = torch.empty(0, dtype=dtype, device=student.device)
            return row_weights(bound.layout, masks, batch, *sizes, like, by_sample)

        asked = ("weights", bound.layout, bound.rows, bound.keys, bound.labelled, student.shape, by_sample, dtype)
        rows = once(context, asked, weights)
        keys = None if masks.keys is None or bound.kind != "attention" else masks.keys.bool()
        return rows, keys, self._number(bound, masks, context, sizes, batch, counts)

    def _counted(
        self, bound: BoundEntry, values: torch.Size, context: Mapping[str, Any], counts: Mapping[str, Any] | None
    ) -> tuple[Masks, tuple[int, int]]:
        """What counts of values of this shape, and their numbers of rows and keys."""
        sizes = sizes_of(values, bound.layout)
        masks = _as_long(bound, self._masks(bound, context), sizes)
        untold = bound.layout.name in ("tokens", "rows", "pairs") and masks.rows is None
        untold = untold and not keeps_all(context, bound.rows)
        if counts is not None and untold and (bound.rows is not None or sizes != bound.sizes):
            raise ConfigError(
                f"{bound.entry.student[0]} changes its length from batch to batch and no input has that length, so an "
                "average over several batches cannot be counted: give the batch an attention_mask"
            )
        return masks, sizes

    def _number(
        self,
        bound: BoundEntry,
        masks: Masks,
        context: Mapping[str, Any],
        sizes: tuple[int, int],
        batch: int,
        counts: Mapping[str, Any] | None,
    ) -> Any:
        """What a sum of values is divided by."""
        if bound.entry.reduction == "sum":
            return 1
        number: Any = _count(bound, masks, context, batch, sizes) if counts is None else counts[bound.entry.name]
        return number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)


def _called(bound: BoundEntry, function: Callable[..., Any], device: torch.device, *sides: Any, **args: Any) -> Any:
    """What a loss gives, with autocast off; an error it raises says whose it is."""
    with torch.autocast(device.type, enabled=False):
        try:
            return function(*sides, **args)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"loss {bound.entry.loss_name} failed: {type(error).__name__}: {error}") from error


def _left_out(bound: BoundEntry, masks: Masks) -> Masks:
    """What is set to 0 before a loss sees it: all padding; for a callable only what its average leaves out."""
    rows = masks.rows
    if not callable(bound.entry.loss) or "mask" in bound.asks_for:
        return masks
    if bound.layout.name in ("batch", "samples"):
        return Masks(rows if rows is not None and rows.dim() == 1 else None)
    return masks if bound.layout.name == "pairs" else Masks(rows)


def _is_on(bound: BoundEntry, weight: float) -> bool:
    """Whether an entry counts as a term now: not where its schedule is at 0."""
    return bool(weight) or "weight" not in bound.entry.schedule


def _count(
    bound: BoundEntry, masks: Masks, context: Mapping[str, Any], batch: int, sizes: tuple[int, int]
) -> Tensor | int:
    """How many values an entry has in a batch; entries with equal masks count once."""
    masked = ((masks.rows, bound.rows), (masks.keys, bound.keys))
    rows, keys = (
        context[key].shape[1] if mask is None and key is not None and keeps_all(context, key) else size
        for (mask, key), size in zip(masked, sizes, strict=True)
    )
    over = _averaged_over(bound)
    asked = ("count", over, bound.rows, bound.keys, bound.labelled, masks.rows is None, masks.keys is None)
    return once(context, (*asked, batch, rows, keys), lambda: count(over, masks, batch, rows, keys))  # type: ignore[no-any-return]


def _averaged_over(bound: BoundEntry) -> Layout:
    """The layout of what the average divides by: samples for the reductions that count them."""
    if bound.entry.reduction in ("sequence_mean", "batch_mean") and bound.layout.name != "batch":
        return Layout("samples", 1)
    return bound.layout


def _as_long(bound: BoundEntry, masks: Masks, sizes: tuple[int, int]) -> Masks:
    """The masks, without one made of an input that was as long as the feature by chance, and is not in this batch."""
    if bound.layout.name not in ("tokens", "rows", "pairs"):
        return masks

    def fitting(mask: Tensor | None, key: str | None, size: int) -> Tensor | None:
        chance = mask is not None and mask.dim() == 2 and key is not None and "mask" not in key
        return None if chance and mask.shape[1] != size else mask  # type: ignore[union-attr]

    return Masks(fitting(masks.rows, bound.rows, sizes[0]), fitting(masks.keys, bound.keys, sizes[1]))


def _adapted(adaptor: OutputAdaptor | None, output: Any, who: str) -> dict[Feature, Tensor]:
    try:
        return flatten((adaptor or ready_made_output)(readable(output)))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"the {who}'s output adaptor failed: {type(error).__name__}: {error}. In a loop of your own the models "
            "have to give what it takes: output_hidden_states=True, and for maps output_attentions=True with "
            "attn_implementation='eager'"
        ) from error


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

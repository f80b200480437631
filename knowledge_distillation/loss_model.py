"""Entries and features in, loss and named terms out. Precision, masking, averaging and weights are settled here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adaptors import Inputs, OutputAdaptor, flatten, readable, ready_made_output
from .config import DistillConfig, Entry, Feature, parse_config
from .context import batch_size, kind_by_name, make_context, mask_keys, mask_of
from .errors import ConfigError, nearest, raise_all
from .losses import check_arguments, get_loss, parameters_of
from .losses.logits import IGNORED_LABEL
from .losses.reduction import Layout, Masks, blanked, count, layout_of, sizes_of, total
from .projections import build_projection

Features = Mapping[Feature, Tensor]
_LOGIT_LOSSES = ("kl_divergence", "cross_entropy", "soft_cross_entropy", "logits_mse")
_SPELLED = re.compile(r"^(?!encoder_|decoder_)\w+?_(?=(?:encoder_|decoder_)?layer\d)")
_MASK_WORDS = ("mask", "teacher_mask")


class Terms(NamedTuple):
    """The weighted sum, with gradient, and every entry's own value by name, unweighted and detached."""

    loss: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True)
class BoundEntry:
    """An entry that knows its loss function and what its features look like."""

    entry: Entry
    function: Callable[..., Any]
    asks_for: tuple[str, ...]
    kind: str
    rows: str | None  # the context key of the mask of rows, and of keys; None where the feature has no length
    keys: str | None
    sizes: tuple[int, int]  # rows and keys where nothing masks them
    layout: Layout = field(default=Layout("batch"))


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
        student, teacher, context = self._read(teacher_output, student_output, teacher_inputs, student_inputs)
        problems = list(self.config.problems)
        for entry in self.config.entries:
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

    def bind(self, entry: Entry, student: Features, teacher: Features, kind: str, context: Mapping[str, Any]) -> Terms:
        """Settle one entry on probed features and return its value there.

        Raises:
            ConfigError: the loss, its arguments, or the shapes do not fit.
        """
        given = tuple(student[feature] for feature in entry.student)
        target = tuple(teacher[feature] for feature in entry.teacher)
        function = entry.loss if callable(entry.loss) else get_loss(entry.loss, kind, entry.hard)
        if isinstance(function, nn.Module):
            function.to(given[0].device)
        if entry.many and not callable(entry.loss):
            raise ConfigError(f"loss {entry.loss_name} compares one feature with one: it takes no list of features")
        problem = argument_problem(entry, function, context)
        if problem:
            raise ConfigError(problem)
        if entry.hard and context.get("labels") is None:
            raise ConfigError(
                f"loss {entry.loss_name} compares {entry.student[0]} with labels, and the batch has no 'labels'"
            )
        asked = [p.name for p in parameters_of(function) or [] if p.name not in entry.args]
        rows, keys = mask_keys(entry.student[0], kind, given[0], context)
        shape = given[0].shape
        sizes = (shape[1], shape[1]) if kind == "tokens" else (shape[2], shape[-1]) if given[0].dim() == 4 else (1, 1)
        bound = BoundEntry(
            entry, function, tuple(a for a in asked if a in _MASK_WORDS or a in context), kind, rows, keys, sizes
        )
        if not entry.hard and not entry.many:
            self._fit(entry, kind, given[0], target[0])
        elif entry.hard:
            self._fit_labels(bound, given[0], context["labels"])
        projected = self.project({f: t for f, t in zip(entry.student, given, strict=True)}, [entry])[entry.name]
        values, layout = self._values(bound, projected, target, context)
        bound = replace(bound, layout=layout)
        self.bound[entry.name] = bound
        value = self._average(bound, values, context, None)
        if not torch.isfinite(value.detach()).all():
            raise ConfigError(f"loss {entry.loss_name} is {value.item()} on the probe batch")
        return Terms(value * entry.weight, {entry.name: value.detach()})

    def project(self, student: Features, entries: Any = None) -> dict[str, Any]:
        """Entry name -> its student feature (or tuple of features), projected where the entry has a projection."""
        projected: dict[str, Any] = {}
        for entry in self.config.entries if entries is None else entries:
            tensors = tuple(student[feature] for feature in entry.student)
            if entry.name in self.projections:
                tensors = tuple(self.projections[entry.name](at_least_float32(tensor)) for tensor in tensors)
            projected[entry.name] = tensors
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
        loss, terms = None, {}
        for bound in self.bound.values():
            target = tuple(teacher[feature].detach() for feature in bound.entry.teacher)
            values, _ = self._values(bound, student[bound.entry.name], target, context)
            term = self._average(bound, values, context, counts)
            terms[bound.entry.name] = term.detach()
            weighted = term * bound.entry.weight
            loss = weighted if loss is None else loss + weighted
        if loss is None:
            raise ConfigError("no entry is bound")
        return Terms(loss, terms)

    def counts(self, context: Mapping[str, Any]) -> dict[str, Tensor | int]:
        """How many values of each entry one batch will have: known from its inputs, before any forward pass."""
        size = batch_size(context)
        return {name: count(b.layout, self._masks(b, context), size, *b.sizes) for name, b in self.bound.items()}

    def _fit(self, entry: Entry, kind: str, student: Tensor, teacher: Tensor) -> None:
        """Add the projection an entry needs, and see that both sides then have one shape."""
        axis = 1 if kind == "map" else -1
        widths = student.shape[axis], teacher.shape[axis]
        logits = entry.student[0].output == "logits" or entry.loss_name in _LOGIT_LOSSES
        named = not callable(entry.loss)
        differ = widths[0] != widths[1] and named and kind in ("tokens", "vector", "map") and not logits
        pair = f"{entry.student[0]} {tuple(student.shape)} and {entry.teacher[0]} {tuple(teacher.shape)}"
        if entry.projection == "linear" and kind == "attention":
            raise ConfigError(f"projection linear does not apply to attention maps, whose width is a length: {pair}")
        if entry.projection == "linear" or (differ and entry.projection == "auto"):
            projection = build_projection(kind, *widths).to(student.device, at_least_float32(student).dtype)
            held = self.projections[entry.name] if entry.name in self.projections else None
            if held is None or held.weight.shape != projection.weight.shape:  # one that was trained is not begun anew
                self.projections[entry.name] = projection
        elif differ:
            raise ConfigError(
                f"widths differ, {pair}, and projection is off. Set projection: auto, or choose equal widths"
            )
        shape = (*student.shape[:axis], widths[1]) if axis == -1 else (student.shape[0], widths[1], *student.shape[2:])
        adapted = shape if entry.name in self.projections else tuple(student.shape)
        if named and adapted != tuple(teacher.shape):
            raise ConfigError(_mismatch(kind, logits, student, teacher, pair))
        if named and student.shape[-1] == 1 and entry.loss_name in _LOGIT_LOSSES and entry.loss_name != "logits_mse":
            raise ConfigError(f"{pair}: with one output a softmax is always 1 and the loss 0. Use logits_mse")

    def _fit_labels(self, bound: BoundEntry, student: Tensor, labels: Tensor) -> None:
        named = not callable(bound.entry.loss)
        cross_entropy = bound.entry.loss_name == "cross_entropy"
        fits = labels.shape == student.shape[:-1] if cross_entropy else labels.numel() == student.numel()
        if named and not fits:
            raise ConfigError(
                f"{bound.entry.student[0]} {tuple(student.shape)} does not fit labels {tuple(labels.shape)}"
            )
        if named and cross_entropy:
            if labels.is_floating_point():
                raise ConfigError("loss cross_entropy takes class numbers as labels; these are real numbers: use mse")
            real = labels[labels != IGNORED_LABEL]
            classes = student.shape[-1]
            if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < classes:
                found = f"from {int(real.min())} to {int(real.max())}"
                raise ConfigError(f"labels run {found}, and {bound.entry.student[0]} has {classes} classes")

    def _masks(self, bound: BoundEntry, context: Mapping[str, Any]) -> Masks:
        rows, keys = (mask_of(context, key) for key in (bound.rows, bound.keys))
        if bound.entry.hard and not context["labels"].is_floating_point():
            labelled = context["labels"] != IGNORED_LABEL
            if rows is None or rows.shape[: labelled.dim()] != labelled.shape:
                rows = labelled
            else:
                rows = rows.bool() & labelled[(...,) + (None,) * (rows.dim() - labelled.dim())]
        return Masks(rows, keys)

    def _values(
        self, bound: BoundEntry, student: Any, teacher: Any, context: Mapping[str, Any]
    ) -> tuple[Tensor, Layout]:
        counted = self._masks(bound, context)
        given, target = (
            tuple(at_least_float32(blanked(feature, bound.kind, bound.layout, counted)) for feature in side)
            for side in (student, teacher)
        )
        reference = (context["labels"],) if bound.entry.hard else target
        mask, taught = mask_of(context, bound.rows), context.get(f"teacher_{bound.rows}")
        masks = {"mask": mask, "teacher_mask": mask if taught is None else taught.bool()}
        asked = {name: masks[name] if name in _MASK_WORDS else context.get(name) for name in bound.asks_for}
        sides = (given, reference) if bound.entry.many else (given[0], reference[0])
        with torch.autocast(given[0].device.type, enabled=False):
            try:
                values = bound.function(*sides, **bound.entry.args, **asked)
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"loss {bound.entry.loss_name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(values, Tensor):
            raise ConfigError(f"loss {bound.entry.loss_name} returned {type(values).__name__}; a tensor is needed")
        return values, layout_of(bound.kind, given[0].shape, values.shape)

    def _average(
        self, bound: BoundEntry, values: Tensor, context: Mapping[str, Any], counts: Mapping[str, Any] | None
    ) -> Tensor:
        sizes = sizes_of(values, bound.layout)
        masks = _as_long(bound, self._masks(bound, context), sizes)
        untold = bound.layout.name in ("tokens", "rows", "pairs") and masks.rows is None
        if counts is not None and untold and (bound.rows is not None or sizes != bound.sizes):
            raise ConfigError(
                f"{bound.entry.student[0]} changes its length from batch to batch and no input has that length, so an "
                "average over several batches cannot be counted: give the batch an attention_mask"
            )
        number: Any = (
            count(bound.layout, masks, batch_size(context, values), *sizes)
            if counts is None
            else counts[bound.entry.name]
        )
        number = number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)
        return total(values, bound.layout, masks) / number


def argument_problem(entry: Entry, function: Callable[..., Any], context: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry's arguments, or None."""
    temperature = entry.args.get("temperature", 1)
    if not callable(entry.loss) and not (isinstance(temperature, (int, float)) and temperature > 0):
        return f"loss {entry.loss_name}: temperature is above 0; found {temperature!r}"
    return check_arguments(entry.loss_name, function, entry.args, [*_MASK_WORDS, *context])


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
    """Names of entries are names of modules, of which torch keeps some for itself."""
    taken = [e for e in config.entries if hasattr(nn.ModuleDict, e.name)]
    problems = tuple((e.index, f"name {e.name!r} is one torch uses itself; choose another") for e in taken)
    return replace(config, problems=config.problems + problems)


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def _mismatch(kind: str, logits: bool, student: Tensor, teacher: Tensor, pair: str) -> str:
    if logits and student.shape[:-1] == teacher.shape[:-1]:
        return (
            f"{pair}: the student has {student.shape[-1]} classes, the teacher {teacher.shape[-1]}. "
            "Logits are compared class by class: give both models the same labels or vocabulary"
        )
    if kind in ("attention", "heads") and student.shape[1] != teacher.shape[1]:
        return (
            f"{pair}: the student has {student.shape[1]} heads, the teacher {teacher.shape[1]}. "
            "Maps are compared head by head: choose a student with as many heads, or map hidden_states"
        )
    return f"{pair}: shapes differ where no projection can help"

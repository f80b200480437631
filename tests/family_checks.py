"""What holds for every family: names, padding, a step, a cut, a reload; each found out on a tiny model.

`check(model_type)` says what came out, as a dict of words that the table in `docs/families.md` is made of.
"""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from family_inputs import inputs_for
from family_models import build
from torch import Tensor, nn
from transformers import PreTrainedModel

from knowledge_distillation import KnowledgeDistiller, MultiLayerBasedDistillationLoss, student_from_teacher
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.errors import DataError, DistillationError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import Catalogue, catalogue
from knowledge_distillation.features.inputs import forward_inputs
from knowledge_distillation.models.cut_stacks import find_stacks
from knowledge_distillation.plan.bind import bind
from knowledge_distillation.teachers.frozen import FrozenTeacher

TOLERANCE = 2e-4  # of the largest value: rounding of whole models, whose fused attention adds in another order
MORE = 3  # tokens of padding
SIDES = {"layer": "", "encoder_layer": "encoder_", "decoder_layer": "decoder_"}


def check(model_type: str) -> dict[str, Any]:
    """What holds for a family. `faults` are what should not be; everything else says what there is."""
    found: dict[str, Any] = {"family": model_type, "faults": []}
    try:
        model = build(model_type)
        found["class"] = type(model).__name__
        inputs = inputs_for(model)
    except Exception as error:
        return found | {"not_built": said(error)}
    found["inputs"] = list(inputs)
    Walk(model, inputs, found).run()
    return found


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


class Walk:
    """The checks of one family, in order; each adds to `found`."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], found: dict[str, Any]) -> None:
        self.model, self.inputs, self.found = model, inputs, found
        self.names: Catalogue | None = None

    def run(self) -> None:
        for part in (
            self.names_are_its_own,
            self.attention_is_its_own,
            self.cut,
            self.padding,
            self.step,
            self.reload,
        ):
            try:
                part()
            except Exception as error:  # what is not refused is a fault, whatever it is
                self.fault(f"{part.__name__}: {said(error)}")
            if self.names is None:
                return

    def fault(self, text: str) -> None:
        self.found["faults"].append(text)

    # --- names ---------------------------------------------------------------------------------------------------

    def names_are_its_own(self) -> None:
        """`layer{n}.hidden_states` is `hidden_states[n]` of the model, at every n."""
        self.names = catalogue(self.model, self.inputs)
        self.own = output_of(self.model, self.inputs, "output_hidden_states")
        expected = {}
        for stack, side in SIDES.items():
            for n, state in enumerate(self.own.get(f"{side}hidden_states") or ()):
                layer = f"{stack}{n}" if n else stack.replace("layer", "embedding_layer")
                if isinstance(state, Tensor):
                    expected[f"{layer}.{'hidden_states' if n else 'embedding'}"] = state
        self.found["states"] = len(expected)
        again = output_of(self.model, self.inputs, "output_hidden_states")
        if any(not close(t, again[k]) for k, t in self.own.items() if isinstance(t, Tensor)):
            self.found["random"] = True
        else:
            self.compare(expected)

    def attention_is_its_own(self) -> None:
        """Every map offered is that of the model with eager attention; to take them all changes no other output."""
        assert self.names is not None
        offered = [f for f in self.names.offers if f.output in ("attention", "cross_attention")]
        self.found["maps"] = len(offered)
        self.found["notes"] = list(self.names.notes)
        twin = eager_twin(self.model)
        own = output_of(twin, self.inputs, "output_attentions") if twin is not None else {}
        fields = self.fields_of_maps()
        maps = [t for key in fields.values() for t in own.get(key) or () if isinstance(t, Tensor)]
        if maps and not offered and not (self.names.notes or getattr(self.names, "no_attention", "")):
            self.fault("attention: none is offered, and no note says why")
        self.found["own_maps"] = len(maps)
        if "random" in self.found:
            return
        own = self.reference(own)
        self.compare(self.expected(own, fields))
        if {"input_ids", "attention_mask"} <= self.inputs.keys():
            self.unmasked(twin, fields)

    def unmasked(self, twin: PreTrainedModel | None, fields: Mapping[str, str]) -> None:
        """The same where the batch has no mask: causal attention stays causal."""
        inputs = {key: value for key, value in self.inputs.items() if key != "attention_mask"}
        try:
            self.own = output_of(self.model, inputs, "output_hidden_states")
            own = output_of(twin, inputs, "output_attentions") if twin is not None else {}
        except Exception:  # it needs its mask
            return
        self.compare(self.expected(self.reference(own), fields), inputs)

    def reference(self, eager: dict[Any, Any]) -> dict[Any, Any]:
        """What eager attention gives, where it gives what the model gives: a few families compute something else."""
        same = all(close(eager[k], t) for k, t in self.own.items() if isinstance(t, Tensor) and k in eager)
        return eager if same else {}

    def fields_of_maps(self) -> dict[str, str]:
        """Name of a map, its number open -> the field of the model's output that holds it."""
        fields = {}
        for stack, side in SIDES.items():
            fields[f"{stack}%d.attention"] = f"{side}attentions"
            if stack != "encoder_layer":
                fields[f"{stack}%d.cross_attention"] = "cross_attentions"
        return fields

    def expected(self, own: Mapping[Any, Any], fields: Mapping[str, str]) -> dict[str, Tensor]:
        """The maps that are offered, as the model's own output has them, and all of its other outputs."""
        assert self.names is not None
        maps = {
            name % n: value
            for name, key in fields.items()
            for n, value in enumerate(own.get(key) or (), start=1)
            if isinstance(value, Tensor)
        }
        others = {f"output.{key}": value for key, value in self.own.items() if isinstance(value, Tensor)}
        offered = {str(feature) for feature in self.names.offers}
        return {name: value for name, value in (maps | others).items() if name in offered}

    def compare(self, expected: Mapping[str, Tensor], inputs: Mapping[str, Tensor] | None = None) -> None:
        """What is taken in one pass is what is expected."""
        assert self.names is not None
        offers = {name: self.names.find(Feature(*name.rsplit(".", 1))) for name in expected}
        missing = [name for name, offer in offers.items() if offer is None]
        if missing:
            self.fault(f"not offered: {', '.join(missing)[:100]}")
        places = {name: offer.location for name, offer in offers.items() if offer is not None}
        if not places:
            return
        capture = Capture(self.model, places)
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                taken = capture(inputs or self.inputs)
        finally:
            capture.close()
        wrong = [name for name in places if not close(taken[name], expected[name])]
        if wrong:
            mask = "without a mask, " if inputs else ""
            self.fault(f"{mask}differs from the model's own: {', '.join(wrong)[:100]}")

    # --- cutting -------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """A student of fewer layers, and the list that maps them; else another model of the same config."""
        self.student, self.entries = None, []
        for picked in ((2, 4), (1, 4)):
            try:
                with warnings.catch_warnings(record=True) as said_of_depth:
                    self.student, self.entries = cut_out(self.model, picked, self.inputs)
                depth = any("depth enters" in str(warning.message) for warning in said_of_depth)
                self.found["cut"] = f"layers {picked[0]} and {picked[1]}{', their numbers enter' * depth}"
                break
            except DistillationError as error:
                self.found["cut"] = f"refused: {said(error)}"
            except Exception as error:
                self.found["cut"] = f"error: {said(error)}"
                self.fault(f"cut: {said(error)}")
                break
        if self.student is not None:
            try:
                self.bind(self.entries).close()
                with torch.no_grad():
                    self.student.eval()(**self.inputs)
                return
            except DataError as error:  # the model itself does not run so
                self.found["cut"] = f"refused: {said(error)}"
            except Exception as error:
                self.found["cut"] = f"error: {said(error)}"
                self.fault(f"the cut student: {said(error)}")
        self.student, self.entries = build(self.found["family"], seed=1), self.all_entries()

    def all_entries(self) -> list[dict[str, Any]]:
        assert self.names is not None
        names = [
            str(feature)
            for feature in self.names.offers
            if feature.output in ("hidden_states", "attention", "cross_attention")
        ]
        fields = [f.output for f, offer in self.names.offers.items() if f.layer == "output"]
        if not names and "logits" not in fields:
            names = [f"output.{field}" for field in fields if self.own[field].is_floating_point()][:1]
        entries = [{"teacher": name, "student": name, "loss": "mse"} for name in names]
        logits = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}
        return entries + [logits] * ("logits" in fields)

    # --- losses --------------------------------------------------------------------------------------------------

    def bind(self, entries: list[dict[str, Any]]) -> Any:
        self.loss = MultiLayerBasedDistillationLoss(entries)
        inputs = {"": self.inputs}
        return bind(self.loss, {"": self.student}, {"": FrozenTeacher(self.model)}, inputs, inputs)

    def padding(self) -> None:
        """Pad tokens on the right and on the left change no value of a loss, where they do not change the model."""
        usable, refusals = [], []
        groups: dict[str, list[dict[str, Any]]] = {}
        for entry in self.entries:
            groups.setdefault(str(entry["student"]).partition(".")[2], []).append(entry)
        for group in groups.values():
            try:
                self.bind(group).close()
                usable += group
            except DistillationError as error:
                refusals.append(said(error))
        self.found["refused"], self.entries = refusals, usable
        if not usable or "attention_mask" not in self.inputs or "random" in self.found:
            return
        plan = self.bind(usable)
        try:
            plain = self.values(plan, self.inputs)
            for side in ("right", "left"):
                longer = padded(self.inputs, side, self.model.config)
                try:
                    same = self.unmoved(longer, side)
                except Exception as error:
                    self.found[side] = f"the model itself fails: {said(error)}"
                    continue
                values = self.values(plan, longer)
                changed = [n for n in plain if not math.isclose(plain[n], values[n], rel_tol=1e-3, abs_tol=1e-6)]
                self.found[side] = "counts nothing" if same else "changes the model's own output"
                if changed and same:
                    self.found[side] = "counts"
                    self.fault(f"padding on the {side} counts: {', '.join(changed)[:120]}")
        finally:
            plan.close()

    def values(self, plan: Any, inputs: dict[str, Tensor]) -> dict[str, float]:
        """The value of each entry on a batch."""
        with torch.no_grad():
            teacher = FrozenTeacher(self.model).features(plan.teachers[""].features, inputs)
            student = plan.students[""].features(forward_inputs(inputs, self.student))
            terms = self.loss.terms(self.loss.project(student), teacher, make_context(inputs, inputs))
        return {name: float(value) for name, value in terms.values.items()}

    def unmoved(self, longer: dict[str, Tensor], side: str) -> bool:
        """Whether both models give the same at the tokens that were there before."""
        for model in (self.model, self.student):
            before = tokens_of(output_of(model, self.inputs, "output_hidden_states"), self.inputs)
            after = tokens_of(output_of(model, longer, "output_hidden_states"), longer)
            if not any(value.dim() > 2 for value in before.values()):
                return False  # nothing of it is known token by token
            for key, value in before.items():
                kept = after.get(key)
                if kept is not None and kept.shape != value.shape:
                    kept = kept[:, -value.shape[1] :] if side == "left" else kept[:, : value.shape[1]]
                if kept is None or not close(kept, value):
                    return False
        return True

    # --- a run ---------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step of a distiller."""
        if not self.entries:
            return
        run = KnowledgeDistiller(
            self.model,
            self.student,
            self.entries,
            train_dataloader=[dict(self.inputs)],
            num_train_epochs=1,
            device="cpu",
            mixed_precision="no",
            disable_tqdm=True,
        )
        loss = run.train()["loss"]
        self.found["loss"] = round(float(loss), 4)
        if not math.isfinite(loss):
            self.fault(f"step: a loss of {loss}")

    def reload(self) -> None:
        """The student, saved and loaded by transformers, gives what it gave, where the teacher does."""
        assert self.student is not None
        wrong = self.changed_by_loading(self.student)
        if wrong and "random" not in self.found:
            self.found["reload"] = self.changed_by_loading(self.model)
            if not self.found["reload"]:
                self.fault(f"reloaded: {wrong}")

    def changed_by_loading(self, model: PreTrainedModel) -> str:
        """What becomes other, or the error."""
        before = output_of(model.eval(), self.inputs)
        with tempfile.TemporaryDirectory() as folder:
            try:
                model.save_pretrained(folder)
                after = output_of(type(model).from_pretrained(folder).eval(), self.inputs)
            except Exception as error:  # whatever a class says to what it has written
                return said(error)
        return ", ".join(k for k, v in before.items() if isinstance(v, Tensor) and not close(v, after[k]))


def cut_out(model: PreTrainedModel, picked: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Any:
    """`student_from_teacher` with these layers of each stack, as far as it has so many."""
    chosen = {s.name: sorted({min(n, s.depth) for n in picked}) for s in find_stacks(model)}
    layers = next(iter(chosen.values())) if len(chosen) == 1 else chosen
    return student_from_teacher(model, layers, return_config=True, inputs=inputs)


def output_of(model: nn.Module, inputs: Mapping[str, Any], *flags: str) -> dict[Any, Any]:
    """The model's own output with these flags on, by field."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    options = {flag: True for flag in flags if flag in names or any_name}
    options |= {key: value for key, value in (("use_cache", False), ("return_dict", True)) if key in names}
    with torch.no_grad():
        torch.manual_seed(0)
        output = model(**inputs, **options)
    if isinstance(output, Tensor):
        return {"logits": output}
    return dict(output.items()) if hasattr(output, "items") else dict(enumerate(output))


def eager_twin(model: PreTrainedModel) -> PreTrainedModel | None:
    """The same model with eager attention throughout; itself where it has but one."""
    try:
        twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        twin.load_state_dict(model.state_dict())
    except Exception:
        return None
    return twin


def close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool((one == other).all())
    same = torch.isfinite(one) & torch.isfinite(other)
    odd = torch.equal(one[~same].nan_to_num(), other[~same].nan_to_num())
    scale = max(1e-3, float(other[same].abs().max())) if same.any() else 1.0
    return odd and bool(((one - other)[same].abs() <= TOLERANCE * scale).all())


def tokens_of(output: Mapping[Any, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an output has for each token of the input, and its vectors."""
    length = inputs["input_ids"].shape[1]
    tensors = {str(k): v for k, v in output.items() if isinstance(v, Tensor)}
    for key, value in output.items():
        if isinstance(value, tuple):
            tensors |= {f"{key}[{n}]": t for n, t in enumerate(value) if isinstance(t, Tensor)}
    return {
        key: tensor
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and "past" not in key and tensor.shape[:1] == (2,)
        if tensor.dim() == 2 or tensor.shape[:2] == (2, length)
    }


def padded(inputs: Mapping[str, Tensor], side: str, config: Any) -> dict[str, Tensor]:
    """The same rows with tokens that do not count, as a tokenizer adds them."""
    pad = getattr(config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) and 0 <= pad < 100 else 0
    longer = dict(inputs)
    for key, filling in (("input_ids", pad), ("attention_mask", 0), ("bbox", 0)):
        if key in inputs:
            more = inputs[key][:, :MORE] * 0 + filling
            longer[key] = torch.cat([inputs[key], more] if side == "right" else [more, inputs[key]], dim=1)
    return longer

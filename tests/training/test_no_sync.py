"""No step waits for the device: every operation that would is caught with the line that asked for it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, each
from runs import HARD, SOFT, batches, bert, distiller
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_script import collate, rows

import knowledge_distillation
from knowledge_distillation import Callback, KnowledgeDistiller

OURS = str(Path(knowledge_distillation.__file__).parent)
# What these ask for is theirs to answer for; collators work on the host, before a batch is anywhere else.
SITES = ("transformers", "accelerate", "torch/optim", "torch/utils/data")

aten = torch.ops.aten
WAITING = {  # each reads on the host what the device computes; the last copies from the host
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.histc,
    aten.lift_fresh,
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
ON_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.item, Tensor.cpu, Tensor.__array__, Tensor.__repr__}


class Watch(TorchDispatchMode):
    """Collects `file:line operation` of what would wait, where our code asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0
        self.asked = _Asked(self)

    def __enter__(self) -> Watch:
        self.asked.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.asked.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        packet = function.overloadpacket
        chosen = args[1] if packet in INDEXED else ()
        if packet in WAITING or any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in chosen):
            self.report(str(packet))
        if packet is aten.repeat_interleave and function._overloadname in ("Tensor", "self_Tensor"):
            self.report(str(packet))
        return function(*args, **(kwargs or {}))

    def report(self, what: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name == f"{OURS}/data/collating.py":
                return
            if name.startswith(OURS):
                self.found.append(f"{Path(name).relative_to(OURS)}:{frame.f_lineno} {what}")
            if name.startswith(OURS) or any(f"/site-packages/{site}/" in name for site in SITES):
                return
            frame = frame.f_back  # type: ignore[assignment]


class _Asked(TorchFunctionMode):
    """On the processor these calls cost nothing and are no operations; on a GPU each waits."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in ON_THE_HOST:
            self.watch.report(function.__name__)
        if function is Tensor.to and "cpu" in (*map(str, args[1:]), *map(str, (kwargs or {}).values())):
            self.watch.report("to cpu")
        return function(*args, **(kwargs or {}))


class FromStepOneOn(Callback):
    """Watches all that the run does after its first step and until its last."""

    def __init__(self, watch: Watch, last: int) -> None:
        self.watch, self.last = watch, last

    def on_step_end(self, distiller: KnowledgeDistiller) -> None:
        if distiller.progress.step == 1:
            self.watch.__enter__()
        if distiller.progress.step == self.last:
            self.watch.__exit__(None, None, None)


def found_in(config: list[dict[str, Any]], size: int = 1, **options: Any) -> list[str]:
    """What waits in three steps of a run."""
    watch = Watch()
    run = {"train_dataloader": batches(5 * size), "gradient_accumulation_steps": size, "logging_steps": 1000}
    distiller(config, **{**run, "callbacks": [FromStepOneOn(watch, 4)], **options}).train()
    assert watch.operations > 100
    return watch.found


HIDDEN = {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"}
MAPS = {"teacher": "layer{2,4}.attention", "student": "layer{1,2}.attention", "loss": "mse"}
HEADS = {"teacher": "layer4.query", "student": "layer2.query"}
SCHEDULE = {"weight": "linear", "temperature": {"type": "cosine", "start": 4, "end": 1}}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "hidden": [HIDDEN],
    "attention": [MAPS, {**MAPS, "loss": "attention_kl"}],
    "scores": [{"teacher": "layer4.attention_scores", "student": "layer2.attention_scores", "loss": "mse"}],
    "heads": [{**HEADS, "loss": "qkv_relation"}, {**HEADS, "loss": "mse"}],
    "logits": [*SOFT, *HARD],
    "relational": [{**HIDDEN, "loss": loss} for loss in ("rkd_distance", "rkd_angle", "pkt", "cka")],
    "schedules": [{**SOFT[0], "schedule": SCHEDULE}, *HARD],
    "reductions": [{**HIDDEN, "reduction": reduction} for reduction in ("sum", "sequence_mean", "batch_mean")],
    "several": [
        {"teacher": ["layer2.hidden_states", "layer4.hidden_states"], "student": ["layer1.hidden_states"]}
        | {"loss": "bert_emd"}
    ],
}


@pytest.mark.parametrize("size", [1, 2], ids=["", "accumulated"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nothing_in_a_step_waits(config: list[dict[str, Any]], size: int) -> None:
    assert found_in(config, size) == []


def test_nothing_waits_with_projections_and_a_narrower_student() -> None:
    narrow = bert(2, width=8)
    assert found_in([HIDDEN, *SOFT], student=narrow) == []


@pytest.mark.parametrize("options", [{"balance": "relative_scale"}, {"balance": "gradient_norm", "balance_steps": 2}])
def test_nothing_waits_where_terms_are_balanced(options: dict[str, Any]) -> None:
    assert found_in([HIDDEN, *SOFT, *HARD], **options) == []


def test_nothing_waits_with_peers_and_the_student_as_a_teacher() -> None:
    config = [*SOFT, {**SOFT[0], "teacher_name": "peer"}, {**SOFT[0], "teacher_name": "self", "name": "itself"}]
    assert found_in(config, peer_model=bert(2, seed=5)) == []


def test_nothing_waits_in_bfloat16() -> None:
    assert found_in([HIDDEN, MAPS, *SOFT, *HARD], mixed_precision="bf16") == []


def test_nothing_waits_with_rows_and_batches_of_ones_own_making() -> None:
    data = {"train_dataset": rows(40), "data_collator": collate, "max_tokens_per_batch": 40}
    watch = Watch()
    run = distiller([HIDDEN, *HARD], callbacks=[FromStepOneOn(watch, 4)], logging_steps=1000, **data)
    run.train()
    assert run.progress.step > 4 and watch.operations > 100
    assert watch.found == []


@each(CASES)
def test_no_loss_waits(case: Any) -> None:
    batch = case.batch([4, 2, 3, 4, 1, 3])
    model = case.bind(batch)
    model.train()
    copied = copy.copy(batch)
    copied.student = batch.student.requires_grad_()
    context, (student, teacher) = copied.context, copied.features
    watch = Watch()
    with watch:
        terms = model.terms(model.project(student), teacher, context, model.counts(context))
        terms.loss.backward()
    assert watch.operations > 2
    assert watch.found == []


def reads_a_value(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1) * (1 if student.sum().item() > 0 else 2)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.sum() > 0),
        lambda t: float(t.sum()),
        lambda t: t.tolist(),
        lambda t: t.numpy(),
        lambda t: t.cpu(),
        lambda t: t.to("cpu"),
        lambda t: t[t > 0],
        lambda t: t.masked_select(t > 0),
        lambda t: t.nonzero(),
        lambda t: t.unique(),
        lambda t: torch.equal(t, t),
        lambda t: torch.tensor([1.0, 2.0]),
        lambda t: torch.where(t > 0),
        lambda t: t.masked_fill_(t > 0, 1)[t > 0].sum(),
    ],
)
def test_the_watch_sees_what_waits(wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OURS", str(Path(__file__).parent))
    with Watch() as watch:
        wait(torch.randn(3))
    assert watch.found


def test_the_watch_sees_a_loss_that_waits_and_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OURS", str(Path(__file__).parent))
    found = found_in([{**HIDDEN, "loss": reads_a_value}])
    assert len([line for line in found if line.endswith(" item")]) == 6  # two entries, three steps

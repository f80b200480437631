"""What a step does: no wait for the device, precision, clipping."""

import math
import traceback
from typing import Any

import pytest
import torch
from runs import HARD, HIDDEN, MAPS, SOFT, batches, bert, distiller, weights
from torch.utils._python_dispatch import TorchDispatchMode
from watching import LongKnown

from knowledge_distillation.training.batch import adapt, make_batch
from knowledge_distillation.training.loop import after_step
from knowledge_distillation.training.prepare import prepare
from knowledge_distillation.training.step import step


class Waits(TorchDispatchMode):
    """Notes whatever makes the host wait for a value of the device, and where in Python it was asked for."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "aten.equal", "unique", "masked_select")
    METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.places: list[str] = []
        for name in self.METHODS:
            patch.setattr(torch.Tensor, name, self.noted(getattr(torch.Tensor, name)))

    def noted(self, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.note()
            return method(*given, **named)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.OPERATIONS):
            self.note()
        return function(*args, **(kwargs or {}))

    def note(self) -> None:
        ours = (__file__, "/torch/")
        frames = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in ours)]
        self.places.append(f"{frames[-1].filename}:{frames[-1].lineno}")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_step_waits_for_the_device(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulation, masks, projections, clipping, the schedule and the sums of terms; transformers looks at masks."""
    config = [*HIDDEN, *MAPS, *SOFT, *HARD, {**HIDDEN[0], "loss": "cos", "name": "direction"}]
    data = batches(4)
    run = distiller(
        config,
        bert(width=24),
        bert(2),
        train_dataloader=data,
        gradient_accumulation_steps=2,
        logging_steps=100,
        mixed_precision=precision,
        evaluator=LongKnown(),
    )
    prepare(run.run)
    run.module.train()

    def one_step(window: list[Any]) -> None:
        values = step(run.run, [make_batch(run.run, adapt(run.run, raw)) for raw in window])
        run.run.advance(len(window))
        after_step(run.run, values, managed=True)

    one_step(data[:2])
    with Waits(monkeypatch) as waits:
        one_step(data[2:])
        one_step(data[:1])
        one_step([])
        assert waits.places and all("/transformers/" in place for place in waits.places), waits.places
        waits.places.clear()
        run.run.log_means()
        assert "training/progress.py" in waits.places[0]  # the watch sees what it should
    run.close()


def test_bf16_trains_and_keeps_the_weights_in_float32() -> None:
    kinds = set()
    student = bert(2, seed=1)
    student.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda m, a, out: kinds.add(out.dtype))
    run = distiller(
        HIDDEN + SOFT,
        bert(initializer_range=0.5),
        student,
        mixed_precision="bf16",
        num_train_epochs=10,
        learning_rate=5e-3,
    )
    losses = [run.train_epoch()["loss"] for _ in range(10)]
    assert torch.bfloat16 in kinds and {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in run.teacher.parameters()} == {torch.bfloat16}
    assert losses[-1] < 0.6 * losses[0]
    run.close()


def test_gradients_are_clipped_together() -> None:
    def norm(**settings: Any) -> float:
        student = bert(2, seed=1)
        before = weights(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
        distiller(SOFT, bert(initializer_range=0.5), student, optimizer=optimizer, max_steps=1, **settings).train()
        after = weights(student)
        return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in after))

    free = norm(max_grad_norm=0)
    assert free > 0.02
    assert norm(max_grad_norm=0.01) == pytest.approx(0.01, rel=1e-3)
    assert norm(max_grad_norm=10.0) == free
    assert norm(max_grad_norm=None) == free

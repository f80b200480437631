"""What looks at a run: callbacks and evaluators that keep what they saw."""

from __future__ import annotations

from typing import Any

import torch
from runs import weights

from knowledge_distillation import Callback


class Watch(Callback):
    """After every step its stage and whatever `look` tells; the stage and the names of all that is logged."""

    def __init__(self, look: Any = lambda distiller: None) -> None:
        self.look, self.seen, self.logged = look, [], []

    def on_step_end(self, distiller: Any) -> None:
        self.seen.append((distiller.progress.stage, self.look(distiller)))

    def on_log(self, distiller: Any, values: dict[str, float]) -> None:
        self.logged.append((distiller.progress.stage, set(values)))


class Log(Callback):
    """All lines of the log."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, distiller: Any, values: dict[str, float]) -> None:
        self.lines.append(dict(values))


class Recorder(Callback):
    """Every event with the step it came at."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda distiller, *given: self.events.append((name, distiller.progress.step))
        return super().__getattribute__(name)


class LongKnown:
    """The long-known form of an evaluator; it leaves both models in the wrong mode."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def evaluate(self, **given: Any) -> None:
        self.calls.append(given)
        given["student_model"].eval()
        given["teacher_model"].train()


class Scripted:
    """The new form of an evaluator, with scores given beforehand; it leaves both models in the wrong mode."""

    def __init__(self, scores: list[float], greater: bool = True) -> None:
        self.primary_metric, self.greater_is_better = "score", greater
        self.scores, self.students, self.given = iter(scores), [], []

    def __call__(self, student, teacher, dataloader, accelerator):
        assert not student.training and not torch.is_grad_enabled()
        self.given.append((student, teacher, dataloader, accelerator))
        self.students.append(weights(student))
        student.train()
        student.bert.eval()
        teacher.train()
        return {"score": next(self.scores), "other": 1}


class Killed(Exception):
    """What `KillAt` raises: something no one foresaw, such as a full disk."""


class KillAt(Callback):
    """Breaks a run off after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run) -> None:
        if run.progress.step == self.step:
            raise Killed

"""What happens around the loop: history, progress, early stopping, a stop where the loss is no number any more."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, DistillationError, shown
from ..storage.checkpoint_files import writing

if TYPE_CHECKING:
    from .run import Run


class Callback:
    """Override what is of interest. `run.progress` tells where the run is; `run.stop()` ends it.

    `run` has the models, the settings, the loss model, the data and the output directory: see `training/run.py`.
    """

    def on_init_end(self, run: Run) -> None: ...

    def on_train_begin(self, run: Run) -> None: ...

    def on_step_end(self, run: Run) -> None: ...

    def on_log(self, run: Run, values: dict[str, float]) -> None: ...

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None: ...

    def on_save(self, run: Run, checkpoint: Path) -> None: ...

    def on_train_end(self, run: Run) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class NonFiniteGuard(Callback):
    """End the run with an error when a logged loss is infinite or not a number."""

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if "loss" in bad:
            terms = ", ".join(f"{name}={value}" for name, value in bad.items())
            raise DistillationError(
                f"the loss is not finite at step {run.progress.step} ({terms}). Lower learning_rate, or set "
                "mixed_precision: no; where a model leaves out classes by logits of -inf, leave out the same in the "
                "other. The last checkpoint is untouched"
            )


class History(Callback):
    """One JSON line per log and per evaluation, in `history.jsonl`.

    Args:
        path: the file. Lines written after the checkpoint that a run resumes from are dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.resumed: int | None = None  # the lines there were at the checkpoint

    def on_train_begin(self, run: Run) -> None:
        lines = [line for line in read_history(self.path) if line["step"] <= run.progress.step][: self.resumed]
        self.lines, self.resumed = len(lines), None
        temporary = self.path.with_suffix(".tmp")
        with writing(self.path):
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            os.replace(temporary, self.path)

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        self._write(run, values)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        self._write(run, {f"eval_{name}": value for name, value in metrics.items()})

    def _write(self, run: Run, values: dict[str, float]) -> None:
        line = {"step": run.progress.step, "epoch": round(run.progress.fraction, 4), **values}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = state["lines"]


def read_history(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a history file; a last line that a kill cut short is left out.

    Raises:
        CheckpointError: it is no history.
    """
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise CheckpointError(f"{path} is no history of a run: line {number} has no step")
        lines.append(line)
    return lines


class ProgressBar(Callback):
    """A bar with the loss terms, the rate and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, run: Run) -> None:
        from tqdm.auto import tqdm

        total = run.run_steps
        self.bar = tqdm(
            total=total, initial=run.progress.step, unit="step", dynamic_ncols=True, leave=False, disable=None
        )

    def on_step_end(self, run: Run) -> None:
        self.bar.update(1)

    def on_log(self, run: Run, values: dict[str, float]) -> None:
        shown = {name: f"{value:.3g}" for name, value in values.items() if name not in ("learning_rate", "loss")}
        first = dict(list(shown.items())[:3])
        self.bar.set_postfix({"loss": f"{values.get('loss', math.nan):.4g}", **first}, refresh=False)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.bar.write(f"epoch {run.progress.fraction:.2f}  step {run.progress.step}  {shown}")

    def on_train_end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.close()


class EarlyStopping(Callback):
    """Stop when the best metric has not improved for `patience` evaluations.

    Args:
        patience: evaluations without improvement, 1 or more.
    """

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ConfigError(f"patience is 1 or more; found {patience}")
        self.patience, self.waited, self.best = patience, 0, None  # type: tuple[int, int, float | None]

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        if run.progress.best is None:
            raise ConfigError("EarlyStopping needs a metric to go by: an evaluator with a primary_metric")
        best = run.progress.best
        improved = best != self.best and not math.isnan(best)
        self.best, self.waited = best, 0 if improved else self.waited + 1
        if self.waited >= self.patience:
            run.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self.best = state["waited"], state["best"]


def check_callbacks(callbacks: Sequence[Any] | None) -> list[Any]:
    """What is to be called back, as a list of its own; see that it can be.

    Raises:
        ConfigError: a callback of transformers' `Trainer`, a class in place of an object, or something else.
    """
    from transformers import EarlyStoppingCallback as OfTrainer
    from transformers import TrainerCallback

    if not isinstance(callbacks, (list, tuple, type(None))):
        raise ConfigError(f"callbacks is a list of callbacks; found {shown(callbacks)}")
    callbacks = list(callbacks or ())

    events = [name for name in vars(Callback) if not name.startswith("_")]
    for callback in callbacks:
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, TrainerCallback):
            patience = getattr(callback, "early_stopping_patience", 3)
            instead = (
                f"EarlyStopping(patience={patience})" if issubclass(kind, OfTrainer) else "a subclass of Callback"
            )
            raise ConfigError(
                f"callbacks: {kind.__name__} is one of transformers' Trainer, whose loop this is not. Use "
                f"{instead}, of knowledge_distillation"
            )
        if kind is callback and issubclass(kind, Callback):
            raise ConfigError(f"callbacks: {kind.__name__} is a class; give an object of it: {kind.__name__}()")
        missing = [name for name in events if not callable(getattr(callback, name, None))]
        if missing or kind is callback:
            raise ConfigError(
                f"callbacks: {callback!r} has no {', '.join(missing)}: a subclass of Callback has all events"
            )
    return callbacks


def standard_callbacks(run: Run) -> list[Callback]:
    """What every run has, but for those of a class that is there already."""
    standard: list[Callback] = [NonFiniteGuard()]
    if run.output_dir is not None:
        standard.append(History(run.output_dir / "history.jsonl"))
    if not run.settings.disable_tqdm:
        standard.append(ProgressBar())
    present = {type(callback) for callback in run.callbacks}
    return [callback for callback in standard if type(callback) not in present]

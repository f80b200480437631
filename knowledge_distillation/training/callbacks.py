"""What happens around the loop: history, progress, early stopping, a stop where the loss is no number any more."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DistillationError

if TYPE_CHECKING:
    from .distiller import KnowledgeDistiller


class Callback:
    """Override what is of interest. `distiller.progress` tells where the run is; `distiller.stop()` ends it."""

    def on_init_end(self, distiller: KnowledgeDistiller) -> None: ...

    def on_train_begin(self, distiller: KnowledgeDistiller) -> None: ...

    def on_step_end(self, distiller: KnowledgeDistiller) -> None: ...

    def on_log(self, distiller: KnowledgeDistiller, values: dict[str, float]) -> None: ...

    def on_evaluate(self, distiller: KnowledgeDistiller, metrics: dict[str, float]) -> None: ...

    def on_save(self, distiller: KnowledgeDistiller, checkpoint: Path) -> None: ...

    def on_train_end(self, distiller: KnowledgeDistiller) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class NonFiniteGuard(Callback):
    """End the run with an error when a logged loss is infinite or not a number."""

    def on_log(self, distiller: KnowledgeDistiller, values: dict[str, float]) -> None:
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if "loss" in bad:
            terms = ", ".join(f"{name}={value}" for name, value in bad.items())
            raise DistillationError(
                f"the loss is not finite at step {distiller.progress.step} ({terms}). Lower learning_rate, or set "
                "mixed_precision: 'no'; the last checkpoint is untouched"
            )


class History(Callback):
    """One JSON line per log and per evaluation, in `history.jsonl`.

    Args:
        path: the file. Lines of steps past the one a run resumes from are dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, distiller: KnowledgeDistiller) -> None:
        kept = [line for line in read_history(self.path) if line["step"] <= distiller.progress.step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def on_log(self, distiller: KnowledgeDistiller, values: dict[str, float]) -> None:
        self._write(distiller, values)

    def on_evaluate(self, distiller: KnowledgeDistiller, metrics: dict[str, float]) -> None:
        self._write(distiller, {f"eval_{name}": value for name, value in metrics.items()})

    def _write(self, distiller: KnowledgeDistiller, values: dict[str, float]) -> None:
        line = {"step": distiller.progress.step, "epoch": round(distiller.progress.fraction, 4), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a history file; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class ProgressBar(Callback):
    """A bar with the loss terms, the rate and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, distiller: KnowledgeDistiller) -> None:
        from tqdm.auto import tqdm

        total = distiller.run_steps
        self.bar = tqdm(
            total=total, initial=distiller.progress.step, unit="step", dynamic_ncols=True, leave=False, disable=None
        )

    def on_step_end(self, distiller: KnowledgeDistiller) -> None:
        self.bar.update(1)

    def on_log(self, distiller: KnowledgeDistiller, values: dict[str, float]) -> None:
        shown = {name: f"{value:.3g}" for name, value in values.items() if name not in ("learning_rate", "loss")}
        first = dict(list(shown.items())[:3])
        self.bar.set_postfix({"loss": f"{values.get('loss', math.nan):.4g}", **first}, refresh=False)

    def on_evaluate(self, distiller: KnowledgeDistiller, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.bar.write(f"epoch {distiller.progress.fraction:.2f}  step {distiller.progress.step}  {shown}")

    def on_train_end(self, distiller: KnowledgeDistiller) -> None:
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

    def on_evaluate(self, distiller: KnowledgeDistiller, metrics: dict[str, float]) -> None:
        if distiller.progress.best is None:
            raise ConfigError("EarlyStopping needs a metric to go by: an evaluator with a primary_metric")
        best = distiller.progress.best
        improved = best != self.best and not math.isnan(best)
        self.best, self.waited = best, 0 if improved else self.waited + 1
        if self.waited >= self.patience:
            distiller.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self.best = state["waited"], state["best"]

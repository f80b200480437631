"""A grid of runs: each point trained with each seed, ranked, and gone on with where it was broken off."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..errors import ConfigError, DistillationError
from ..storage.checkpoint import write_text
from .sweep_grid import Point, is_greater_better, points

if TYPE_CHECKING:
    from ..training.distiller import KnowledgeDistiller

logger = logging.getLogger(__name__)
Make = Callable[[Mapping[str, Any], int, Path, "str | None"], "KnowledgeDistiller"]
_NONE: Callable[[str], None] = lambda text: None  # noqa: E731


@dataclass(frozen=True)
class Row:
    """One combination of values: the best score of its run with each seed that is done."""

    values: Mapping[str, Any]
    scores: Mapping[int, float]
    runs: Mapping[int, str]  # seed -> directory, seen from the sweep's own

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep: rows from the best to the worst, those without a score last."""

    folder: Path
    grid: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    metric: str
    greater_is_better: bool
    rows: list[Row] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The runs without a score: they failed, or another process has them."""
        return [row.runs[seed] for row in self.rows for seed in self.seeds if seed not in row.scores]

    @property
    def best(self) -> Path | None:
        """The student of the best combination, by its best seed; None where no run is done."""
        scores = self.rows[0].scores
        if not scores:
            return None
        seed = (max if self.greater_is_better else min)(scores, key=lambda one: scores[one])
        return self.folder / self.rows[0].runs[seed] / "student"


def sweep(
    make: Make,
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int] = (42,),
    *,
    output_dir: str | Path,
    greater_is_better: bool = True,
    share_teacher: bool = True,
    identity: str = "",
    say: Callable[[str], None] = _NONE,
) -> Sweep:
    """Train every combination of the grid with every seed. Called again with the same `output_dir` it goes on.

    Several processes may work on one sweep: each takes a run that is neither done nor taken. A run whose loss is no
    number any more has no score, and the others go on.

    Args:
        make: `(values, seed, output_dir, teacher_cache)` -> the distiller of one run, with these three of its own.
        grid: key -> values.
        seeds: one or more.
        output_dir: `runs/` holds a directory for each run, `cache/` the teacher's outputs, `study.db` Optuna's record.
        greater_is_better: whether the greater score is the better.
        share_teacher: whether runs share the teacher's outputs; not for inputs that change, such as augmented images.
        identity: what the runs are made of; with another one, runs that are done are looked at again.
        say: told of each run.

    Raises:
        ConfigError: the grid is empty, Optuna is missing, or a run cannot begin.
    """
    optuna = _optuna()
    folder, every = Path(output_dir), points(grid, seeds)
    by_name = {point.name: point for point in every}
    if len(by_name) < len(every):
        raise ConfigError("two points of the grid would have one directory: their values read alike")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; a directory is needed")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    cache = str(folder / "cache") if share_teacher else None
    study = _study(optuna, folder, [identity, *by_name], greater_is_better)
    _queue(optuna, study, folder, by_name)

    def objective(trial: Any) -> float:
        point = by_name[trial.suggest_categorical("run", list(by_name))]
        try:
            with FileLock(_lock(folder, point.name), timeout=0):
                if point.name in _done(optuna, study):
                    raise optuna.TrialPruned  # the queue was emptied by another process
                return _run(make, trial, point, folder, cache, greater_is_better, say)
        except Timeout as taken:
            raise optuna.TrialPruned from taken

    def stop_when_done(study: Any, trial: Any) -> None:
        if not _waiting(optuna, study):
            study.stop()

    if _waiting(optuna, study):
        study.optimize(objective, catch=(_Failed,), callbacks=[stop_when_done])
    return _collected(optuna, study, folder, grid, seeds, greater_is_better, every)


class _Failed(DistillationError):
    """A run that had to be given up, whose fellows go on."""


def _run(
    make: Make,
    trial: Any,
    point: Point,
    folder: Path,
    cache: str | None,
    greater_is_better: bool,
    say: Callable[[str], None],
) -> float:
    began = time.perf_counter()
    directory = folder / "runs" / point.name
    say(f"{point.name} begins")
    distiller = make(point.values, point.seed, directory, cache)
    if is_greater_better(distiller) != greater_is_better:
        raise ConfigError(f"the runs have greater_is_better {not greater_is_better}, and the sweep the opposite")
    try:
        metrics = distiller.train(resume_from_checkpoint=True)
    except DistillationError as error:
        if type(error) is not DistillationError:  # a run that could not begin: the others could not either
            raise
        say(f"{point.name}: no score: {error}")
        raise _Failed(str(error)) from error
    named = [name for name in metrics if name.startswith("best_")]
    if not named:
        raise ConfigError("a sweep ranks its runs by a metric: give metric_for_best_model")
    score = metrics[named[0]]
    trial.set_user_attr("metric", named[0].removeprefix("best_"))
    trial.set_user_attr("metrics", metrics)
    say(f"{point.name}: {named[0].replace('_', ' ', 1)} {score:.4f}, {time.perf_counter() - began:.0f} s")
    return score


# --- Optuna's study --------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs Optuna: pip install 'knowledge_distillation[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study(optuna: Any, folder: Path, of: Sequence[str], greater: bool) -> Any:
    """The study of this sweep in the folder's file. Another grid is another study, and finds these runs."""
    digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]
    with FileLock(folder / "study.lock"):
        return optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            sampler=optuna.samplers.RandomSampler(),  # the queue says what comes; it is asked where that is empty
            study_name=digest,
            direction="maximize" if greater else "minimize",
            load_if_exists=True,
        )


def _queue(optuna: Any, study: Any, folder: Path, names: Iterable[str]) -> None:
    """Put the runs that are neither done, nor waiting, nor taken by a process that lives, into Optuna's queue."""
    states = optuna.trial.TrialState
    with FileLock(folder / "study.lock"):
        settled = set()
        for trial in study.get_trials(deepcopy=False):
            name = (trial.params or trial.system_attrs.get("fixed_params", {})).get("run")
            if trial.state == states.RUNNING and not _taken(folder, name):
                study.tell(trial.number, state=states.FAIL)  # its process was killed
            elif trial.state in (states.COMPLETE, states.WAITING, states.RUNNING):
                settled.add(name)
        for name in names:
            if name not in settled:
                study.enqueue_trial({"run": name})


def _waiting(optuna: Any, study: Any) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))


def _done(optuna: Any, study: Any) -> dict[str, Any]:
    """Run -> the trial in which it was done."""
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {trial.params["run"]: trial for trial in trials}


def _lock(folder: Path, name: str) -> Path:
    return folder / "runs" / f"{name}.lock"


def _taken(folder: Path, name: str | None) -> bool:
    """Whether a process that lives has the run: a lock goes with its process."""
    if name is None:
        return False
    try:
        with FileLock(_lock(folder, name), timeout=0):
            return False
    except Timeout:
        return True


# --- what came of it -------------------------------------------------------------------------------------------------


def _collected(
    optuna: Any,
    study: Any,
    folder: Path,
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    greater: bool,
    every: Sequence[Point],
) -> Sweep:
    done = _done(optuna, study)
    scores = {name: trial.value for name, trial in done.items()}
    metric = next((trial.user_attrs["metric"] for trial in done.values()), "")
    rows: list[Row] = []
    for values in [point.values for point in every if point.seed == seeds[0]]:
        names = {seed: Point(values, seed).name for seed in seeds}
        found = {seed: scores[name] for seed, name in names.items() if name in scores}
        rows.append(Row(values, found, {seed: f"runs/{name}" for seed, name in names.items()}))
    sign = -1 if greater else 1
    rows.sort(key=lambda row: (row.mean is None, sign * (row.mean or 0.0)))
    return Sweep(folder, dict(grid), list(seeds), metric, greater, rows)


def write_results(result: Sweep, markdown: str, picture: str | None) -> None:
    """`results.json`, `results.md` and `heatmap.svg` in the sweep's folder."""
    best = result.best
    content = {
        "metric": result.metric,
        "greater_is_better": result.greater_is_better,
        "grid": {key: list(values) for key, values in result.grid.items()},
        "seeds": list(result.seeds),
        "best_student": None if best is None else best.relative_to(result.folder).as_posix(),
        "rows": [
            {
                "values": dict(row.values),
                "mean": row.mean,
                "spread": row.spread,
                "scores": {str(seed): score for seed, score in row.scores.items()},
                "runs": {str(seed): run for seed, run in row.runs.items()},
            }
            for row in result.rows
        ],
    }
    files = {"results.json": json.dumps(content, indent=2), "results.md": markdown, "heatmap.svg": picture}
    with FileLock(result.folder / "study.lock"):
        for name, text in files.items():
            if text is not None:
                write_text(result.folder / name, text)

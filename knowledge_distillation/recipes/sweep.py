"""A grid of runs: each point trained with each seed, ranked, and gone on with where it was broken off."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from filelock import FileLock, Timeout

from ..errors import ConfigError, DistillationError
from ..storage.checkpoint_files import write_text
from .sweep_grid import Point, is_greater_better, points

if TYPE_CHECKING:
    from ..training.distiller import KnowledgeDistiller

Make = Callable[[Mapping[str, Any], int, Path, "str | None"], "KnowledgeDistiller"]
Say = Callable[[str], Any]


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
    say: Say = str,
) -> Sweep:
    """Train every combination of the grid with every seed. Called again with the same `output_dir` it goes on.

    Several processes may work on one sweep: each takes a run that is neither done nor taken. A run whose loss is no
    number any more has no score, and the others go on.

    Args:
        make: `(values, seed, output_dir, teacher_cache)` -> the distiller of one run, with these three of its own.
        grid: key -> values.
        seeds: one or more.
        output_dir: `runs/` holds a directory for each run, its `score.json` when it is done; `cache/` the teacher's
            outputs.
        greater_is_better: whether the greater score is the better.
        share_teacher: whether runs share the teacher's outputs; not for inputs that change, such as augmented images.
        identity: what the runs are made of; with another one, runs that are done are looked at again.
        say: called with a line for each run.

    Raises:
        ConfigError: the grid is empty, or a run cannot begin.
    """
    folder, every_point = Path(output_dir), points(grid, seeds)
    if len({point.name for point in every_point}) < len(every_point):
        raise ConfigError("two points of the grid would have one directory: their values read alike")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; a directory is needed")
    runs, cache = folder / "runs", str(folder / "cache") if share_teacher else None
    runs.mkdir(parents=True, exist_ok=True)
    digest = xxhash.xxh3_64_hexdigest(identity.encode())
    for point in every_point:
        # A lock goes with its process: a run whose process was killed is free again.
        lock = FileLock(runs / f"{point.name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:  # another process is at it
            continue
        try:
            if _score(runs / point.name, digest) is None:
                _run(make, point, runs / point.name, cache, greater_is_better, digest, say)
        finally:
            lock.release()
    return _collected(folder, grid, seeds, greater_is_better, digest)


def _run(
    make: Make, point: Point, directory: Path, cache: str | None, greater_is_better: bool, digest: str, say: Say
) -> None:
    """Train one run, or go on with it, and write down its score."""
    began = time.perf_counter()
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
        return
    metric = next((name for name in metrics if name.startswith("best_")), None)
    if metric is None:
        raise ConfigError("a sweep ranks its runs by a metric: give metric_for_best_model")
    if not math.isfinite(metrics[metric]):
        say(f"{point.name}: no score: {metric.replace('_', ' ', 1)} is {metrics[metric]}")
        return
    score = {"metric": metric.removeprefix("best_"), "score": metrics[metric], "identity": digest}
    directory.mkdir(exist_ok=True)
    write_text(directory / "score.json", json.dumps(score))
    say(f"{point.name}: {metric.replace('_', ' ', 1)} {metrics[metric]:.4f}, {time.perf_counter() - began:.0f} s")


def _score(directory: Path, digest: str) -> dict[str, Any] | None:
    """What a run of this sweep scored; None where it is not done."""
    path = directory / "score.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return written if written.get("identity") == digest else None


def _collected(
    folder: Path, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int], greater: bool, digest: str
) -> Sweep:
    metric, rows = "", []
    for values in [point.values for point in points(grid, seeds) if point.seed == seeds[0]]:
        runs = {seed: f"runs/{Point(values, seed).name}" for seed in seeds}
        done = {seed: score for seed, run in runs.items() if (score := _score(folder / run, digest))}
        metric = next((score["metric"] for score in done.values()), metric)
        rows.append(Row(values, {seed: score["score"] for seed, score in done.items()}, runs))
    sign = -1 if greater else 1
    rows.sort(key=lambda row: (row.mean is None, sign * (row.mean or 0.0)))
    return Sweep(folder, dict(grid), list(seeds), metric, greater, rows)


def write_results(result: Sweep, markdown: str, picture: str | None) -> None:
    """`results.json`, `results.md` and `heatmap.svg` in the sweep's folder."""
    best = result.best
    content = {
        "metric": result.metric,
        "greater_is_better": result.greater_is_better,
        "grid": dict(result.grid),
        "seeds": list(result.seeds),
        "best_student": None if best is None else best.relative_to(result.folder).as_posix(),
        "rows": [asdict(row) | {"mean": row.mean, "spread": row.spread} for row in result.rows],
    }
    files = {"results.json": json.dumps(content, indent=2), "results.md": markdown, "heatmap.svg": picture}
    with FileLock(result.folder / "results.lock"):
        for name, text in files.items():
            if text is not None:
                write_text(result.folder / name, text)

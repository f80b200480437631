"""Projections of a teacher's side that are fitted to its features, before the first step, and then stay."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config.entry import Feature
from ..features.deferred import Deferred, materialized
from ..objective.projections import PCA, at_least_float32
from .batch import adapt, make_batch
from .run import Run

logger = logging.getLogger(__name__)


def fit_projections(run: Run) -> None:
    """Fit each `pca` that is not fitted on the first rows of the training data, of all processes together.

    One pass of the teachers over these rows; what they say is kept where there is a cache. The order of the data and
    the random states are as they were.
    """
    waiting = list(_unfitted(run))
    if not waiting:
        return
    sums: dict[int, list[Tensor]] = {}
    run.stage_teachers.begin_epoch(judged=False)
    with run.batches.generators_kept(), torch.no_grad():
        for features in _features(run, max(one.rows for _, one in waiting)):
            for number, (feature, _) in enumerate(waiting):
                rows = at_least_float32(*materialized([features[feature]])).double()
                more = [rows.new_tensor(len(rows)), rows.sum(0), rows.mT @ rows]
                sums[number] = [a + b for a, b in zip(sums[number], more, strict=True)] if number in sums else more
    for number, (feature, projection) in enumerate(waiting):
        count, *rest = (run.accelerator.reduce(one, "sum") for one in sums[number])
        share = projection.fit(count, *rest)
        logger.info("pca of %s: fitted on %d rows, keeps %.1f %% of their variance", feature, int(count), 100 * share)
    run.stage_teachers.flush()


def _unfitted(run: Run) -> Iterator[tuple[Feature, PCA]]:
    """The projections that wait for their rows, each once, with the feature of the teacher that goes in."""
    seen: set[int] = set()
    for bound in run.loss_model.bound.values():
        projections = run.loss_model.projections_of(bound.entry, "teacher")
        for feature, projection in zip(bound.entry.teacher, projections, strict=False):
            if isinstance(projection, PCA) and not projection.fitted and id(projection) not in seen:
                seen.add(id(projection))
                yield feature, projection


def _features(run: Run, rows: int) -> Iterator[dict[Feature, Tensor | Deferred]]:
    """What the teachers say of the first batches of the training data, until these have so many rows."""
    left = rows
    for window in run.batches.windows(0, 1):
        for raw in window:
            batch = make_batch(run, adapt(run, raw))
            features = run.stage_teachers.start(batch.teachers, batch.teachers_on_cpu)()
            left -= run.accelerator.num_processes * next(iter(features.values())).shape[0]
            yield features
        if run.batches.max_over_processes(int(left <= 0)):
            return

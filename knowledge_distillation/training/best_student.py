"""Which student is the best so far."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ConfigError, nearest


def _no_such_metric(name: str, metrics: Iterable[str]) -> ConfigError:
    known = list(metrics)
    return ConfigError(
        f"metric_for_best_model {name!r} is not among the evaluator's metrics: {', '.join(known) or 'none'}."
        f"{nearest(name, known)}"
    )

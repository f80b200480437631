"""The stages of a run: which entries teach in each, and under which settings. A run without stages is one stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ConfigError, nearest
from .entry import DistillConfig, Entry
from .settings import TrainingSettings


@dataclass(frozen=True)
class Stage:
    """One stage: its entries, those that belong to all stages included, and its settings."""

    name: str
    entries: tuple[Entry, ...]
    settings: TrainingSettings


def stages_of(config: DistillConfig, settings: TrainingSettings) -> list[Stage]:
    """The stages in their order: that of `settings.stages`, else that in which the entries name them.

    Raises:
        ConfigError: entries and settings name different stages, or a stage has no entry.
    """
    if not config.stages and not settings.stages:
        return [Stage("", config.entries, settings)]
    described = {str(stage["name"]): dict(stage) for stage in settings.stages}
    names = list(described) or list(config.stages)
    unknown = [name for name in config.stages if name not in names]
    if unknown:
        raise ConfigError(
            f"stage {unknown[0]!r} of distill_config is none of the run's.{nearest(unknown[0], names)} "
            f"Stages: {', '.join(names)}"
        )
    stages = []
    for name in names:
        entries = tuple(entry for entry in config.entries if not entry.stage or name in entry.stage)
        if not entries:
            near = nearest(name, config.stages)
            raise ConfigError(f"stage {name!r} has no entry: none says stage: {name}.{near}")
        changes = {key: value for key, value in described.get(name, {}).items() if key != "name"}
        stages.append(Stage(name, entries, replace(settings, **changes)))
    return stages

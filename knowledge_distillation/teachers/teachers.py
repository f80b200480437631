"""The teachers of a run behind one call, whether each of them runs or is read from its cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from ..config.entry import Feature
from ..config.settings import TrainingSettings
from ..features.source import Source
from .cached import CachedTeacher, CpuInputs, Features
from .frozen import FrozenTeacher


class Teachers:
    """All teachers of a stage: `start` begins on a batch, and what it returns waits for the features.

    Args:
        teachers: by name.
        sources: how the features of each are taken.
        caches: those that are read from a cache. All processes of a run fill and read it together.
    """

    def __init__(
        self,
        teachers: Mapping[str, FrozenTeacher],
        sources: Mapping[str, Source],
        caches: Mapping[str, CachedTeacher] | None = None,
    ) -> None:
        self.teachers, self.sources, self.caches = teachers, sources, dict(caches or {})

    def start(self, inputs: Mapping[str, dict[str, Any]], on_cpu: Mapping[str, CpuInputs]) -> Callable[[], Features]:
        """Begin on a batch. A cache is read beside whatever runs next; other teachers run now.

        Args:
            inputs: what each teacher's `forward` takes, where the run computes.
            on_cpu: what `on_cpu` made of them.
        """
        features: Features = {}
        look_ups = []
        for name, source in self.sources.items():
            if name in self.caches:
                look_ups.append(self.caches[name].start(inputs[name], on_cpu[name]))
            else:
                features.update(self.teachers[name].features(source.features, inputs[name]))

        def wait() -> Features:
            for look_up in look_ups:
                features.update(look_up())
            return features

        return wait

    def on_cpu(self, inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, CpuInputs]:
        """What cached teachers know the samples of a batch by.

        Args:
            inputs: what the data adaptor gave for each teacher, on the CPU where there is a cache.
        """
        return {name: CpuInputs.of(inputs[name], cache.teacher.model) for name, cache in self.caches.items()}

    def begin_epoch(self, judged: bool = True) -> None:
        for cache in self.caches.values():
            cache.begin_epoch(judged)

    def end_epoch(self, accelerator: Any, whole: bool) -> None:
        """Write what is left; after a whole pass over the data every sample is there, for all processes to see."""
        for cache in self.caches.values():
            cache.end_epoch()
        if self.caches:
            accelerator.wait_for_everyone()
            for cache in self.caches.values() if whole and accelerator.is_main_process else ():
                cache.mark_complete()
            accelerator.wait_for_everyone()

    def flush(self) -> None:
        for cache in self.caches.values():
            cache.flush()

    def close(self) -> None:
        """Write what is left and let the threads go, of all caches, whatever happens to one."""
        with ExitStack() as stack:
            for cache in self.caches.values():
                stack.callback(cache.close)
            self.caches.clear()

    def cache_notes(
        self, lengths: NDArray[Any] | None, samples: int | None, on_cpu: Mapping[str, CpuInputs]
    ) -> list[str]:
        """What each cache holds and what it will take, in words.

        Args:
            lengths: of each sample by its attention mask; None guesses by one batch.
            samples: how many there are; None where nobody knows.
            on_cpu: one batch.

        Raises:
            CacheError: the disk, or the limit, would not hold it, as far as the lengths tell.
        """
        return [cache.note(lengths, samples, on_cpu[name].context) for name, cache in self.caches.items()]

    def sizes(self) -> dict[str, int]:
        """Samples in the cache of each folder."""
        return {str(cache.store.folder): len(cache.store) for cache in self.caches.values()}


def open_teachers(
    settings: TrainingSettings,
    teachers: Mapping[str, FrozenTeacher],
    sources: Mapping[str, Source],
    inputs: Mapping[str, Mapping[str, Any]],
    stage: str = "",
    adaptor: Callable[..., Any] | None = None,
    temperatures: Mapping[Feature, float] | None = None,
) -> Teachers:
    """The teachers of a stage, with caches where the settings say so; a cache that does not fit is an error now.

    Args:
        sources: how the features of each teacher are taken, with their shapes on one batch.
        inputs: what the data adaptor gave for each teacher on that batch.
        stage: the name of the stage, where there are several.
        adaptor: the teachers' output adaptor, if there is one.
        temperatures: of logits of which `teacher_cache_top_k` are kept, where it is not 1.

    Raises:
        CacheError: a folder is of another teacher, of other features, or no cache.
    """
    caches = {
        name: CachedTeacher.open(settings, teachers[name], source, inputs[name], (stage, name), adaptor, temperatures)
        for name, source in sources.items()
        if settings.teacher_cache is not None
    }
    return Teachers(teachers, sources, caches)

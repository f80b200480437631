"""The teacher caches of a run: opened as its settings say, filled and read by all of its processes together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config.settings import TrainingSettings
from ..features.adaptors import with_context
from ..features.batch_context import batch_size, make_context
from ..features.source import Source
from .cache_format import form_of, spans_of
from .cache_identity import Identity
from .cache_store import Store, shown
from .cached import CachedTeacher, Keyed
from .frozen import FrozenTeacher


class TeacherCaches(dict[str, CachedTeacher]):
    """The cached teachers by name."""

    def begin_epoch(self, judged: bool = True) -> None:
        for cache in self.values():
            cache.begin_epoch(judged)

    def end_epoch(self, accelerator: Any, whole: bool) -> None:
        """Write what is left; after a whole pass over the data every sample is there, for all processes to see."""
        for cache in self.values():
            cache.end_epoch()
        if self:
            accelerator.wait_for_everyone()
            for cache in self.values() if whole and accelerator.is_main_process else ():
                cache.mark_complete()
            accelerator.wait_for_everyone()

    def flush(self) -> None:
        for cache in self.values():
            cache.flush()

    def close(self) -> None:
        """Write what is left and let the threads go, of all caches, whatever happens to one."""
        with ExitStack() as stack:
            for cache in self.values():
                stack.callback(cache.close)
            self.clear()

    def sizes(self) -> dict[str, int]:
        """Samples in the cache of each folder."""
        return {str(cache.store.folder): len(cache.store) for cache in self.values()}


def open_caches(
    settings: TrainingSettings,
    teachers: Mapping[str, FrozenTeacher],
    sources: Mapping[str, Source],
    inputs: Mapping[str, Mapping[str, Any]],
    stage: str = "",
    adaptor: Callable[..., Any] | None = None,
) -> TeacherCaches:
    """The caches of a run by the name of the teacher, as its settings say; what does not fit is an error now.

    Args:
        sources: how the features of each teacher are taken, with their shapes on one batch.
        inputs: what the data adaptor gave for each teacher on that batch.
        stage: the name of the stage, where there are several.
        adaptor: the teachers' output adaptor, if there is one.

    Raises:
        CacheError: a folder is of another teacher, of other features, or no cache.
    """
    if settings.teacher_cache is None:
        return TeacherCaches()
    opened = TeacherCaches()
    for name, source in sources.items():
        teacher = teachers[name]
        context = make_context(with_context(inputs[name], teacher.model)[1])
        dtype, few = _stored_as(settings.teacher_cache_dtype, teacher), settings.teacher_cache_top_k
        named = {feature: str(source.canonical.get(feature, feature)._replace(model="")) for feature in source.kinds}
        forms = {
            named[feature]: form_of(feature, kind, source.shapes[feature], context, dtype, few)
            for feature, kind in source.kinds.items()
        }
        folder = Path(settings.teacher_cache, *filter(None, (stage, name)))
        limit = None if settings.teacher_cache_limit is None else settings.teacher_cache_limit * 1e9
        store = Store(folder, Identity.of(teacher.model, adaptor), forms, limit)
        opened[name] = CachedTeacher(teacher, source, store, named)
    return opened


def estimated(cached: CachedTeacher, lengths: NDArray[Any] | None, samples: int | None, keyed: Keyed) -> str:
    """What a cache will take, in words, once all samples are in it.

    Args:
        lengths: of each sample by its attention mask; None guesses by one batch.
        samples: how many there are; None where nobody knows.
        keyed: one batch.

    Raises:
        CacheError: the disk, or the limit, would not hold it, as far as the lengths tell.
    """
    store = cached.store
    batch = {name: span.length for name, span in spans_of(store.names, keyed.context).items()}
    rows = batch_size(keyed.context)
    dtype = next(iter(store.forms.values())).dtype
    held = f"teacher cache {store.folder}: holds {len(store):,} samples, {shown(store.nbytes)}"
    if store.complete:
        return f"{held} in {dtype}"
    per_batch = store.bytes_of(batch, rows)
    if samples is None:
        return f"{held}; about {shown(per_batch / rows)} for each sample in {dtype}"
    if set(store.names) <= ({"attention_mask"} if lengths is not None else set()):
        whole = store.bytes_of({name: np.asarray(lengths) for name in store.names}, samples)
        store.check_room(whole)
    else:
        whole = int(per_batch / rows * samples)
    return f"{held}; about {shown(whole)} for {samples:,} samples in {dtype}"


def _stored_as(asked: str, teacher: FrozenTeacher) -> str:
    """bf16 for a teacher that computes in it, whose hidden states then lose nothing; else fp16, which is finer."""
    if asked != "auto":
        return asked
    return "bfloat16" if teacher.dtype is torch.bfloat16 else "float16"

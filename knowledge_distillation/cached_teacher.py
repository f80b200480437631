"""A teacher that is paid for once: its features come from a cache, and go there when they are not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cache_forms import Span, form_of, sample_keys, spans_of
from .config import Feature
from .context import make_context
from .deferred import Deferred
from .errors import DataError
from .plan import Source
from .settings import TrainingSettings
from .teacher_cache import Identity, Store, shown
from .teachers import FrozenTeacher

Features = dict[Feature, Tensor | Deferred]
ENOUGH_FOUND = 0.9  # of the samples, where all should be there
SAMPLES_TO_JUDGE = 1000
MOST_UNWRITTEN = 4  # batches on their way to the disk


class Keyed(NamedTuple):
    """What a teacher is given for one batch, on the CPU, and its masks."""

    inputs: Mapping[str, Any]
    context: Mapping[str, Any]


class _Found(NamedTuple):
    keys: NDArray[np.uint64]
    spans: dict[str, Span]
    parts: dict[str, dict[str, Tensor]] | None  # None where a sample is not in the cache
    samples: int


class CachedTeacher:
    """`ask(inputs, keyed)` begins to read a batch's features beside whatever runs; its answer waits for them.

    A batch of which a sample is missing is run by the teacher, and goes to the cache from a thread of its own. Either
    way the features are those that the cache gives back, so that a run does not depend on what was in it before.

    Args:
        teacher: runs only for what is missing.
        source: takes the mapped features from one pass of it.
        store: of these features.
    """

    def __init__(self, teacher: FrozenTeacher, source: Source, store: Store) -> None:
        self.teacher, self.source, self.store = teacher, source, store
        self.features = {str(feature): feature for feature in source.kinds}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")  # the only one that uses the store
        self._unwritten: list[Future[None]] = []
        self._expected = False  # whether every sample should be there
        self._asked = self._missing = 0

    def ask(self, inputs: dict[str, Any], keyed: Keyed) -> Callable[[], Features]:
        """Begin to look up a batch.

        Args:
            inputs: what the teacher's `forward` takes, where the run computes.
            keyed: the same on the CPU.
        """
        found = self._thread.submit(self._look_up, keyed)
        return lambda: self._answer(found.result(), inputs)

    def begin_epoch(self, judged: bool = True) -> None:
        """See what all processes wrote; let go of the teacher where it will not be needed.

        Args:
            judged: whether few samples found are an error where all should be there.
        """
        self._thread.submit(self.store.refresh).result()
        self._expected = judged and self.store.complete
        self._asked = self._missing = 0
        if self._expected:
            self.teacher.rest()

    def flush(self) -> None:
        """Write what is not written yet."""
        while self._unwritten:
            self._unwritten.pop(0).result()
        self._thread.submit(self.store.flush).result()

    def end_epoch(self) -> None:
        self._judge(1)
        self.flush()

    def mark_complete(self) -> None:
        self._thread.submit(self.store.refresh).result()
        self.store.mark_complete()

    def close(self) -> None:
        self.flush()
        self._thread.shutdown()

    def _look_up(self, keyed: Keyed) -> _Found:
        spans = spans_of(self.store.names, keyed.context)
        keys = sample_keys(keyed.inputs, keyed.context)
        places = self.store.find(keys)
        missing = int((places < 0).sum())
        self._asked, self._missing = self._asked + len(keys), self._missing + missing
        return _Found(keys, spans, None if missing else self.store.read(places, spans), len(keys))

    def _answer(self, found: _Found, inputs: dict[str, Any]) -> Features:
        if self._asked >= SAMPLES_TO_JUDGE:
            self._judge(SAMPLES_TO_JUDGE)
        if found.parts is not None:
            device = self.teacher.device
            parts = {
                name: {part: _moved(tensor, device) for part, tensor in stored.items()}
                for name, stored in found.parts.items()
            }
        else:
            parts = self._live(inputs, found)
        return {
            feature: self.store.forms[name].decode(parts[name], feature in self.source.heads)
            for name, feature in self.features.items()
        }

    def _live(self, inputs: dict[str, Any], found: _Found) -> dict[str, dict[str, Tensor]]:
        taken = self.teacher.features(self.source.features, inputs)
        parts = {}
        for name, feature in self.features.items():
            form, one = self.store.forms[name], taken[feature]
            sizes = tuple(found.spans[dim].size if isinstance(dim, str) else dim for dim in form.dims)
            if one.shape[1:] != sizes:
                raise DataError(
                    f"teacher cache: {name} is {tuple(one.shape[1:])} in this batch and was {form.dims} in the first: "
                    "give the batch a mask that says how long it is"
                )
            parts[name] = form.encode(one, found.spans)
        while len(self._unwritten) >= MOST_UNWRITTEN:
            self._unwritten.pop(0).result()
        self._unwritten.append(self._thread.submit(self._write, found, parts))
        return parts

    def _write(self, found: _Found, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        here = {name: {part: tensor.cpu() for part, tensor in stored.items()} for name, stored in parts.items()}
        self.store.add(found.keys, here, found.spans)

    def _judge(self, least: int) -> None:
        if self._expected and self._asked >= least and self._missing > (1 - ENOUGH_FOUND) * self._asked:
            found = self._asked - self._missing
            raise DataError(
                f"teacher cache {self.store.folder}: of {self._asked:,} samples {found:,} were found, though a whole "
                f"pass over the data is in it ({len(self.store):,} samples). Either the teacher's inputs change from "
                "epoch to epoch (augmentation, random masking, padding on the left): keep them as they are, or turn "
                "the cache off. Or the data is not what it was filled from: `distill cache` (cache_teachers) adds "
                "what is missing"
            )


def open_caches(
    settings: TrainingSettings,
    teachers: Mapping[str, FrozenTeacher],
    sources: Mapping[str, Source],
    inputs: Mapping[str, Mapping[str, Any]],
    stage: str = "",
) -> dict[str, CachedTeacher]:
    """The caches of a run by the name of the teacher, as its settings say; what does not fit is an error now.

    Args:
        sources: how the features of each teacher are taken, with their shapes on one batch.
        inputs: all that each teacher is told of that batch.
        stage: the name of the stage, where there are several.

    Raises:
        CacheError: a folder is of another teacher, of other features, or no cache.
    """
    if settings.teacher_cache is None:
        return {}
    opened = {}
    for name, source in sources.items():
        teacher = teachers[name]
        context = make_context(inputs[name])
        forms = {
            str(feature): form_of(
                feature,
                kind,
                source.shapes[feature],
                context,
                _stored_as(settings.teacher_cache_dtype, teacher),
                settings.teacher_cache_top_k,
            )
            for feature, kind in source.kinds.items()
        }
        folder = Path(settings.teacher_cache, *filter(None, (stage, name)))
        limit = None if settings.teacher_cache_limit is None else settings.teacher_cache_limit * 1e9
        opened[name] = CachedTeacher(teacher, source, Store(folder, Identity.of(teacher.model), forms, limit))
    return opened


def estimated(cached: CachedTeacher, lengths: NDArray[Any] | None, samples: int | None, keyed: Keyed) -> str:
    """What a cache will take, in words, once all samples are in it.

    Args:
        lengths: of each sample by its attention mask; None guesses by one batch.
        samples: how many there are; None where nobody knows.
        keyed: one batch.

    Raises:
        CacheError: the disk, or the limit, would not hold it.
    """
    store = cached.store
    batch = {name: span.length for name, span in spans_of(store.names, keyed.context).items()}
    one = len(next(iter(batch.values()))) if batch else 1
    dtype = next(iter(store.forms.values())).dtype
    held = f"holds {len(store):,} samples, {shown(store.nbytes)}"
    if store.complete:
        return f"teacher cache {store.folder}: {held} in {dtype}"
    per_batch = store.bytes_of(batch, one)
    if samples is None:
        return f"teacher cache {store.folder}: {held}; about {shown(per_batch / one)} for each sample in {dtype}"
    known = lengths is not None and set(store.names) <= {"attention_mask"}
    told = {name: np.asarray(lengths) for name in store.names}
    whole = store.bytes_of(told, samples) if known else int(per_batch / one * samples)
    store.check_room(whole)
    return f"teacher cache {store.folder}: {held}; about {shown(whole)} for {samples:,} samples in {dtype}"


def _stored_as(asked: str, teacher: FrozenTeacher) -> str:
    """bf16 for a teacher that computes in it, whose hidden states then lose nothing; else fp16, which is finer."""
    if asked != "auto":
        return asked
    return "bfloat16" if teacher.dtype is torch.bfloat16 else "float16"


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

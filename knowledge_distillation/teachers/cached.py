"""A teacher that is paid for once: its features come from a cache, and go there when they are not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.entry import Feature
from ..errors import DataError
from ..features.lazy import Deferred
from ..features.source import Source
from .cache_format import Span, sample_keys, spans_of
from .cache_store import Store
from .frozen import FrozenTeacher

Features = dict[Feature, Tensor | Deferred]
Parts = dict[str, dict[str, Tensor]]  # of each feature, what is stored of it
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
    present: NDArray[np.bool_]
    parts: dict[str, dict[str, Tensor]]  # of the samples that are present


class CachedTeacher:
    """`ask(inputs, keyed)` begins to read a batch's features beside whatever runs; its answer waits for them.

    A batch of which a sample is missing is run by the teacher, and goes to the cache from a thread of its own. Either
    way the features are those that the cache gives back, so that a run does not depend on what was in it before.

    Args:
        teacher: runs only for what is missing.
        source: takes the mapped features from one pass of it.
        store: of these features, under the names of `named`.
        named: each feature's name in the store.
    """

    def __init__(self, teacher: FrozenTeacher, source: Source, store: Store, named: Mapping[Feature, str]) -> None:
        self.teacher, self.source, self.store, self.named = teacher, source, store, dict(named)
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
        """Make the folder this teacher's and see what all processes wrote; let go of the teacher where it may rest.

        Args:
            judged: whether few samples found are an error where all should be there.
        """
        self._thread.submit(self.store.claim).result()
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
        """Every sample of a pass over the training data is there, of all processes."""
        self._thread.submit(self.store.mark_complete).result()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _look_up(self, keyed: Keyed) -> _Found:
        spans = spans_of(self.store.names, keyed.context)
        keys = sample_keys(keyed.inputs, keyed.context)
        places = self.store.find(keys)
        present = places >= 0
        self._asked, self._missing = self._asked + len(keys), self._missing + int((~present).sum())
        return _Found(keys, spans, present, self.store.read(places, spans) if present.any() else {})

    def _answer(self, found: _Found, inputs: dict[str, Any]) -> Features:
        if self._asked >= SAMPLES_TO_JUDGE:
            self._judge(SAMPLES_TO_JUDGE)
        device = self.teacher.device
        parts = {
            name: {part: _moved(tensor, device) for part, tensor in stored.items()}
            for name, stored in found.parts.items()
        }
        if not found.present.all():
            parts = self._completed(parts, found, self._live(inputs, found))
        return {
            feature: self.store.forms[name].decode(parts[name], feature in self.source.heads)
            for feature, name in self.named.items()
        }

    def _completed(self, parts: Parts, found: _Found, live: Parts) -> Parts:
        """What the teacher says of missing samples and the cache of the others: a copy of what is to be written."""
        present = torch.from_numpy(found.present).to(self.teacher.device)
        completed: Parts = {}
        for name, stored in live.items():
            completed[name] = {}
            for part, tensor in stored.items():
                known = parts[name][part] if parts else tensor
                completed[name][part] = torch.where(present.view(-1, *[1] * (tensor.dim() - 1)), known, tensor)
        return completed

    def _live(self, inputs: dict[str, Any], found: _Found) -> Parts:
        taken = self.teacher.features(self.source.features, inputs)
        parts = {}
        for feature, name in self.named.items():
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

    def _write(self, found: _Found, parts: Parts) -> None:
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


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

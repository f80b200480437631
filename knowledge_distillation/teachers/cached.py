"""A teacher that is paid for once: its features come from a cache, and go there when they are not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config.entry import Feature
from ..config.settings import TrainingSettings
from ..errors import DataError
from ..features.batch_context import batch_size, make_context
from ..features.deferred import Deferred
from ..features.inputs import forward_inputs
from ..features.source import Source
from .cache_format import Span, form_of, spans_of, tensor_name
from .cache_keys import Identity, sample_keys
from .cache_store import Store, format_bytes
from .frozen import FrozenTeacher

Features = dict[Feature, Tensor | Deferred]
Stored = dict[str, Tensor]  # what is stored of the features, by name
ENOUGH_PRESENT = 0.9  # of the samples, where all should be there
SAMPLES_TO_JUDGE = 1000
MOST_UNWRITTEN = 4  # batches on their way to the disk


class CpuInputs(NamedTuple):
    """One batch of a teacher on the CPU, where looking at it waits for nothing: its inputs, and its masks."""

    inputs: Mapping[str, Any]
    context: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Mapping[str, Any], model: nn.Module) -> CpuInputs:
        """Of what the data adaptor gave for the teacher `model`."""
        return cls(forward_inputs(inputs, model), make_context(inputs))


class _LookUp(NamedTuple):
    keys: NDArray[np.uint64]
    spans: dict[str, Span]
    present: NDArray[np.bool_]
    stored: Stored  # of the samples that are present


class CachedTeacher:
    """`start` begins to read a batch's features beside whatever runs; what it returns waits for them.

    A batch of which a sample is missing is run by the teacher, and goes to the cache from a thread of its own. Either
    way the features are those that the cache gives back, so that a run does not depend on what was in it before.

    Args:
        teacher: runs only for what is missing.
        source: takes the mapped features from one pass of it.
        store: of these features, under `names`.
        names: each feature's name in the store.
    """

    def __init__(self, teacher: FrozenTeacher, source: Source, store: Store, names: Mapping[Feature, str]) -> None:
        self.teacher, self.source, self.store, self.names = teacher, source, store, dict(names)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")  # the only one that uses the store
        self._unwritten: list[Future[None]] = []
        self._complete = False  # whether every sample should be there
        self._samples = self._missing = 0

    @classmethod
    def open(
        cls,
        settings: TrainingSettings,
        teacher: FrozenTeacher,
        source: Source,
        inputs: Mapping[str, Any],
        folders: Sequence[str] = (),
        adaptor: Callable[..., Any] | None = None,
        temperatures: Mapping[Feature, float] | None = None,
    ) -> CachedTeacher:
        """The cache of a teacher, as the settings say; what does not fit is an error now.

        Args:
            source: how its features are taken, with their shapes on one batch.
            inputs: what the data adaptor gave for it on that batch.
            folders: inside `teacher_cache`, as far as they have a name.
            adaptor: its output adaptor, if there is one.
            temperatures: of logits of which only some are kept, where it is not 1.

        Raises:
            CacheError: the folder is of another teacher, of other features, or no cache.
        """
        context, dtype = CpuInputs.of(inputs, teacher.model).context, settings.teacher_cache_dtype
        if dtype == "auto":  # a teacher in bf16 loses nothing of its hidden states in it; fp16 is finer
            dtype = "bfloat16" if teacher.dtype is torch.bfloat16 else "float16"
        names = {feature: str(source.canonical.get(feature, feature)._replace(model="")) for feature in source.kinds}
        forms = {
            names[feature]: form_of(
                feature,
                kind,
                source.shapes[feature],
                context,
                dtype,
                settings.teacher_cache_top_k,
                (temperatures or {}).get(feature, 1.0),
            )
            for feature, kind in source.kinds.items()
        }
        folder = Path(settings.teacher_cache or "", *filter(None, folders))
        limit = None if settings.teacher_cache_limit is None else settings.teacher_cache_limit * 1e9
        return cls(teacher, source, Store(folder, Identity.of(teacher.model, adaptor), forms, limit), names)

    def start(self, inputs: dict[str, Any], on_cpu: CpuInputs) -> Callable[[], Features]:
        """Begin to look up a batch.

        Args:
            inputs: what the teacher's `forward` takes, where the run computes.
            on_cpu: the same on the CPU.
        """
        look_up = self._thread.submit(self._look_up, on_cpu)
        return lambda: self._features(look_up.result(), inputs)

    def begin_epoch(self, judged: bool = True) -> None:
        """Make the folder this teacher's and see what all processes wrote; let go of the teacher where it may rest.

        Args:
            judged: whether many missing samples are an error where all should be there.
        """
        self._thread.submit(self.store.claim).result()
        self._complete = judged and self.store.complete
        self._samples = self._missing = 0
        if self._complete:
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

    def note(self, lengths: NDArray[Any] | None, samples: int | None, context: Mapping[str, Any]) -> str:
        """What the cache holds, and what it will take once all samples are in it, in words.

        Args:
            lengths: of each sample by its attention mask; None guesses by one batch.
            samples: how many there are; None where nobody knows.
            context: the masks of one batch.

        Raises:
            CacheError: the disk, or the limit, would not hold it, as far as the lengths tell.
        """
        store = self.store
        dtype = next(iter(store.forms.values())).dtype
        note = f"teacher cache {store.folder}: holds {len(store):,} samples, {format_bytes(store.nbytes)}"
        if store.complete:
            return f"{note} in {dtype}"
        rows = batch_size(context)
        spans = spans_of(store.names, context)
        per_sample = store.bytes_of({name: span.length for name, span in spans.items()}, rows) / rows
        if samples is None:
            return f"{note}; about {format_bytes(per_sample)} for each sample in {dtype}"
        if set(store.names) <= ({"attention_mask"} if lengths is not None else set()):
            size = store.bytes_of({name: np.asarray(lengths) for name in store.names}, samples)
            store.check_room(max(0, size - store.nbytes), begun=False)
        else:
            size = int(per_sample * samples)
        return f"{note}; about {format_bytes(size)} for {samples:,} samples in {dtype}"

    def _look_up(self, on_cpu: CpuInputs) -> _LookUp:
        spans = spans_of(self.store.names, on_cpu.context)
        keys = sample_keys(on_cpu.inputs, on_cpu.context)
        places = self.store.find(keys)
        present = places >= 0
        self._samples, self._missing = self._samples + len(keys), self._missing + int((~present).sum())
        return _LookUp(keys, spans, present, self.store.read(places, spans) if present.any() else {})

    def _features(self, look_up: _LookUp, inputs: dict[str, Any]) -> Features:
        if self._samples >= SAMPLES_TO_JUDGE:
            self._judge(SAMPLES_TO_JUDGE)
        device = self.teacher.device
        stored = {name: _moved(tensor, device) for name, tensor in look_up.stored.items()}
        if not look_up.present.all():
            stored = self._completed(stored, look_up, self._computed(inputs, look_up))
        features = {}
        for feature, name in self.names.items():
            form = self.store.forms[name]
            parts = {part: stored[tensor_name(name, part)] for part in form.parts}
            features[feature] = form.decode(parts)
        return features

    def _completed(self, cached: Stored, look_up: _LookUp, computed: Stored) -> Stored:
        """What the teacher says of missing samples and the cache of the others: a copy of what is to be written."""
        present = torch.from_numpy(look_up.present).to(self.teacher.device)
        return {
            name: torch.where(present.view(-1, *[1] * (tensor.dim() - 1)), cached.get(name, tensor), tensor)
            for name, tensor in computed.items()
        }

    def _computed(self, inputs: dict[str, Any], look_up: _LookUp) -> Stored:
        """The stored form of what the teacher gives now; it is written beside the run."""
        features = self.teacher.features(self.source.features, inputs)
        stored: Stored = {}
        for feature, name in self.names.items():
            form, tensor = self.store.forms[name], features[feature]
            sizes = tuple(look_up.spans[dim].size if isinstance(dim, str) else dim for dim in form.dims)
            if tensor.shape[1:] != sizes:
                raise DataError(
                    f"teacher cache: {name} is {tuple(tensor.shape[1:])} in this batch and was {form.dims} in the "
                    "first: give the batch a mask that says how long it is"
                )
            parts = form.encode(tensor, look_up.spans)
            stored |= {tensor_name(name, part): values for part, values in parts.items()}
        while len(self._unwritten) >= MOST_UNWRITTEN:
            self._unwritten.pop(0).result()
        self._unwritten.append(self._thread.submit(self._write, look_up, stored))
        return stored

    def _write(self, look_up: _LookUp, stored: Stored) -> None:
        self.store.add(look_up.keys, {name: tensor.cpu() for name, tensor in stored.items()}, look_up.spans)

    def _judge(self, least: int) -> None:
        samples = self._samples
        if self._complete and samples >= least and self._missing > (1 - ENOUGH_PRESENT) * samples:
            raise DataError(
                f"teacher cache {self.store.folder}: of {samples:,} samples {samples - self._missing:,} were found, "
                f"though a whole pass over the data is in it ({len(self.store):,} samples). Either the teacher's "
                "inputs change from epoch to epoch (augmentation, random masking, padding on the left): keep them as "
                "they are, or turn the cache off. Or the data is not what it was filled from: `distill cache` "
                "(cache_teachers) adds what is missing"
            )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

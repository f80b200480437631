"""Teacher features on disk: the files of a cache, found by the keys of samples.

FOLDER/
  cache.json           whose features these are and how they are stored; a cache of anything else is refused
  <checksum>.safetensors   shards: keys and lengths of some samples, and their features without padding, end to end
  complete.json        there once every sample of a pass over the training data is in it
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from .cache_format import Form, Span, tensor_name
from .cache_keys import Identity

FORMAT = 1
SHARD_BYTES = 64 << 20
SPARE_BYTES = 256 << 20  # of the disk, left free
_KEYS, _LENGTHS = "sample_keys", "sample_lengths"


class CacheError(CheckpointError):
    """A teacher cache is of something else, damaged, or cannot grow."""


class Store:
    """The samples of one cache folder: find, read, add. Several processes may write to one folder at a time.

    Args:
        folder: made by `claim`.
        identity: of the teacher.
        forms: feature name -> how it is stored. A folder that holds more features serves these and is not added to.
        limit: bytes the folder may grow to; None for what the disk holds.

    Raises:
        CacheError: the folder holds features of another teacher, others than these, or no cache at all.
    """

    def __init__(
        self, folder: Path, identity: Identity, forms: Mapping[str, Form], limit: float | None = None
    ) -> None:
        self.folder, self.identity, self.limit = folder, identity, limit
        self.forms = dict(forms)
        self._tensors = {  # name -> dimensions for one sample, and type
            tensor_name(feature, part): kind for feature, form in forms.items() for part, kind in form.parts.items()
        }
        self.names = self._names_stored = _length_names(self.forms)
        self.writable = True
        self._shards: list[_Shard] = []
        self._known: set[str] = set()
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int32], dict[str, Tensor]]] = []
        self._pending_places: dict[bytes, int] = {}
        self._pending_bytes = 0
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None
        self._open()

    # --- what is there -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Samples on disk, as of the last `refresh`."""
        return sum(len(shard.keys) for shard in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, as of the last `refresh`."""
        return sum(shard.nbytes for shard in self._shards)

    @property
    def complete(self) -> bool:
        """Whether a whole pass over the training data went into it."""
        return (self.folder / "complete.json").exists()

    def mark_complete(self) -> None:
        self.refresh()
        if self.writable:
            self._write("complete.json", {"samples": len(self)})

    def claim(self) -> None:
        """Make the folder one of these features, before anything goes into it or comes out of it.

        Raises:
            CacheError: another run was first, with something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / "cache.json"
        if not marker.exists():
            self._write(marker.name, self._description(), replace=False)
        self.refresh()

    def refresh(self) -> None:
        """See the shards that were written since the last look, by whomever; their samples are of this teacher.

        Raises:
            CacheError: the folder is of something else.
        """
        if (self.folder / "cache.json").exists():
            self._agree()
        files = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        for path in files:
            if path.name not in self._known:
                self._known.add(path.name)
                self._shards.append(_Shard(path, self._names_stored))
                self._index = None

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place of each sample, on disk or on its way there; -1 where it is not there.

        Args:
            keys: (samples, 2).
        """
        if self._index is None:
            stored = np.concatenate([keys[:0], *(shard.keys for shard in self._shards)])
            order = np.argsort(stored[:, 0], kind="stable")
            self._index = stored[order], order
        stored, order = self._index
        places = np.full(len(keys), -1)
        if len(stored):
            at = np.minimum(np.searchsorted(stored[:, 0], keys[:, 0]), len(stored) - 1)
            places = np.where((stored[at] == keys).all(1), order[at], -1)
        for sample in np.flatnonzero(places < 0) if self._pending else ():
            pending = self._pending_places.get(keys[sample].tobytes())
            places[sample] = -1 if pending is None else len(self) + pending
        return places

    def read(self, places: NDArray[np.int64], spans: Mapping[str, Span]) -> dict[str, Tensor]:
        """The stored tensors of one batch by name, each sample where its span says; 0 around it, and at -1."""
        begins = np.cumsum([0, *(len(shard.keys) for shard in self._shards)])
        numbers = (np.searchsorted(begins, places, side="right") - 1).tolist()
        rows = (places - begins[numbers]).tolist()
        present = np.flatnonzero(places >= 0).tolist()
        tensors = {}
        for name, (dims, dtype) in self._tensors.items():
            sizes = [spans[dim].size if isinstance(dim, str) else dim for dim in dims]
            batch = tensors[name] = torch.zeros(len(places), *sizes, dtype=dtype)
            for sample in present:
                number, row, at = numbers[sample], rows[sample], window(dims, spans, sample)
                if number < len(self._shards):
                    batch[sample][at] = self._shards[number].record(name, dims, row)
                else:
                    batch[sample][at] = self._pending[row][2][name].view(batch[sample][at].shape)
        return tensors

    # --- adding ------------------------------------------------------------------------------------------------------

    def add(self, keys: NDArray[np.uint64], tensors: Mapping[str, Tensor], spans: Mapping[str, Span]) -> None:
        """Take in the samples of a batch that are not there yet; a shard is written when there are enough.

        Args:
            tensors: what is stored by name, on the CPU, padded as the batch was.
        """
        for sample in np.flatnonzero(self.find(keys) < 0).tolist():
            key = keys[sample].tobytes()
            if key in self._pending_places:
                continue
            record = {  # copies, since a view would hold its whole batch
                name: tensors[name][sample][window(dims, spans, sample)].flatten().clone()
                for name, (dims, _) in self._tensors.items()
            }
            self._check_range(record)
            lengths = np.array([spans[name].length[sample] for name in self.names], np.int32)
            if not self.writable:
                continue
            self._pending_places[key] = len(self._pending)
            self._pending.append((keys[sample], lengths, record))
            self._pending_bytes += sum(tensor.nbytes for tensor in record.values())
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def _check_range(self, record: Mapping[str, Tensor]) -> None:
        for name, tensor in record.items():
            if tensor.dtype == torch.float16 and torch.isinf(tensor).any():
                raise CacheError(
                    f"teacher cache {self.folder}: {name} has values beyond float16, above 65,504: set "
                    "teacher_cache_dtype: bfloat16"
                )
            if name.endswith(":scale") and not torch.isfinite(tensor).all():
                raise CacheError(
                    f"teacher cache {self.folder}: {name.removesuffix(':scale')} has values that are no finite "
                    "numbers, of which int8 can keep none: set teacher_cache_dtype: bfloat16"
                )

    def flush(self) -> None:
        """Write what was taken in; all of it or nothing."""
        if not self._pending:
            return
        self.claim()
        if not self.writable:
            return self._drop()
        self.check_room(self._pending_bytes)
        keys, lengths, records = zip(*self._pending, strict=True)
        tensors = {name: torch.cat([record[name] for record in records]) for name in records[0]}
        tensors[_KEYS] = torch.from_numpy(np.stack(keys).view(np.int64))
        tensors[_LENGTHS] = torch.from_numpy(np.stack(lengths))
        unfinished = self._unfinished()
        try:
            save_file(tensors, str(unfinished))
            unfinished.rename(self.folder / f"{_checksum(unfinished)}.safetensors")
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno != errno.ENOSPC:
                raise
            full = isinstance(error, OSError)
            raise self._full("the disk is full" if full else f"a shard cannot be written ({error})") from error
        self._drop()
        self.refresh()

    def _drop(self) -> None:
        self._pending, self._pending_places, self._pending_bytes = [], {}, 0

    def bytes_of(self, lengths: Mapping[str, NDArray[Any]], samples: int) -> int:
        """What so many samples take, given the lengths of each by the mask that tells them."""
        total = float(samples * (16 + 4 * len(self.names)))
        for dims, dtype in self._tensors.values():
            size = np.full(samples, float(dtype.itemsize))
            for dim in dims:
                size *= lengths[dim] if isinstance(dim, str) else dim
            total += float(size.sum())
        return int(total)

    def check_room(self, size: int, begun: bool = True) -> None:
        """Raise where so many bytes more cannot be written."""
        about, by_now = ("", " by now") if begun else ("about ", "")
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free, total = max(0, shutil.disk_usage(folder).free - SPARE_BYTES), self.nbytes + size
        if self.limit is not None and total > self.limit:
            raise self._full(
                f"teacher_cache_limit is {format_bytes(self.limit)}, and {about}{format_bytes(total)} "
                f"are needed{by_now}"
            )
        if size > free:
            raise self._full(f"the disk has {format_bytes(free)} to spare, and {about}{format_bytes(size)} are needed")

    def _full(self, why: str) -> CacheError:
        return CacheError(
            f"teacher cache {self.folder}: {why}. It holds {len(self):,} samples, which stay good. Make room, raise "
            "the limit, store less (teacher_cache_dtype: int8, teacher_cache_top_k, fewer mapped features), or turn "
            "the cache off"
        )

    # --- whose it is -------------------------------------------------------------------------------------------------

    def _description(self) -> dict[str, Any]:
        forms = {name: form.to_dict() for name, form in self.forms.items()}
        return {"format": FORMAT, **self.identity._asdict(), "features": forms}

    def _write(self, name: str, content: Mapping[str, Any], replace: bool = True) -> None:
        """Write a file whole; without `replace` the first of several writers wins."""
        unfinished = self._unfinished()
        unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")
        if replace:
            unfinished.replace(self.folder / name)
            return
        try:
            os.link(unfinished, self.folder / name)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            shutil.copyfile(unfinished, self.folder / name)
        unfinished.unlink()

    def _unfinished(self) -> Path:
        """A name that no other writer uses, for a file until it is whole."""
        return self.folder / f"{os.getpid()}-{uuid.uuid4().hex}.unfinished"

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise CacheError(f"teacher_cache {self.folder} is a file; a directory is needed")
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if "cache.json" not in names and any(not name.endswith(".unfinished") for name in names):
            raise CacheError(f"teacher_cache {self.folder} holds files and no cache.json: choose an empty folder")
        self.refresh()

    def _agree(self) -> None:
        marker = self.folder / "cache.json"
        try:
            description = json.loads(marker.read_text(encoding="utf-8"))
            stored = {name: Form.from_dict(form) for name, form in description["features"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{marker} cannot be read ({error}): delete the cache {self.folder}") from error
        own = self._description()
        changed = [
            f"{key}: it holds {description.get(key)!r}, this run has {own[key]!r}"
            for key in ("format", *Identity._fields)
            if description.get(key) != own[key]
        ]
        for name, form in self.forms.items():
            if name not in stored:
                changed.append(f"{name} is not in it; it holds {', '.join(stored)}")
            elif stored[name] != form:
                changed.append(f"{name}: it holds {stored[name]}, this run has {form}")
        if changed:
            raise CacheError(
                f"teacher cache {self.folder} is of something else:\n  " + "\n  ".join(changed) + "\nDelete it, or "
                "choose another teacher_cache"
            )
        self.writable = stored.keys() == self.forms.keys()
        self._names_stored = _length_names(stored)


class _Shard:
    """One file of samples: keys and lengths in memory, features mapped from the file when first read."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names, self.nbytes = path, list(names), path.stat().st_size
        self._tensors: dict[str, Tensor] = {}
        self._ends: dict[str, NDArray[np.int64]] = {}
        try:
            with safe_open(str(path), "pt") as file:
                self.keys = file.get_tensor(_KEYS).numpy().view(np.uint64).copy()
                self.lengths = file.get_tensor(_LENGTHS).numpy().copy()
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error

    def record(self, name: str, dims: tuple[int | str, ...], row: int) -> Tensor:
        if not self._tensors:
            self._map()
        if name not in self._ends:
            sizes = np.ones(len(self.keys), np.int64)
            for dim in dims:
                sizes *= self.lengths[:, self.names.index(dim)] if isinstance(dim, str) else dim
            self._ends[name] = np.cumsum(sizes)
        ends = self._ends[name]
        begin = int(ends[row - 1]) if row else 0
        shape = [int(self.lengths[row, self.names.index(dim)]) if isinstance(dim, str) else dim for dim in dims]
        return self._tensors[name][begin : int(ends[row])].view(shape)

    def _map(self) -> None:
        if _checksum(self.path) != self.path.stem:
            raise _damaged(self.path, "its checksum differs")
        with safe_open(str(self.path), "pt") as file:
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _length_names(forms: Mapping[str, Form]) -> list[str]:
    """The masks that tell lengths, in the order in which a shard has them."""
    return sorted({dim for form in forms.values() for dim in form.dims if isinstance(dim, str)})


def window(dims: Sequence[int | str], spans: Mapping[str, Span], sample: int) -> tuple[slice, ...]:
    """Where in a padded batch the features of one sample are."""
    return tuple(
        slice(int(spans[d].start[sample]), int(spans[d].start[sample] + spans[d].length[sample]))
        if isinstance(d, str)
        else slice(None)
        for d in dims
    )


def format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CacheError:
    return CacheError(f"teacher cache: {path} is damaged: {why}. Delete this file; its samples are computed again")

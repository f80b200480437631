"""Rows of a file, written once as Arrow in the cache of `datasets`, and mapped into memory from there."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .column_types import AsArray, Batches, array_of, wider

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_VERSION = 1  # of what the readers make of a file: another one reads files anew
ROWS, CHARACTERS = 10_000, 8_000_000  # of a batch


def batched(rows: Iterable[tuple[int, Any, int]]) -> Iterator[tuple[list[int], list[Any]]]:
    """Places and rows by the batch, out of (place, row, its characters): many short rows, or few long ones."""
    places: list[int] = []
    held: list[Any] = []
    characters = 0
    for place, row, size in rows:
        places.append(place)
        held.append(row)
        characters += size
        if len(held) >= ROWS or characters > CHARACTERS:
            yield places, held
            places, held, characters = [], [], 0
    if held:
        yield places, held


def cached(path: Path, batches: Batches, as_array: AsArray, options: str, mixed_is_text: bool = False) -> Dataset:
    """The rows of a file; read anew where the file, or an option, is not the one that was read before.

    Args:
        batches: reads the file from its beginning.
        as_array: the values of a column in the given type where they fit, else in one that fits.
        options: what else the rows depend on.
        mixed_is_text: a column of values of two kinds is one of texts; else that is an error.

    Raises:
        DataError: the file holds no rows, or values of two kinds in one column; whatever `batches` raises.
    """
    import datasets

    target = _place(path, options)
    if not target.exists():
        part = target.with_name(f"{uuid.uuid4().hex}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            types: dict[str, pa.DataType] = {}
            if not _write(part, path, batches, as_array, types, mixed_is_text):
                _write(part, path, batches, as_array, types, mixed_is_text)
            os.replace(part, target)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read into {target.parent}: {error}. HF_DATASETS_CACHE names another folder"
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(target))


def _place(path: Path, options: str) -> Path:
    import datasets

    real, state = os.path.realpath(path), os.stat(path)
    key = repr((_VERSION, real, state.st_mtime_ns, state.st_size, options))
    name = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "knowledge_distillation" / f"{name}.arrow"


def _write(
    part: Path, path: Path, batches: Batches, as_array: AsArray, types: dict[str, pa.DataType], mixed_is_text: bool
) -> bool:
    """Write every batch in the types that the first one has, or that are known; whether all of them fitted.

    From a batch on that does not fit, the rest is read for its types alone, which then are those of all batches.
    """
    import pyarrow as pa

    writer, fitted = None, True
    with pa.OSFile(str(part), "wb") as sink:
        for batch in batches():
            arrays = {name: array_of(path, name, batch, as_array, types.get(name)) for name in batch.columns}
            widened = {name: wider(path, name, batch, types.get(name), arrays[name], mixed_is_text) for name in arrays}
            if not batch.columns:
                raise DataError(f"{path}, {batch.unit} {batch.places[0]}: rows have no columns")
            if writer is None and fitted:
                types.update(widened)
                schema = pa.schema(list(types.items()))
                writer = pa.ipc.new_stream(sink, schema)
            fitted = fitted and all(types.get(name) == one for name, one in widened.items())
            types.update(widened)
            if fitted and writer is not None:
                rows = len(batch.places)
                columns = [arrays[name] if name in arrays else pa.nulls(rows, one) for name, one in types.items()]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        if writer is None:
            raise DataError(f"{path} holds no rows")
        writer.close()
    return fitted

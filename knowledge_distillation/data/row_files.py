"""Rows out of one file of one's own, or a saved data set, mapped into memory by the library datasets."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, nearest
from .arrow_cache import cached
from .column_types import Batch
from .delimited import cells_as_array, table_batches
from .json_rows import json_batches, values_as_array
from .text_rows import line_batches, sentence_batches

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS: dict[str, str] = {
    ".csv": "table",
    ".tsv": "table",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".conll": "sentences",
    ".bio": "sentences",
    ".iob": "sentences",
    ".iob2": "sentences",
}
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # what save_to_disk writes
_OTHER = {  # endings of files that people have, and what makes them readable
    ".xlsx": "save the sheet as CSV in UTF-8",
    ".xls": "save the sheet as CSV in UTF-8",
    ".ods": "save the sheet as CSV in UTF-8",
    ".gz": "unpack it first (gunzip)",
    ".bz2": "unpack it first (bunzip2)",
    ".xz": "unpack it first (unxz)",
    ".zst": "unpack it first (unzstd)",
    ".zip": "unpack it first (unzip)",
    ".pkl": "pickles are not opened, since they run code; write CSV, JSON lines or parquet",
    ".pickle": "pickles are not opened, since they run code; write CSV, JSON lines or parquet",
}


def rows_of_file(dataset: Any) -> Any:
    """The rows of a file, or of a folder of `save_to_disk`.

    What is no path is given back as it is. Nothing is downloaded, and no code comes out of a file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if not isinstance(dataset, (str, os.PathLike)):
        return dataset
    path = existing(dataset)
    if not path.is_dir():
        return read_rows(path)
    rows = saved(path)
    if isinstance(rows, dict):
        raise DataError(f"{path} holds several parts: give one, {', '.join(str(path / name) for name in rows)}")
    return rows


def existing(source: str | os.PathLike[str]) -> Path:
    """The path, with `~` for the home; DataError where there is nothing."""
    path = Path(os.path.expanduser(source))
    if not os.path.exists(path):
        around = [str(path.parent / name) for name in os.listdir(path.parent)] if os.path.isdir(path.parent) else []
        raise DataError(f"there is no file {str(path)!r} to read rows from.{nearest(str(path), around)}")
    return path


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Dataset:
    """The rows of one file, whose ending says how they are written.

    Args:
        path: CSV, TSV, JSON, JSON lines, parquet, Arrow, text (a row a line), or CoNLL's columns.
        columns: names for the columns of a table without a header, or of CoNLL's, in their order.

    Raises:
        DataError: the file cannot be read; its line is named where there is one.
        ConfigError: `columns` for a file whose columns have names.
    """
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        what = _OTHER.get(path.suffix.lower(), "give a file one of these endings, by what it holds")
        raise DataError(f"{path} is no file of rows ({', '.join(ENDINGS)}): {what}")
    if columns is not None and kind not in ("table", "sentences"):
        raise ConfigError(f"columns names those of CSV, TSV and CoNLL files; those of {path} have names")
    if kind in ("parquet", "arrow"):
        with reading(path, kind):
            import datasets

            return datasets.load_dataset(kind, data_files=glob.escape(str(path)), split="train")
    batches: dict[str, Callable[[], Iterator[Batch]]] = {
        "table": partial(table_batches, path, columns),
        "json": partial(json_batches, path),
        "text": partial(line_batches, path),
        "sentences": partial(sentence_batches, path, columns),
    }
    as_array = cells_as_array if kind == "table" else values_as_array
    return cached(path, batches[kind], as_array, f"{kind} {columns}", mixed_is_text=kind == "table")


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    return any((folder / name).is_file() for name in _SAVED)


def saved(folder: Path) -> Any:
    """What `save_to_disk` wrote: rows, or a dict of them."""
    with reading(folder, "a saved data set"):
        import datasets

        return datasets.load_from_disk(str(folder))


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Each format has errors of its own: one DataError of them, and no lines in the log beside it."""
    import datasets

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except Exception as error:
        raise DataError(f"{path} cannot be read as {kind}: {error}") from error
    finally:
        datasets.logging.set_verbosity(level)

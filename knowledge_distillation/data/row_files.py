"""Rows out of a file of one's own, by the library datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest

_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def rows_of_file(dataset: Any) -> Any:
    """The rows of a file (.parquet, .csv, .json, .jsonl, .arrow) or of a folder of `save_to_disk`.

    What is no path is given back as it is. Nothing is downloaded, and no code comes out of a file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if not isinstance(dataset, (str, os.PathLike)):
        return dataset
    import datasets

    path = Path(os.path.expanduser(dataset))
    kind = _FORMATS.get(path.suffix.lower())
    if not os.path.exists(path):
        around = [str(path.parent / name) for name in os.listdir(path.parent)] if os.path.isdir(path.parent) else []
        raise DataError(f"there is no file {str(path)!r} to read rows from.{nearest(str(path), around)}")
    if kind is None and not path.is_dir():
        raise DataError(f"{path} is no file of rows: {', '.join(_FORMATS)}, or a saved data set, can be read")
    try:
        if kind is None:
            rows = datasets.load_from_disk(str(path))
        else:
            rows = datasets.load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:  # each format has errors of its own
        raise DataError(f"{path} cannot be read as {kind or 'a saved data set'}: {error}") from error
    if isinstance(rows, dict):
        raise DataError(f"{path} holds several parts: give one, {', '.join(str(path / name) for name in rows)}")
    return rows

"""Training and evaluation rows from where they lie: a file or two, a folder, a saved data set, a name on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .columns import known_label
from .row_files import ENDINGS, existing, is_saved, read_rows, saved
from .split_folders import split_files
from .subsets import check_counts, divided, sample

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_VALIDATION = ("validation", "dev", "valid", "val", "eval", "validation_matched")

Source = Any  # a path, a name on the hub, a data set, a list of rows, a dict of data sets


@dataclass(frozen=True)
class Splits:
    """The rows to train on, those to evaluate on, and what was done that nobody asked for, in sentences."""

    train: Dataset
    validation: Dataset
    notes: tuple[str, ...] = ()


def load_splits(
    data: Source,
    dev: Source | None = None,
    *,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    label: str | None = None,
    columns: str | Sequence[str] | None = None,
) -> Splits:
    """Read the rows of a data set; they are mapped into memory, so that memory does not grow with the files.

    Args:
        data: a file (CSV, TSV, JSON, JSON lines, parquet, Arrow, text, CoNLL's columns); a folder with such files
            named train, dev (or validation, valid, val) and test, or one of `save_to_disk`; a name on the hub
            (`org/name`, or `org/name:subset`), where nothing of that name lies here; a `Dataset`, a
            `DatasetDict`, or a list of rows.
        dev: the evaluation rows, likewise. None for those of `data`; where it has none, a tenth of the training rows
            (at least one, at most 10,000) is held out, the same each time, by class where the label is one.
        max_train_samples: keep a random sample of so many rows, in their order; a smaller one lies within a larger.
        max_eval_samples: the same for the evaluation rows.
        label: the column of labels, to hold rows out by class; None for one of a well-known name.
        columns: the names of the columns of a table that has no header, or of CoNLL's columns, in their order: a list,
            or a text parted by commas.

    Raises:
        DataError: there is no such data, or it cannot be read; file and line are named.
        ConfigError: an argument out of range.
    """
    check_counts(max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    notes: list[str] = []
    parts = _parts(data, _names(columns), notes)
    train, validation = parts["train"], parts.get("validation")
    if dev is not None:
        validation = load_rows(dev, columns)
        if _same(data, dev):
            notes.append(f"{dev} is also what is trained on: scores say what is remembered, not what is learnt")
    if validation is None:
        by = label if label in train.column_names else known_label(train)
        train, validation, note = divided(train, by, _named(data))
        notes.append(note)
    for rows, name in ((train, "training"), (validation, "evaluation")):
        if not len(rows):
            raise DataError(f"{_named(data if name == 'training' or dev is None else dev)} holds no {name} rows")
    return Splits(_sampled(train, max_train_samples), _sampled(validation, max_eval_samples), tuple(notes))


def load_rows(source: Source, columns: str | Sequence[str] | None = None) -> Dataset:
    """The rows of a source to evaluate on, or to predict: of its evaluation part, or of the only part that it has.

    Args:
        source, columns: as `data` and `columns` of `load_splits`.

    Raises:
        DataError: there is no such data, or it cannot be read.
    """
    parts = _parts(source, _names(columns), [], evaluation=True)
    return parts.get("validation", parts.get("train"))


def _parts(
    source: Source, columns: Sequence[str] | None, notes: list[str], evaluation: bool = False
) -> dict[str, Dataset]:
    """The parts of a source by name, `train` among them, or where rows to evaluate on are asked for, any one."""
    if isinstance(source, Mapping):
        return _by_part(source, "the data", evaluation)
    if not isinstance(source, (str, os.PathLike)):
        return {"train": _as_dataset(source)}
    name = os.fspath(source)
    if _is_on_hub(name):
        return _from_hub(name, evaluation)
    path = existing(source)
    if not path.is_dir():
        return {"train": read_rows(path, columns)}
    if is_saved(path):
        rows = saved(path)
        return _by_part(rows, str(path), evaluation) if isinstance(rows, dict) else {"train": rows}
    files = split_files(path, evaluation)
    if "test" in files and "validation" not in files and not evaluation:
        notes.append(f"{files['test'].name} is not read: its rows are for the end")
    return {part: read_rows(files[part], columns) for part in ("train", "validation") if part in files}


def _by_part(parts: Mapping[str, Any], where: str, evaluation: bool) -> dict[str, Dataset]:
    found = {"train": parts.get("train")}
    found["validation"] = next((parts[name] for name in _VALIDATION if name in parts), None)
    found = {name: _as_dataset(rows) for name, rows in found.items() if rows is not None}
    if not found or ("train" not in found and not evaluation):
        raise DataError(f"{where} has no part train; it has {', '.join(map(str, parts)) or 'none'}")
    return found


def _as_dataset(rows: Any) -> Dataset:
    import datasets

    if isinstance(rows, datasets.Dataset):
        return rows
    if isinstance(rows, list):
        return datasets.Dataset.from_list(rows)
    raise DataError(
        f"a {type(rows).__name__} is no data to read rows from: give a path, a datasets.Dataset or a list of rows"
    )


def _is_on_hub(name: str) -> bool:
    """Whether only the hub can have it: `org/name`, nothing here of that name, nor a folder `org`."""
    is_name = _HUB_NAME.fullmatch(name) and Path(name).suffix.lower() not in ENDINGS
    return bool(is_name) and not os.path.exists(name) and not os.path.exists(Path(name).parent)


def _from_hub(name: str, evaluation: bool) -> dict[str, Dataset]:
    import datasets

    try:
        parts = datasets.load_dataset(*name.split(":"))
    except Exception as error:  # the hub client raises a dozen kinds; the way out is the same for all
        raise DataError(
            f"there is no file or folder {name!r} here, and it could not be loaded from the hub: {error}"
        ) from error
    return _by_part(parts, name, evaluation)


def _names(columns: str | Sequence[str] | None) -> Sequence[str] | None:
    return [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns


def _named(source: Source) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the data"


def _same(data: Source, dev: Source) -> bool:
    paths = [os.path.realpath(os.path.expanduser(one)) for one in (data, dev) if isinstance(one, (str, os.PathLike))]
    return data is dev or (len(paths) == 2 and paths[0] == paths[1] and not os.path.isdir(paths[0]))


def _sampled(rows: Dataset, size: int | None) -> Dataset:
    return rows if size is None or size >= len(rows) else rows.select(sample(len(rows), size))

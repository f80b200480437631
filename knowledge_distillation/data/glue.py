"""The GLUE tasks: what each looks like, and how to read one from the hub or from GLUE's own TSV files.

Source: Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, 2019.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, nearest
from .subsets import check_counts, sample

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_HUB_NAME = "nyu-mll/glue"
_PLAIN_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {
    "train": "train.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
# The corpus as Microsoft ships it, before GLUE cut a dev set out of its train file.
_MSR_FILES = {"train": "msr_paraphrase_train.txt", "validation": "msr_paraphrase_test.txt"}
_COLA_COLUMNS = ["source", "label", "mark", "sentence"]
_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_WITH_F1 = ("accuracy", "f1")


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns and labels as on the hub, and how GLUE's own files name them.

    `label_names` is None for a regression task (scores from 0 to 5). `file_columns` are the file's names of
    `text_columns`. Files write the labels as numbers, or as their names where `labels_are_named`.
    """

    name: str
    folder: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)
    file_columns: tuple[str, ...] = ()
    file_label: str = "label"
    labels_are_named: bool = False

    @property
    def is_regression(self) -> bool:
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        return 1 if self.label_names is None else len(self.label_names)

    @cached_property
    def written_labels(self) -> list[str]:
        """How files write the labels, in the order of their numbers; none of a regression task."""
        names = self.label_names or ()
        return [name if self.labels_are_named else str(number) for number, name in enumerate(names)]

    @property
    def primary_metric(self) -> str:
        """By which the best student is kept."""
        return "f1" if "f1" in self.metrics else self.metrics[0]


GLUE_TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("sst2", "SST-2", ("sentence",), ("negative", "positive")),
        GlueTask(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            _WITH_F1,
            file_label="is_duplicate",
        ),
        GlueTask(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            file_columns=_SENTENCES,
            file_label="gold_label",
            labels_are_named=True,
        ),
        GlueTask("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, labels_are_named=True),
        GlueTask("rte", "RTE", _SENTENCES, _ENTAILMENT, labels_are_named=True),
        GlueTask(
            "mrpc",
            "MRPC",
            _SENTENCES,
            ("not_equivalent", "equivalent"),
            _WITH_F1,
            file_columns=("#1 String", "#2 String"),
            file_label="Quality",
        ),
        GlueTask("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        GlueTask("stsb", "STS-B", _SENTENCES, None, ("pearson", "spearmanr"), file_label="score"),
        GlueTask("wnli", "WNLI", _SENTENCES, ("not_entailment", "entailment")),
    )
}


def find_task(name: str) -> GlueTask:
    """The task of this name, as the hub writes it (`sst2`) or as GLUE's folders do (`SST-2`); DataError if none."""
    key = name.lower().replace("-", "")
    if key not in GLUE_TASKS:
        raise DataError(f"no GLUE task {name!r}. Tasks: {', '.join(GLUE_TASKS)}.{nearest(key, GLUE_TASKS)}")
    return GLUE_TASKS[key]


def load_glue(
    task: str,
    data_dir: str | os.PathLike[str] | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    on_broken_row: str = "error",
) -> dict[str, Dataset]:
    """Read one GLUE task.

    Args:
        task: a name of `GLUE_TASKS`.
        data_dir: the GLUE folder (`SST-2/train.tsv` in it) or the task's own folder; without it the environment's
            GLUE_DATA_DIR, and without that the hub.
        max_train_samples: keep a random sample of this many rows, in file order. The sample never depends on the
            training seed, and a smaller one lies within a larger one. None keeps every row.
        max_eval_samples: the same for each validation split; test splits stay whole.
        on_broken_row: "error", or "skip" to leave out rows of a local file that do not fit, with a logged count.
    Returns:
        "train", "validation" and, where there is one, "test"; mnli has "validation_matched", "validation_mismatched"
        (and tests alike) with "validation" standing for the matched one. Columns: the task's `text_columns`, `label`
        (-1 where a test split has none) and `idx`, the row's number in its file from 0.
    Raises:
        DataError: unknown task, missing folder, file or column, empty file, or a row that does not fit.
        ConfigError: an argument out of range.
    """
    glue_task = find_task(task)
    if on_broken_row not in ("error", "skip"):
        raise ConfigError(f'on_broken_row is {on_broken_row!r}; it can be "error" or "skip"')
    check_counts(max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    data_dir = data_dir or os.environ.get("GLUE_DATA_DIR") or None
    splits = _from_hub(glue_task) if data_dir is None else _from_folder(glue_task, Path(data_dir), on_broken_row)
    limits = {"train": max_train_samples, "validation": max_eval_samples}
    for name, rows in splits.items():
        limit = limits.get(name.split("_")[0])
        splits[name] = rows if limit is None else rows.select(sample(len(rows), limit))
    for split in ("validation", "test"):
        if f"{split}_matched" in splits:
            splits[split] = splits[f"{split}_matched"]
    return splits


def _from_hub(task: GlueTask) -> dict[str, Dataset]:
    import datasets

    try:
        splits = datasets.load_dataset(_HUB_NAME, task.name)
    except Exception as error:  # the hub client raises a dozen kinds; the way out is the same for all
        raise DataError(
            f"could not load {task.name} from the hub ({_HUB_NAME}): {error}. "
            f"To read local files pass data_dir or set GLUE_DATA_DIR to a folder that holds {task.folder}/"
        ) from error
    return {name: rows.select_columns([*task.text_columns, "label", "idx"]) for name, rows in splits.items()}


def _from_folder(task: GlueTask, data_dir: Path, on_broken_row: str) -> dict[str, Dataset]:
    folder = _task_folder(task, Path(os.path.expanduser(data_dir)))
    files = _file_names(task, folder)
    if files is _MSR_FILES:
        logger.warning("%s has no train.tsv: validation is %s, GLUE's test set", folder, files["validation"])
    for split, name in files.items():
        if not (folder / name).is_file() and not split.startswith("test"):
            raise DataError(f"{folder} has no file {name}. {_holds(folder, name)}")
    return {
        split: _read_split(folder / name, task, split, on_broken_row)
        for split, name in files.items()
        if (folder / name).is_file()
    }


def _task_folder(task: GlueTask, data_dir: Path) -> Path:
    if not os.path.isdir(data_dir):
        raise DataError(f"data_dir {data_dir} is not a folder; expected one that holds {task.folder}/")
    for name in (task.folder, task.name):
        if (data_dir / name).is_dir():
            return data_dir / name
    if (data_dir / _file_names(task, data_dir)["train"]).is_file():
        return data_dir
    raise DataError(f"{data_dir} holds neither {task.folder}/ nor train.tsv. {_holds(data_dir, task.folder)}")


def _file_names(task: GlueTask, folder: Path) -> dict[str, str]:
    if task.name == "mnli":
        return _MNLI_FILES
    if task.name == "mrpc" and not (folder / "train.tsv").is_file() and (folder / _MSR_FILES["train"]).is_file():
        return _MSR_FILES
    return _PLAIN_FILES


def _holds(folder: Path, name: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"It holds: {', '.join(names[:12]) or 'nothing'}.{nearest(name, names)}"


class _BrokenRow(Exception):
    """Why one row does not fit: what was found and what was expected."""


def _read_split(path: Path, task: GlueTask, split: str, on_broken_row: str) -> Dataset:
    import datasets

    rows, broken = _rows(path, task, is_test=split.startswith("test"))
    if broken and on_broken_row == "skip":
        logger.warning("%s: skipped %d broken rows; the first is %s", path, len(broken), broken[0])
    elif broken:
        further = len(broken) - 1
        more = f" {further} more broken row{'s follow' if further > 1 else ' follows'}." if further else ""
        raise DataError(f'{path}, {broken[0]}.{more} In Python on_broken_row="skip" leaves such rows out')
    if not rows:
        raise DataError(f"{path} holds no rows" + (f" but {len(broken)} broken ones" if broken else ""))
    label = datasets.Value("float32") if task.label_names is None else datasets.ClassLabel(names=[*task.label_names])
    kinds: dict[str, Any] = {name: datasets.Value("string") for name in task.text_columns}
    kinds |= {"label": label, "idx": datasets.Value("int32")}
    by_column = dict(zip(kinds, zip(*rows, strict=True), strict=True))
    return datasets.Dataset.from_dict(by_column, features=datasets.Features(kinds))


def _rows(path: Path, task: GlueTask, is_test: bool) -> tuple[list[list[Any]], list[str]]:
    """Texts, label and number of each row that fits; and what is wrong with each of the others."""
    # Not by a reader of CSV: it would fill up rows that are too short, and could not say which line is broken.
    # Split at "\n" alone: text may hold what Python's text mode and str.splitlines take for line ends.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty")
    headless = task.name == "cola" and not is_test
    columns, first = (_COLA_COLUMNS, 0) if headless else (_header(path, lines[0], task, is_test), 1)
    rows, broken = [], []
    for index, line in enumerate(lines[first:]):
        try:
            rows.append([*_values(line, columns, task), index])
        except _BrokenRow as problem:
            broken.append(f"line {index + first + 1}: {problem}")
    return rows, broken


def _header(path: Path, line: bytes, task: GlueTask, is_test: bool) -> list[str]:
    try:
        header = line.removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: the header is not UTF-8 ({error})") from None
    for name in [*(task.file_columns or task.text_columns), *([] if is_test else [task.file_label])]:
        if name not in header:
            names = ", ".join(_show(column) for column in header[:16])
            raise DataError(f"{path} has no column {name!r}. Its first line names: {names}.{nearest(name, header)}")
    return header


def _values(line: bytes, columns: list[str], task: GlueTask) -> list[Any]:
    """The texts and the label of a row; the label is -1, the hub's mark, where the file has none."""
    try:
        values = line.removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise _BrokenRow(f"found byte 0x{line[error.start]:02x} at position {error.start}, expected UTF-8") from None
    if len(values) != len(columns):
        count = f"{len(values)} column" + "s" * (len(values) != 1)
        raise _BrokenRow(f"found {count}, expected {len(columns)} ({', '.join(columns)})")
    texts = [values[columns.index(name)] for name in task.file_columns or task.text_columns]
    for name, text in zip(task.text_columns, texts, strict=True):
        if not text.strip():
            raise _BrokenRow(f"found an empty {name}, expected text")
    has_label = task.file_label in columns
    return [*texts, _label(values[columns.index(task.file_label)], task) if has_label else -1]


def _label(text: str, task: GlueTask) -> float:
    if text in task.written_labels:
        return task.written_labels.index(text)
    expected = f"one of {', '.join(task.written_labels)}"
    if task.is_regression:
        try:
            if 0.0 <= float(text) <= 5.0:
                return float(text)
        except ValueError:
            pass
        expected = "a number from 0 to 5"
    raise _BrokenRow(f"found {task.file_label} {_show(text)}, expected {expected}")


def _show(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

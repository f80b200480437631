"""The GLUE tasks: what each looks like, and how to read one from the hub or from GLUE's own TSV files.

Source: Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, 2019.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_HUB_NAME = "nyu-mll/glue"
_SAMPLE_SEED = 0
_PLAIN_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {
    "train": "train.tsv",
    **{f"validation_{genre}": f"dev_{genre}.tsv" for genre in ("matched", "mismatched")},
    **{f"test_{genre}": f"test_{genre}.tsv" for genre in ("matched", "mismatched")},
}
# The corpus as Microsoft ships it, before GLUE cut a dev set out of its train file.
_MSR_FILES = {"train": "msr_paraphrase_train.txt", "validation": "msr_paraphrase_test.txt"}
_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns and labels as on the hub, and how GLUE's own files name them.

    `label_names` is None for a regression task (scores from 0 to 5). `file_columns` are the file's names of
    `text_columns`. Files write the labels as numbers, or as their names where `labels_are_named`.
    """

    name: str
    text_columns: tuple[str, ...]
    num_labels: int
    metrics: tuple[str, ...]
    primary_metric: str
    label_names: tuple[str, ...] | None
    folder: str
    file_columns: tuple[str, ...] = ()
    file_label: str = "label"
    labels_are_named: bool = False

    @property
    def is_regression(self) -> bool:
        return self.label_names is None


GLUE_TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("sst2", ("sentence",), 2, ("accuracy",), "accuracy", ("negative", "positive"), "SST-2"),
        GlueTask(
            "qqp",
            _QUESTIONS,
            2,
            ("accuracy", "f1"),
            "f1",
            ("not_duplicate", "duplicate"),
            "QQP",
            file_label="is_duplicate",
        ),
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            3,
            ("accuracy",),
            "accuracy",
            _NLI,
            "MNLI",
            file_columns=_SENTENCES,
            file_label="gold_label",
            labels_are_named=True,
        ),
        GlueTask(
            "qnli", ("question", "sentence"), 2, ("accuracy",), "accuracy", _ENTAILMENT, "QNLI", labels_are_named=True
        ),
        GlueTask("rte", _SENTENCES, 2, ("accuracy",), "accuracy", _ENTAILMENT, "RTE", labels_are_named=True),
        GlueTask(
            "mrpc",
            _SENTENCES,
            2,
            ("accuracy", "f1"),
            "f1",
            ("not_equivalent", "equivalent"),
            "MRPC",
            file_columns=("#1 String", "#2 String"),
            file_label="Quality",
        ),
        GlueTask(
            "cola",
            ("sentence",),
            2,
            ("matthews_correlation",),
            "matthews_correlation",
            ("unacceptable", "acceptable"),
            "CoLA",
        ),
        GlueTask("stsb", _SENTENCES, 1, ("pearson", "spearmanr"), "pearson", None, "STS-B", file_label="score"),
        GlueTask("wnli", _SENTENCES, 2, ("accuracy",), "accuracy", ("not_entailment", "entailment"), "WNLI"),
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
    found = find_task(task)
    _check_arguments(on_broken_row, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    data_dir = data_dir or os.environ.get("GLUE_DATA_DIR") or None
    splits = _from_hub(found) if data_dir is None else _from_folder(found, Path(data_dir), on_broken_row)
    limits = {"train": max_train_samples, "validation": max_eval_samples}
    splits = {name: _sample(rows, limits.get(name.split("_")[0])) for name, rows in splits.items()}
    for split in ("validation", "test"):
        if f"{split}_matched" in splits:
            splits[split] = splits[f"{split}_matched"]
    return splits


def _check_arguments(on_broken_row: str, **limits: int | None) -> None:
    if on_broken_row not in ("error", "skip"):
        raise ConfigError(f'on_broken_row is {on_broken_row!r}; it can be "error" or "skip"')
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}; it must be at least 1, or None for every row")


def _sample(rows: Dataset, size: int | None) -> Dataset:
    if size is None or size >= len(rows):
        return rows
    order = np.random.default_rng(_SAMPLE_SEED).permutation(len(rows))
    return rows.select(np.sort(order[:size]))


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
    folder = _task_folder(task, data_dir.expanduser())
    files = _file_names(task, folder)
    if files is _MSR_FILES:
        logger.warning("%s has no train.tsv: validation is %s, GLUE's test set", folder, files["validation"])
    paths = {split: folder / name for split, name in files.items()}
    for split, path in paths.items():
        if not path.is_file() and not split.startswith("test"):
            raise DataError(f"{folder} has no file {path.name}. {_holds(folder, path.name)}")
    return {split: _read_split(path, task, split, on_broken_row) for split, path in paths.items() if path.is_file()}


def _task_folder(task: GlueTask, data_dir: Path) -> Path:
    if not data_dir.is_dir():
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


def _holds(folder: Path, wanted: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"It holds: {', '.join(names[:12]) or 'nothing'}.{nearest(wanted, names)}"


class _BrokenRow(Exception):
    """Why one row does not fit: what was found and what was expected."""


def _read_split(path: Path, task: GlueTask, split: str, on_broken_row: str) -> Dataset:
    import datasets

    # Split at "\n" alone: text may hold characters that Python's text mode and str.splitlines take for line ends.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty")
    columns, first = _columns(lines, path, task, split)
    parse_label = _label_parser(task, columns)
    text_positions = [columns[name] for name in task.file_columns or task.text_columns]

    rows: list[tuple[Any, ...]] = []
    broken: list[tuple[int, str]] = []
    for index, line in enumerate(lines[first:]):
        try:
            fields = _fields(line, columns)
            rows.append((*_texts(fields, text_positions, task), parse_label(fields), index))
        except _BrokenRow as problem:
            broken.append((index + first + 1, str(problem)))
    _report_broken(path, broken, on_broken_row)
    if not rows:
        raise DataError(f"{path} holds no rows" + (f" but {len(broken)} broken ones" if broken else ""))

    label = datasets.Value("float32") if task.label_names is None else datasets.ClassLabel(names=[*task.label_names])
    kinds: dict[str, Any] = {name: datasets.Value("string") for name in task.text_columns}
    kinds |= {"label": label, "idx": datasets.Value("int32")}
    by_column = dict(zip(kinds, zip(*rows, strict=True), strict=True))
    return datasets.Dataset.from_dict(by_column, features=datasets.Features(kinds))


def _columns(lines: list[bytes], path: Path, task: GlueTask, split: str) -> tuple[dict[str, int], int]:
    """Where each column of the file stands, and the index of the first line with data."""
    is_test = split.startswith("test")
    if task.name == "cola" and not is_test:
        return {name: position for position, name in enumerate(_COLA_COLUMNS)}, 0
    try:
        header = lines[0].removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: the header is not UTF-8 ({error})") from None
    needed = [*(task.file_columns or task.text_columns), *([] if is_test else [task.file_label])]
    for name in needed:
        if name not in header:
            shown = ", ".join(_show(column) for column in header[:16])
            raise DataError(f"{path} has no column {name!r}. Its first line names: {shown}.{nearest(name, header)}")
    return {name: position for position, name in enumerate(header)}, 1


def _fields(line: bytes, columns: Mapping[str, int]) -> list[str]:
    try:
        fields = line.removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise _BrokenRow(f"found byte 0x{line[error.start]:02x} at position {error.start}, expected UTF-8") from None
    if len(fields) != len(columns):
        counted = f"{len(fields)} column" + "s" * (len(fields) != 1)
        raise _BrokenRow(f"found {counted}, expected {len(columns)} ({', '.join(columns)})")
    return fields


def _texts(fields: list[str], positions: list[int], task: GlueTask) -> list[str]:
    texts = [fields[position] for position in positions]
    for name, text in zip(task.text_columns, texts, strict=True):
        if not text.strip():
            raise _BrokenRow(f"found an empty {name}, expected text")
    return texts


def _label_parser(task: GlueTask, columns: Mapping[str, int]) -> Callable[[list[str]], float]:
    """How a row's label becomes a number; -1, the hub's mark, where the file has none."""
    if task.file_label not in columns:
        return lambda fields: -1
    position = columns[task.file_label]
    if task.label_names is None:
        return lambda fields: _score(fields[position], task.file_label)
    written = task.label_names if task.labels_are_named else [str(number) for number in range(task.num_labels)]
    numbers = {text: number for number, text in enumerate(written)}

    def parse(fields: list[str]) -> int:
        text = fields[position]
        if text not in numbers:
            raise _BrokenRow(f"found {task.file_label} {_show(text)}, expected one of {', '.join(written)}")
        return numbers[text]

    return parse


def _score(text: str, column: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0.0 <= score <= 5.0:
        raise _BrokenRow(f"found {column} {_show(text)}, expected a number from 0 to 5")
    return score


def _report_broken(path: Path, broken: list[tuple[int, str]], on_broken_row: str) -> None:
    if not broken:
        return
    line, problem = broken[0]
    if on_broken_row == "skip":
        logger.warning("%s: skipped %d broken rows; the first is line %d: %s", path, len(broken), line, problem)
        return
    more = f" {len(broken) - 1} more broken rows follow." if len(broken) > 1 else ""
    raise DataError(f'{path}, line {line}: {problem}.{more} In Python on_broken_row="skip" leaves such rows out')


def _show(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

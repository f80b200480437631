"""A folder of pictures: a folder for each class, or files named `label_number.jpg`; split already, or not yet."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, nearest
from .pictures import ImageSplit
from .subsets import held_out

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "evaluation"),
}
_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_FLAT = re.compile(r"(\d+)_.+")
_HELD_OUT = 10  # one picture in so many, where there is no validation part
_LAYOUTS = "a folder of pictures for each class, or files named label_number.jpg"

ByClass = dict[str, list[Path]]


def list_folder(root: Path) -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    """The splits of a folder, `train` and `validation` and where there is one `test`; and the names of the classes.

    Classes are those of the training part, in the order of their names, or of their numbers where all are numbers.
    Without a validation part the test part takes its place, and without both a tenth of each class.

    Raises:
        DataError: there are no pictures, a class is missing in a part, or a file's name says no label or a wrong one.
    """
    if not root.is_dir():
        raise DataError(f"data_dir {root} is not a folder; expected one of pictures: {_LAYOUTS}")
    folders = {split: folder for split, names in SPLITS.items() if (folder := _split_folder(root, names))}
    if folders and "train" not in folders:
        raise DataError(f"{root} holds {', '.join(f.name for f in folders.values())} and no folder train")
    folders = folders or {"train": root}
    listed = {split: _by_class(folder) for split, folder in folders.items()}
    classes = _classes(folders["train"], listed["train"])
    for split, folder in folders.items():
        _check_classes(folder, listed[split], classes)
    parts = {split: _part(pictures, classes) for split, pictures in listed.items()}
    if "test" in parts:
        parts.setdefault("validation", parts["test"])
    if "validation" not in parts:
        parts["train"], parts["validation"] = _divided(parts["train"], root)
    return parts, classes


def holds_pictures(path: str) -> bool:
    """Whether a path is a folder with pictures in it, not deeper than splits and classes lie."""
    root = Path(os.path.expanduser(path))
    depths = ("*", "*/*", "*/*/*")
    return os.path.isdir(root) and any(one.suffix.lower() in _ENDINGS for depth in depths for one in root.glob(depth))


def _split_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in names), None)


def _by_class(folder: Path) -> ByClass:
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if classes:
        by_class = {path.name: sorted(p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS) for path in classes}
        for name, pictures in by_class.items():
            if not pictures:
                raise DataError(f"class folder {folder / name} holds no pictures ({', '.join(sorted(_ENDINGS))})")
        return by_class
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS]
    if not pictures:
        content = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} holds no pictures. Expected: {_LAYOUTS}. It holds: {content}")
    by_class = {}
    for path in pictures:
        label = _FLAT.fullmatch(path.stem)
        if label is None:
            raise DataError(f"{path}: its name says no label; expected label_number.jpg, such as 3_120.jpg")
        by_class.setdefault(str(int(label[1])), []).append(path)
    return by_class


def _is_flat(by_class: ByClass, folder: Path) -> bool:
    return next(iter(by_class.values()))[0].parent == folder


def _classes(folder: Path, by_class: ByClass) -> tuple[str, ...]:
    numbered = all(name.isdigit() for name in by_class)
    classes = sorted(by_class, key=lambda name: (int(name), name) if numbered else (0, name))
    if len(classes) < 2:
        raise DataError(f"{folder} holds pictures of one class ({classes[0]}); two or more are needed")
    if _is_flat(by_class, folder):
        missing = [str(number) for number in range(int(classes[-1]) + 1) if str(number) not in by_class]
        if missing:
            numbers = ", ".join(missing[:8])
            raise DataError(f"{folder}: labels go from 0 to {classes[-1]}, and no picture has label {numbers}")
    return tuple(classes)


def _check_classes(folder: Path, by_class: ByClass, classes: Sequence[str]) -> None:
    """A part of a data set has the classes of its training part; one of flat files may lack some."""
    unknown = [name for name in by_class if name not in classes]
    missing = [name for name in classes if name not in by_class]
    if _is_flat(by_class, folder):
        if unknown:
            path, last = by_class[unknown[0]][0], len(classes) - 1
            raise DataError(f"{path}: label {unknown[0]} is out of range: the training part has 0 to {last}")
    elif missing:
        near = nearest(missing[0], unknown)
        raise DataError(f"class folder {missing[0]} is missing in {folder}, and the training part has it.{near}")
    elif unknown:
        near = nearest(unknown[0], classes)
        raise DataError(f"class folder {folder / unknown[0]} is of no class of the training part.{near}")


def _part(by_class: ByClass, classes: Sequence[str]) -> ImageSplit:
    pairs = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, ())]
    return ImageSplit([path for path, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64))


def _divided(whole: ImageSplit, root: Path) -> tuple[ImageSplit, ImageSplit]:
    validation_rows, train_rows = held_out(whole.labels, _HELD_OUT)
    if not len(validation_rows):
        raise DataError(
            f"{root} holds too few pictures of each class to hold some out: give a folder val beside train"
        )
    parts = (
        ImageSplit([whole.sources[i] for i in rows], whole.labels[rows]) for rows in (train_rows, validation_rows)
    )
    return next(parts), next(parts)

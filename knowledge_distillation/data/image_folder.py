"""A folder of pictures: a folder for each class, or files named `label_number.jpg`; split already, or not yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, nearest

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "evaluation"),
}
_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_FLAT = re.compile(r"(\d+)_.+")
_HELD_OUT = 10  # one picture in so many, where there is no validation part
_LAYOUTS = "a folder of pictures for each class, or files named label_number.jpg"


@dataclass(frozen=True)
class Listing:
    """The files of one split and their labels."""

    paths: Sequence[Path]
    labels: npt.NDArray[np.int64]


def list_folder(root: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """The splits of a folder, `train` and `validation` and where there is one `test`; and the names of the classes.

    Classes are those of the training part, in the order of their names, or of their numbers where all are numbers.
    Without a validation part the test part takes its place, and without both a tenth of each class.

    Raises:
        DataError: there are no pictures, a class is missing in a part, or a file's name says no label or a wrong one.
    """
    if not root.is_dir():
        raise DataError(f"data_dir {root} is not a folder; expected one of pictures: {_LAYOUTS}")
    folders = {split: found for split, names in SPLITS.items() if (found := _split_folder(root, names)) is not None}
    if folders and "train" not in folders:
        raise DataError(f"{root} holds {', '.join(f.name for f in folders.values())} and no folder train")
    listed = {split: _listed(folder) for split, folder in (folders or {"train": root}).items()}
    classes = _classes(folders.get("train", root), listed["train"])
    known = {name: number for number, name in enumerate(classes)}
    for split, folder in folders.items():
        _check_classes(folder, listed[split], known)
    splits = {split: _numbered(pictures, known) for split, pictures in listed.items()}
    if "validation" not in splits:
        if "test" in splits:
            splits["validation"] = splits["test"]
        else:
            splits["train"], splits["validation"] = _divided(splits["train"], root)
    return splits, classes


def _split_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in names), None)


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Class -> its pictures."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if inner:
        listed = {path.name: sorted(p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS) for path in inner}
        empty = [name for name, pictures in listed.items() if not pictures]
        if empty:
            raise DataError(f"class folder {folder / empty[0]} holds no pictures ({', '.join(sorted(_ENDINGS))})")
        return listed
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS]
    if not pictures:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} holds no pictures. Expected: {_LAYOUTS}. It holds: {held}")
    listed = {}
    for path in pictures:
        label = _FLAT.fullmatch(path.stem)
        if label is None:
            raise DataError(f"{path}: its name says no label; expected label_number.jpg, such as 3_120.jpg")
        listed.setdefault(str(int(label[1])), []).append(path)
    return listed


def _is_flat(listed: dict[str, list[Path]], folder: Path) -> bool:
    return next(iter(listed.values()))[0].parent == folder


def _classes(folder: Path, listed: dict[str, list[Path]]) -> tuple[str, ...]:
    numbers = all(name.isdigit() for name in listed)
    classes = sorted(listed, key=lambda name: (int(name), name) if numbers else (0, name))
    if len(classes) < 2:
        raise DataError(f"{folder} holds pictures of one class ({classes[0]}); two or more are needed")
    if _is_flat(listed, folder):
        missing = [str(number) for number in range(int(classes[-1]) + 1) if str(number) not in listed]
        if missing:
            raise DataError(
                f"{folder}: labels go from 0 to {classes[-1]}, and no picture has label {', '.join(missing[:8])}"
            )
    return tuple(classes)


def _check_classes(folder: Path, listed: dict[str, list[Path]], known: dict[str, int]) -> None:
    """A part of a data set has the classes of its training part."""
    unknown = [name for name in listed if name not in known]
    if _is_flat(listed, folder):
        if unknown:
            path = listed[unknown[0]][0]
            raise DataError(f"{path}: label {unknown[0]} is out of range: the training part has 0 to {len(known) - 1}")
        return
    missing = [name for name in known if name not in listed]
    if missing:
        raise DataError(
            f"class folder {missing[0]} is missing in {folder}, and the training part has it."
            f"{nearest(missing[0], unknown)}"
        )
    if unknown:
        raise DataError(
            f"class folder {folder / unknown[0]} is of no class of the training part.{nearest(unknown[0], known)}"
        )


def _numbered(listed: dict[str, list[Path]], known: dict[str, int]) -> Listing:
    pairs = [(path, known[name]) for name in sorted(listed, key=known.__getitem__) for path in listed[name]]
    return Listing([path for path, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64))


def _divided(whole: Listing, root: Path) -> tuple[Listing, Listing]:
    held, kept = held_out(whole.labels, _HELD_OUT)
    if not len(held):
        raise DataError(
            f"{root} holds too few pictures of each class to hold some out: give a folder val beside train"
        )
    parts = (Listing([whole.paths[i] for i in numbers], whole.labels[numbers]) for numbers in (kept, held))
    return next(parts), next(parts)


def held_out(labels: npt.NDArray[np.integer], one_in: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """A fixed random part of each class, one in so many but at least one of two or more; and the rest."""
    generator = np.random.default_rng(0)
    held = []
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        held.append(mine[: max(1, len(mine) // one_in) if len(mine) > 1 else 0])
    taken = np.sort(np.concatenate(held))
    return taken, np.setdiff1d(np.arange(len(labels)), taken)

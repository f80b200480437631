"""Image tasks: what each looks like, and how to read one from the hub, a local folder, or a package.

Sources: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 (CIFAR); Darlow et al., CINIC-10 Is
Not ImageNet or CIFAR-10, 2018; Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015; Alpaydin
and Kaynak, Cascading Classifiers, 1998 (the digits that come with scikit-learn).
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, nearest
from .augmentation import Augmentation
from .image_folder import list_folder
from .image_format import ImageFormat
from .pictures import ImageRows, ImageSplit, mean_and_deviation, need_pillow
from .subsets import check_counts, held_out, sample

FOLDER, DIGITS = "image_folder", "digits"
LARGEST_BY_ITSELF = 224  # pixels a side that a folder's pictures get where nobody says
_PACKED = ("jpeg", "offsets", "labels")


@dataclass(frozen=True)
class ImageTask:
    """One task: where it is on the hub, and what is known of its pictures.

    `num_labels`, `size`, `mean` and `std` are None where they depend on the folder. `columns` are those of picture and
    label on the hub, `evaluated` the split of the hub that validation is.
    """

    name: str
    num_labels: int | None
    size: int | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int = 3
    hub: str = ""
    columns: tuple[str, str] = ("image", "label")
    evaluated: str = "validation"

    def augmentation(self, size: int) -> Augmentation | None:
        """That of training pictures where a recipe says nothing: shifts by an eighth of the size, and mirroring."""
        return None if self.name == DIGITS else Augmentation(padding=size // 8)


# Mean and deviation of each channel.
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_CINIC10 = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

IMAGE_TASKS: dict[str, ImageTask] = {
    task.name: task
    for task in (
        ImageTask("cifar10", 10, 32, *_CIFAR10, hub="uoft-cs/cifar10", columns=("img", "label"), evaluated="test"),
        ImageTask(
            "cifar100", 100, 32, *_CIFAR100, hub="uoft-cs/cifar100", columns=("img", "fine_label"), evaluated="test"
        ),
        ImageTask("cinic10", 10, 32, *_CINIC10, hub="flwrlabs/cinic10"),
        ImageTask("imagenet", 1000, 224, *_IMAGENET, hub="ILSVRC/imagenet-1k"),
        ImageTask(DIGITS, 10, 8, channels=1),
        ImageTask(FOLDER, None, None),
    )
}


def find_image_task(name: str) -> ImageTask:
    """The task of this name; DataError with the nearest if there is none."""
    if name not in IMAGE_TASKS:
        raise DataError(f"no image task {name!r}. Tasks: {', '.join(IMAGE_TASKS)}.{nearest(name, IMAGE_TASKS)}")
    return IMAGE_TASKS[name]


def load_images(
    task: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    augment: Any = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> dict[str, ImageRows]:
    """Read one image task.

    Args:
        task: a name of `IMAGE_TASKS`.
        data_dir: a folder of pictures as `list_folder` takes it, or one with `TASK_jpeg.npz`; either may lie in a
            folder of the task's name. Without it the environment's IMAGE_DATA_DIR, and without that the hub.
            `image_folder` needs it, `digits` has none.
        image_size: pixels a side; None for the task's own, of a folder that of its first picture, at most 224.
        augment: of training pictures; `Augmentation.parse` says what it may be.
        max_train_samples, max_eval_samples: keep a fixed random part of the pictures.
        mean, std: of each channel, in place of the task's own.
    Returns:
        "train", "validation" and, of a folder that has it, "test". CIFAR's validation is its test set.
    Raises:
        DataError: unknown task, missing folder or class, a broken picture, a label out of range, or the hub fails.
        ConfigError: an argument out of range, or Pillow or scikit-learn is missing.
    """
    image_task = find_image_task(task)
    check_counts(image_size=image_size, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    if mean and std and not (len(mean) == len(std) == image_task.channels and min(std) > 0):
        raise ConfigError(
            f"mean and std of {task} have {image_task.channels} numbers, those of std above 0; found {mean} and {std}"
        )
    need_pillow()
    parts, classes = _parts(image_task, data_dir)
    _check_labels(image_task, parts, classes)
    # Of a folder the size is the shorter side of its first picture.
    size = image_size or image_task.size or parts["train"].read(0, lambda image: min(*image.size, LARGEST_BY_ITSELF))
    limits = {"train": max_train_samples, "validation": max_eval_samples}
    numbers = {split: sample(len(part.labels), limits.get(split)) for split, part in parts.items()}
    if not (mean and std):
        mean, std = image_task.mean, image_task.std
    if not (mean and std):
        mean, std = mean_and_deviation(parts["train"], numbers["train"], size, image_task.channels)
    form = ImageFormat(size, image_task.channels, tuple(mean), tuple(std), classes)
    training = Augmentation.parse(augment, image_task.augmentation(size))
    return {
        split: ImageRows(part, numbers[split], form, training if split == "train" else None)
        for split, part in parts.items()
    }


def _parts(task: ImageTask, data_dir: Any) -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    if task.name == DIGITS:
        return _digits()
    data_dir = data_dir or (None if task.name == FOLDER else os.environ.get("IMAGE_DATA_DIR"))
    if data_dir is None:
        if task.name == FOLDER:
            raise ConfigError("task image_folder needs data_dir: the folder of the pictures")
        return _from_hub(task)
    root = Path(os.path.expanduser(data_dir))
    places = [root, root / task.name]
    for path in [root] if root.suffix == ".npz" else [place / f"{task.name}_jpeg.npz" for place in places]:
        if path.is_file():
            return _from_npz(path)
    return list_folder(next((place for place in reversed(places) if place.is_dir()), root))


def _from_npz(path: Path) -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    """JPEG files end to end: picture i of split S is `S_jpeg[S_offsets[i]:S_offsets[i + 1]]`, its label `S_labels[i]`.

    `class_names` holds the names of the classes; the splits are `train` and `test`.
    """
    names = [f"{split}_{what}" for split in ("train", "test") for what in _PACKED] + ["class_names"]
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in names if key not in archive]
            if missing:
                near = nearest(missing[0], archive.files)
                raise DataError(f"{path} has no array {missing[0]!r}.{near} It holds: {', '.join(archive.files)}")
            arrays = {key: archive[key] for key in names}
    except DataError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no npz archive of plain arrays: {error}") from error
    parts = {}
    for split, name in (("train", "train"), ("validation", "test")):
        jpeg, offsets, labels = (arrays[f"{name}_{what}"] for what in _PACKED)
        steps = np.diff(offsets)
        if len(steps) != len(labels) or (steps <= 0).any() or offsets[0] < 0 or offsets[-1] > len(jpeg):
            raise DataError(
                f"{path}: {name}_offsets cuts {len(jpeg)} bytes of {name}_jpeg into {len(steps)} files for "
                f"{len(labels)} labels; expected rising numbers within the bytes, one more than there are labels"
            )
        files = [jpeg[start:end] for start, end in pairwise(offsets)]
        parts[split] = ImageSplit(files, labels, f"{path}, {name} picture")
    return parts, tuple(map(str, arrays["class_names"]))


def _digits() -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    """1,797 grey digits of 8 x 8 pixels, a fifth of each class held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "task digits comes with scikit-learn: pip install 'knowledge_distillation[vision]'"
        ) from error
    loaded = load_digits()
    grey = (loaded.images * (255 / 16)).round().astype(np.uint8)
    validation_rows, train_rows = held_out(loaded.target, 5)
    parts = {
        split: ImageSplit(grey[rows], loaded.target[rows], "digit")
        for split, rows in (("train", train_rows), ("validation", validation_rows))
    }
    return parts, tuple(map(str, loaded.target_names))


def _from_hub(task: ImageTask) -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    import datasets

    try:
        splits = datasets.load_dataset(task.hub)
    except Exception as error:  # the hub client raises a dozen kinds; the way out is the same for all
        raise DataError(
            f"could not load {task.name} from the hub ({task.hub}): {error}. To read local files pass data_dir or set "
            f"IMAGE_DATA_DIR to a folder of pictures by class, or of {task.name}_jpeg.npz"
        ) from error
    picture, label = task.columns
    parts = {
        split: ImageSplit(splits[name][picture], np.asarray(splits[name][label][:]), f"{task.hub}, {name} row")
        for split, name in (("train", "train"), ("validation", task.evaluated))
    }
    return parts, tuple(splits["train"].features[label].names)


def _check_labels(task: ImageTask, parts: dict[str, ImageSplit], classes: tuple[str, ...]) -> None:
    if task.num_labels is not None and len(classes) != task.num_labels:
        raise DataError(f"{task.name} has {task.num_labels} classes; found {len(classes)}: {', '.join(classes[:12])}")
    for split, part in parts.items():
        if not len(part.labels):
            raise DataError(f"the {split} part of {task.name} holds no pictures")
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= len(classes)))
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{part.title_of(first)}: label {part.labels[first]} is out of range: there are {len(classes)} "
                f"classes, 0 to {len(classes) - 1}"
            )

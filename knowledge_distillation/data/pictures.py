"""Pictures as rows of a data set: what form they have, how they are decoded, and how they become a batch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError
from .augmentation import Augmentation, ImageCollator

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT_IN_MEMORY = 1 << 30  # bytes of decoded pictures; more are decoded each time they are asked for
_MEASURED = 2000  # pictures of which mean and deviation are taken
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageFormat:
    """The form in which a task's pictures reach a model, and its classes.

    Args:
        size: height and width in pixels.
        channels: 3 for RGB, 1 for grey.
        mean, std: of each channel, of values in [0, 1]: what is subtracted, and what is divided by.
        classes: their names, in the order of the labels.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """The fields of a model's config that follow from it, under the names that most families have."""
        names = {} if all(name.isdigit() for name in self.classes) else dict(enumerate(self.classes))
        labels = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if names else {}
        return {"image_size": self.size, "num_channels": self.channels, "num_labels": len(self.classes), **labels}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write it beside a model, for `AutoImageProcessor.from_pretrained`."""
        content = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": self.channels == 3,
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": 2,
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        Path(directory, _PREPROCESSOR).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def saved_format(model: Any) -> dict[str, Any]:
    """`size`, `mean` and `std` that lie beside a model, in a directory or on the hub, as far as they are there."""
    path = _preprocessor_of(model) if isinstance(model, (str, Path)) else None
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    size = content.get("crop_size") or content.get("size")
    size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    values = {"size": size, "mean": content.get("image_mean"), "std": content.get("image_std")}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if value}


def is_local(name: str) -> bool:
    """Whether a model's name is that of a directory, and not one on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _preprocessor_of(model: str | Path) -> Path | None:
    if is_local(str(model)):
        return Path(model).expanduser() / _PREPROCESSOR
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(str(model), _PREPROCESSOR)))
    except (OSError, ValueError):  # it has none; or the hub fails, which is said where the model is loaded
        return None


@dataclass(frozen=True)
class Part:
    """One split before it is decoded.

    Args:
        sources: of each picture its path, the bytes of its file as an array, its pixels, or Pillow's own image.
        labels: (pictures,) the numbers of their classes.
        name: how messages call a picture, before its number; paths name themselves.
    """

    sources: Sequence[Any]
    labels: npt.NDArray[np.integer]
    name: str = ""

    def called(self, number: int) -> str:
        """How messages call a picture."""
        return f"{self.name} {number}" if self.name else str(self.sources[number])

    def read(self, number: int, look: Callable[[Image], Any]) -> Any:
        """What `look` makes of a picture.

        Raises:
            DataError: it is none, or broken.
        """
        try:
            with _opened(self.sources[number]) as image:
                return look(image)
        except Exception as error:  # a broken file has errors of its own in every format
            raise DataError(f"{self.called(number)} cannot be read as a picture: {error}") from error


def _opened(source: Any) -> Image:
    from PIL import Image

    if isinstance(source, Path):
        return Image.open(source)
    if isinstance(source, np.ndarray):
        return Image.fromarray(source) if source.ndim > 1 else Image.open(io.BytesIO(source.tobytes()))
    return source


class Pictures:
    """Pictures that are decoded when they are asked for: a sequence of (size, size, channels) arrays of uint8.

    Args:
        part: where they are.
        numbers: those of the part's pictures that are meant.
        size: the shorter side is brought to it, and the middle is cut out.
    """

    def __init__(self, part: Part, numbers: npt.NDArray[np.integer], size: int, channels: int) -> None:
        self.part, self.numbers, self.size, self.channels = part, numbers, size, channels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        return self.part.read(int(self.numbers[index]), lambda image: squared(image, self.size, self.channels))

    @property
    def labels(self) -> npt.NDArray[np.integer]:
        return self.part.labels[self.numbers]

    @property
    def nbytes(self) -> int:
        return len(self) * self.size * self.size * self.channels


def squared(image: Image, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """A picture as (size, size, channels): its shorter side resized, its middle cut out."""
    from PIL.Image import Resampling

    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, int(side * scale)) for side in image.size)
        image = image.resize((width, height), Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


class ImageRows(Dataset[Any]):
    """Rows of `pixel_values`, (height, width, channels) of uint8, and `labels`. Its `collator` makes batches of them:
    `pixel_values` (batch, channels, height, width), normalised, and with an augmentation changed at random.

    Up to 1 GiB of pictures is decoded at first use and kept; of more, each is decoded whenever it is asked for.
    """

    def __init__(self, pictures: Pictures, form: ImageFormat, augmentation: Augmentation | None = None) -> None:
        self.pictures, self.labels, self.form, self.augmentation = pictures, pictures.labels, form, augmentation

    @property
    def collator(self) -> ImageCollator:
        return ImageCollator(self.form.mean, self.form.std, self.augmentation)

    @cached_property
    def images(self) -> Any:
        if self.pictures.nbytes > KEPT_IN_MEMORY:
            return self.pictures
        return np.stack([self.pictures[i] for i in range(len(self.pictures))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def measured(pictures: Pictures) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in [0, 1], over a fixed part of the pictures."""
    step = max(1, len(pictures) // _MEASURED)
    values = np.stack([pictures[i] for i in range(0, len(pictures), step)]).reshape(-1, pictures.channels) / 255.0
    std = np.maximum(values.std(0), 1e-3)
    return tuple(values.mean(0).round(4).tolist()), tuple(std.round(4).tolist())


def need_pillow() -> None:
    """Raise a ConfigError unless Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError("pictures need Pillow: pip install 'knowledge_distillation[vision]'") from error

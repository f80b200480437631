"""Pictures as rows of a data set: how they are decoded, and how they become a batch."""

from __future__ import annotations

import io
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
from .image_format import ImageFormat
from .subsets import Places

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT_IN_MEMORY = 1 << 30  # bytes of decoded pictures; more are decoded each time they are asked for
_MEASURED = 2000  # pictures of which mean and deviation are taken


@dataclass(frozen=True)
class ImageSplit:
    """One split before it is decoded.

    Args:
        sources: of each picture its path, the bytes of its file as an array, its pixels, or Pillow's own image.
        labels: (pictures,) the numbers of their classes.
        name: how messages call a picture, before its number; paths name themselves.
    """

    sources: Sequence[Any]
    labels: npt.NDArray[np.integer]
    name: str = ""

    def title_of(self, number: int) -> str:
        """How messages call a picture."""
        return f"{self.name} {number}" if self.name else str(self.sources[number])

    def pixels(self, number: int, size: int, channels: int) -> npt.NDArray[np.uint8]:
        """One picture as `squared` makes it: (size, size, channels)."""
        return self.read(number, lambda image: squared(image, size, channels))

    def read(self, number: int, look: Callable[[Image], Any]) -> Any:
        """What `look` makes of a picture.

        Raises:
            DataError: it is none, or broken.
        """
        try:
            with _opened(self.sources[number]) as image:
                return look(image)
        except Exception as error:  # a broken file has errors of its own in every format
            raise DataError(f"{self.title_of(number)} cannot be read as a picture: {error}") from error


def _opened(source: Any) -> Image:
    from PIL import Image

    if isinstance(source, Path):
        return Image.open(source)
    if isinstance(source, np.ndarray):
        return Image.fromarray(source) if source.ndim > 1 else Image.open(io.BytesIO(source.tobytes()))
    return source


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

    def __init__(
        self, part: ImageSplit, numbers: Places, form: ImageFormat, augmentation: Augmentation | None = None
    ) -> None:
        self.part, self.numbers, self.form, self.augmentation = part, numbers, form, augmentation
        self.labels = part.labels[numbers]

    @property
    def collator(self) -> ImageCollator:
        return ImageCollator(self.form.mean, self.form.std, self.augmentation)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8] | None:
        """(pictures, height, width, channels); None where they are too many to keep."""
        size = len(self) * self.form.size**2 * self.form.channels
        return None if size > KEPT_IN_MEMORY else np.stack([self._pixels(index) for index in range(len(self))])

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        return self.part.pixels(int(self.numbers[index]), self.form.size, self.form.channels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._pixels(index) if self.images is None else self.images[index]
        return {"pixel_values": pixels, "labels": int(self.labels[index])}


def mean_and_deviation(
    part: ImageSplit, numbers: Places, size: int, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in [0, 1], over a fixed part of the pictures."""
    step = max(1, len(numbers) // _MEASURED)
    pixels = np.stack([part.pixels(int(number), size, channels) for number in numbers[::step]])
    values = pixels.reshape(-1, channels) / 255.0
    std = np.maximum(values.std(0), 1e-3)
    return tuple(values.mean(0).round(4).tolist()), tuple(std.round(4).tolist())


def need_pillow() -> None:
    """Raise a ConfigError unless Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError("pictures need Pillow: pip install 'knowledge_distillation[vision]'") from error

"""Whole batches of pictures as tensors: shifted, mirrored, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.validation import Flag, WholeNotNegative, read, unknown_keys
from ..errors import ConfigError, shown


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are changed at random, each time anew.

    Args:
        padding: pixels by which a picture is shifted at most, up or down and left or right; black comes in.
        flip: mirrored left to right, one time in two.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2, on CIFAR-10.
    """

    padding: WholeNotNegative = 4
    flip: Flag = True

    @classmethod
    def parse(cls, written: Any, default: Augmentation | None) -> Augmentation | None:
        """What a recipe's `augment` says: true, false, a mapping of fields, or None for the default of the task.

        Raises:
            ConfigError: it says something else.
        """
        if written is None:
            return default
        if isinstance(written, bool):
            return (default or cls()) if written else None
        if not isinstance(written, Mapping):
            raise ConfigError(f"augment is true, false or a mapping of padding and flip; found {shown(written)}")
        fields = vars(default or cls())
        unknown = unknown_keys(written, fields, "augment has no {!r}", "It has")
        values = {name: written.get(name, value) for name, value in fields.items()}
        augmentation, wrong = read(cls, values, "augment")
        if unknown or wrong:
            raise ConfigError("; ".join([*unknown, *wrong]))
        return augmentation

    def __call__(self, pixels: Tensor) -> Tensor:
        """(batch, height, width, channels) of any type, changed by torch's own random state."""
        batch, height, width, _ = pixels.shape
        down, right = torch.randint(-self.padding, self.padding + 1, (2, batch, 1))
        rows, columns = torch.arange(height) + down, torch.arange(width) + right
        if self.flip:
            columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
        padded = torch.nn.functional.pad(pixels, (0, 0, *[self.padding] * 4))
        number = torch.arange(batch)[:, None, None]
        return padded[number, (rows + self.padding)[:, :, None], (columns + self.padding)[:, None, :]]


class ImageCollator:
    """Rows of `pixel_values` (height, width, channels) of uint8 into a batch of normalised floats.

    They keep their channels last in memory, which is how convolutions run fastest. All other columns become tensors.

    Args:
        mean, std: of each channel, of values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], augmentation: Augmentation | None = None) -> None:
        self.shift, self.scale = 255 * torch.tensor(mean), 255 * torch.tensor(std)
        self.augmentation = augmentation

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """(batch, channels, height, width) `pixel_values`, and (batch,) of each other column."""
        pixels = torch.from_numpy(np.stack([row["pixel_values"] for row in rows]))
        if self.augmentation is not None:
            pixels = self.augmentation(pixels)
        pixels = pixels.float().sub_(self.shift).div_(self.scale).permute(0, 3, 1, 2)
        others = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "pixel_values"}
        return {"pixel_values": pixels, **others}

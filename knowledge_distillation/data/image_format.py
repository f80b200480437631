"""The form in which pictures reach a model, and the file beside a model that says it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

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
    if path is None or not os.path.isfile(path):
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
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(name)


def _preprocessor_of(model: str | Path) -> Path | None:
    if is_local(str(model)):
        return Path(os.path.expanduser(model)) / _PREPROCESSOR
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(str(model), _PREPROCESSOR)))
    except (OSError, ValueError):  # it has none; or the hub fails, which is said where the model is loaded
        return None

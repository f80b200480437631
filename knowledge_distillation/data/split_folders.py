"""The files of a folder that are the parts of one data set, told by their names."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError, listed
from .image_folder import SPLITS
from .row_files import ENDINGS

_NUMBERED = re.compile(r"-\d+-of-\d+$")  # of several files that are one part


def split_files(folder: Path, evaluation: bool = False) -> dict[str, Path]:
    """The file of each part, `train`, `validation`, `test`; one file alone is `train`, whatever its name.

    Raises:
        DataError: there is no file of rows, none of the training part, or two of one part.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        names = sorted(path.name for path in folder.iterdir())
        raise DataError(
            f"{folder} holds no file of rows ({', '.join(ENDINGS)}), as train.csv and dev.csv. It holds: "
            f"{listed(names, 8) or 'nothing'}"
        )
    parts: dict[str, Path] = {}
    for path in files:
        part = next((part for part, names in SPLITS.items() if path.stem.lower() in names), None)
        if part in parts:
            raise DataError(f"{folder} holds {parts[part].name} and {path.name}, which are one part: name the files")
        if part is not None:
            parts[part] = path
    if not parts and len(files) == 1:
        return {"train": files[0]}
    if "train" not in parts and not (evaluation and parts):
        raise DataError(
            f"{folder} holds {listed([path.name for path in files], 8)}, and no file called train: call the files "
            "train and dev, or name them (--data, --eval)"
        )
    return parts

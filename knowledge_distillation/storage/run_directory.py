"""What an output directory holds, and whose it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint_files import read_json, write_text

_CONTENTS = ("run.json", "history.jsonl", "student", "peers", "checkpoints")
# What may differ between a run and its continuation without making it another run.
_FREE = (
    "num_train_epochs",
    "max_steps",
    "logging_steps",
    "save_total_limit",
    "teacher_cache_limit",
    "report_to",
    "disable_tqdm",
    "overwrite_output_dir",
)


def check_free(output_dir: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """See that `output_dir` may become this run's own; nothing is written.

    Raises:
        CheckpointError: it holds another run, or (resuming) the run's config has changed, with what changed.
    """
    marker = output_dir / "run.json"
    contents = contents_of(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"output_dir {output_dir} is a file; a directory is needed")
    if contents and resume:
        if not marker.exists():
            raise CheckpointError(f"cannot resume {output_dir}: it holds {', '.join(contents)} but no run.json")
        changed = _differences(read_json(marker), json.loads(json.dumps(identity)))
        if changed:
            raise CheckpointError(
                f"cannot resume {output_dir}: this is not the run it holds\n  " + "\n  ".join(changed)
            )
    elif contents and not overwrite:
        raise CheckpointError(
            f"output_dir {output_dir} holds another run ({', '.join(contents)}). Resume it "
            "(resume_from_checkpoint=True, --resume), choose another directory, or set overwrite_output_dir"
        )


def claim(output_dir: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Make `output_dir`, which `check_free` found free, this run's own; what an overwritten run left goes."""
    for name in () if resume else contents_of(output_dir):
        path = output_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "run.json", json.dumps(identity, indent=2))


def contents_of(output_dir: Path) -> list[str]:
    """What of a run a directory has."""
    return [name for name in _CONTENTS if (output_dir / name).exists()]


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            if key not in _FREE and (key in old and key in new or not _may_lack(where, key))
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in _differences(*pair, f"{where}[{i}]")
        ]
    return [] if old == new else [f"{where}: it has {_short(old)}, asked is {_short(new)}"]


def _may_lack(where: str, key: str) -> bool:
    """Whether one of two runs may lack a key: a run from Python has no recipe, another version other settings."""
    return where in ("settings", "run") or key == "recipe"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""What an output directory holds, and whose it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, shown
from .checkpoint_files import read_json, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


def as_place(written: str | os.PathLike[str], what: str = "output_dir") -> Path:
    """A directory as it was written; `~` is the home directory.

    Raises:
        ConfigError: it is no path.
    """
    path = os.fspath(written) if isinstance(written, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ConfigError(f"{what} is the path of a directory; found {shown(written)}")
    return Path(os.path.expanduser(path))


_HELD: set[int] = set()  # descriptors of the directories that this process has


def take(output_dir: Path) -> Callable[[], None] | None:
    """Have `output_dir` to oneself until the process ends, or until the function that is returned is called.

    The system lets go of it with the process, however that ends; nothing is written. None where there is no such
    directory yet, or the system (Windows, some network disks) locks no directories.

    Raises:
        CheckpointError: another run has it.
    """
    if fcntl is None or not os.path.isdir(output_dir):
        return None
    try:
        descriptor = os.open(output_dir, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"output_dir {output_dir} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise CheckpointError(
            f"output_dir {output_dir} is in use: another run is at it. Wait for its end, or choose another directory"
        ) from None
    _HELD.add(descriptor)

    def release() -> None:
        if descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)

    return release


def _let_go_in_child() -> None:
    """A forked process, such as one that prepares batches, does not keep a directory from the next run."""
    while _HELD:
        os.close(_HELD.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


def check_free(output_dir: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """See that `output_dir` may become this run's own; nothing is written.

    Raises:
        CheckpointError: it holds another run, or (resuming) the run's config has changed, with what changed; or it
            cannot be written, or what `overwrite` would remove is not a run's.
    """
    _check_place(output_dir)
    _check_kinds(output_dir, resume)
    marker = output_dir / "run.json"
    contents = contents_of(output_dir)
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
    elif contents and not marker.is_file():
        raise CheckpointError(
            f"output_dir {output_dir} holds {', '.join(contents)} but no run.json, so no run wrote it and nothing is "
            "removed; choose another directory"
        )
    elif links := [name for name in contents if (output_dir / name).is_symlink()]:
        raise CheckpointError(
            f"output_dir {output_dir}: {output_dir / links[0]} is a link, and what it leads to is not removed; choose "
            "another directory, or take the link out"
        )


def _check_place(output_dir: Path) -> None:
    """See that a directory may be made at a place, or written to."""
    for place in (output_dir, *output_dir.absolute().parents):
        if os.path.isdir(place):
            if not os.access(place, os.W_OK | os.X_OK):
                raise CheckpointError(f"output_dir {output_dir} cannot be written: {place} is read-only")
            return
        if os.path.islink(place):
            raise CheckpointError(f"output_dir {output_dir}: {place} is a link to {os.readlink(place)}, no directory")
        if os.path.lexists(place):
            which = "is a file" if place == output_dir else f"lies below a file, {place}"
            raise CheckpointError(f"output_dir {output_dir} {which}; a directory is needed")


def _check_kinds(output_dir: Path, resume: bool) -> None:
    """See that what a run goes on from are folders and files as a run has them."""
    for name in contents_of(output_dir) if resume else ():
        path, is_file = output_dir / name, "." in name
        if path.is_dir() is is_file:
            raise CheckpointError(f"cannot resume {output_dir}: {path} is no {'file' if is_file else 'directory'}")


def claim(
    output_dir: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool = False
) -> Callable[[], None] | None:
    """Make `output_dir`, which `check_free` found free, this run's own; what an overwritten run left goes.

    Returns what `take` does, where the directory is a new one.
    """
    try:
        fresh = not output_dir.exists()
        output_dir.mkdir(parents=True, exist_ok=True)
        release = take(output_dir) if fresh else None
        if release is not None:  # another run may have been quicker
            try:
                check_free(output_dir, identity, resume, overwrite)
            except CheckpointError:
                release()
                raise
        for name in () if resume else contents_of(output_dir):
            path = output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        mark(output_dir, identity)
    except OSError as error:
        raise CheckpointError(f"output_dir {output_dir} cannot be written: {error.strerror}") from error
    return release


def mark(output_dir: Path, identity: Mapping[str, Any]) -> None:
    """Say of which run a directory is."""
    write_text(output_dir / "run.json", json.dumps(identity, indent=2))


def contents_of(output_dir: Path) -> list[str]:
    """What of a run a directory has."""
    return [name for name in _CONTENTS if os.path.lexists(output_dir / name)]


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

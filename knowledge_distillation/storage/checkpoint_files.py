"""What a run leaves on disk: a clean student directory, and everything else beside it. Every write is atomic.

output_dir/
  student/        save_pretrained: transformers alone loads it; README.md says what it is
  peers/name/     the same for each peer, at the end of the run
  checkpoints/    step-00000120/{module,optimizer,...}.safetensors and .json: enough to go on exactly
  history.jsonl   one line per log and evaluation
  run.json        what this run is, so that it is not taken for another
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from ..errors import CheckpointError, WriteError
from .readme import README, is_a_persons
from .sentence_folder import write_as_sentence_folder

_STEP = re.compile(r"step-(\d+)")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps something from being written, such as a full disk, is said with its place."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise WriteError(f"{path} cannot be written: {said}. What lay there before is whole") from error


def clear(path: Path) -> None:
    """Take away a folder, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_student(directory: Path, student: nn.Module, processing_class: Any = None, card: str | None = None) -> None:
    """Write a directory that transformers loads; a reader sees the old files or the new ones, each whole.

    Args:
        card: the text of its README.md, unless a person wrote one there.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(directory), replaced_files(directory) as new:
        write: Any = getattr(student, "save_pretrained", None)
        if write is not None:
            write(new)
        else:
            save_model(student, str(new / "model.safetensors"))
        if processing_class is not None and hasattr(processing_class, "save_pretrained"):
            processing_class.save_pretrained(new)
        write_as_sentence_folder(new, getattr(student, "config", None))
        if is_a_persons(directory):
            (new / README).unlink(missing_ok=True)
        elif card is not None:
            (new / README).write_text(card, encoding="utf-8")


@contextmanager
def replaced_files(directory: Path) -> Iterator[Path]:
    """A new folder to write to, whose files come into `directory` at the end, each whole; none where it fails."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    clear(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = directory / path.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = output_dir / "checkpoints"
    if not os.path.isdir(folder):
        return []
    for aside in folder.glob(".step-*.old"):  # a kill came while it was being replaced
        name = folder / aside.name[1 : -len(".old")]
        with suppress(FileNotFoundError):  # or another process was quicker
            shutil.rmtree(aside) if name.exists() else os.replace(aside, name)
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest(folder: Path) -> Path:
    """The checkpoint meant by a run directory (its last one), or by a checkpoint."""
    if _STEP.fullmatch(folder.name):
        return folder
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint (checkpoints/step-…)")
    return found[-1]


def read_student(folder: Path, student: nn.Module) -> None:
    """Load a student's weights from a run directory, a checkpoint or a student directory."""
    read: Any = getattr(type(student), "from_pretrained", None)
    if read is not None and (folder / "model.safetensors").exists():
        with checkpoint_errors(folder, "model"):
            student.load_state_dict(read(folder).state_dict())
    elif (folder / "model.safetensors").exists():
        read_module(folder, "model", student)
    else:
        read_module(latest(folder), "student", student)


class Writer:
    """Collects the parts of one checkpoint in a hidden folder; `commit` gives it its name.

    With several processes the main one writes the shared parts and all write their own random state.
    """

    def __init__(self, output_dir: Path, step: int) -> None:
        self.final = output_dir / "checkpoints" / f"step-{step:08d}"
        self.folder = self.final.with_name(f".{self.final.name}.tmp")

    def begin(self) -> None:
        for leftover in self.folder.parent.glob(".step-*.tmp") if self.folder.parent.exists() else ():
            clear(leftover)
        self.folder.mkdir(parents=True)

    def module(self, name: str, module: nn.Module) -> None:
        save_model(module, str(self.folder / f"{name}.safetensors"))

    def tree(self, name: str, tree: Any) -> None:
        tensors: dict[str, Tensor] = {}
        write_text(self.folder / f"{name}.json", json.dumps(_pack(tree, tensors)))
        save_file(tensors, str(self.folder / f"{name}.safetensors"))

    def commit(self, limit: int) -> Path:
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        aside = self.final.with_name(f".{self.final.name}.old")
        if self.final.exists():
            os.replace(self.final, aside)
        os.replace(self.folder, self.final)
        shutil.rmtree(aside, ignore_errors=True)
        for old in checkpoints(self.final.parent.parent)[:-limit]:
            shutil.rmtree(old)
        return self.final


def read_module(folder: Path, name: str, module: nn.Module) -> None:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {path.name}")
    with checkpoint_errors(folder, name):
        load_model(module, str(path))


def read_tree(folder: Path, name: str) -> Any:
    path = folder / f"{name}.json"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {path.name}")
    tree = read_json(path)
    with checkpoint_errors(folder, name):
        return _unpack(tree, load_file(str(folder / f"{name}.safetensors")))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


@contextmanager
def checkpoint_errors(folder: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong in reading one part of a checkpoint is said to be wrong with it."""
    try:
        yield
    except CheckpointError:
        raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / name}.safetensors cannot be read: {error}") from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {name} does not fit this run: {type(error).__name__}: {error}") from error


def _pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree of plain values and tensors as JSON, its tensors set apart under numbers. No pickle."""
    if isinstance(tree, np.ndarray):
        return {"array": _pack(torch.from_numpy(tree.astype(np.int64)), tensors), "dtype": str(tree.dtype)}
    if isinstance(tree, Tensor):
        key = str(len(tensors))
        tensors[key] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(tree, Mapping):
        return {"map": [[_pack(k, tensors), _pack(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_pack(value, tensors) for value in tree], "tuple": isinstance(tree, tuple)}
    if isinstance(tree, np.generic):
        return tree.item()
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise CheckpointError(f"cannot save a {type(tree).__name__} in a checkpoint")


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "array" in tree:
        return _unpack(tree["array"], tensors).numpy().astype(tree["dtype"])
    if "map" in tree:
        return {_unpack(key, tensors): _unpack(value, tensors) for key, value in tree["map"]}
    values = [_unpack(value, tensors) for value in tree["list"]]
    return tuple(values) if tree["tuple"] else values

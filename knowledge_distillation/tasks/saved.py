"""A saved model as it was saved: with its head, and with its tokenizer or the form of its pictures."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..data.image_format import ImageFormat, is_local, saved_format
from ..errors import ConfigError
from ..models.auto_class import auto_class_of
from ..storage.sentence_folder import MODULES, SentenceFolder, read_sentence_folder

_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def load_saved(name: str) -> tuple[Any, Any]:
    """A model by the class that its config names, in eval mode; and its tokenizer or `ImageFormat`, None without one.

    Args:
        name: a directory, or a name on the hub.

    Raises:
        ConfigError: it is not there, or cannot be loaded.
    """
    import transformers

    where = _place(name)
    try:
        inner, said = _within(where)
        config = transformers.AutoConfig.from_pretrained(inner)
        model = getattr(transformers, auto_class_of(config)).from_pretrained(inner).eval()
        if said is not None:
            said.tell(model.config)
        return model, _processor(inner, model)
    except Exception as error:  # a file that is cut short has errors of its own in every format
        raise ConfigError(f"cannot load {name!r}: {shorten(str(error), 300, placeholder='…')}") from error


def _place(name: str) -> str:
    """The directory of a model, or its name on the hub."""
    if not is_local(name):
        return name
    path = Path(os.path.expanduser(name))
    if not os.path.isdir(path):
        raise ConfigError(f"{name!r}: no such directory")
    if not (path / "config.json").exists() and not (path / MODULES).exists():
        files = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        inner = path / "student"
        hint = f". Nearest: {inner}" if (inner / "config.json").exists() else ""
        raise ConfigError(f"no model in {name!r}: it holds {files}{hint}")
    return str(path)


def _within(where: str) -> tuple[str, SentenceFolder | None]:
    """Where the weights of a model lie, and what a folder of sentence-transformers says beside them."""
    said = read_sentence_folder(Path(where)) if is_local(where) else None
    return (where, None) if said is None else (str(Path(where) / said.transformer), said)


def _processor(where: str, model: Any) -> Any:
    import transformers

    config = model.config
    if getattr(model, "main_input_name", "") == "pixel_values":
        form = saved_format(where)
        if form.keys() < {"size", "mean", "std"}:
            return None
        names = tuple(config.id2label[number] for number in sorted(config.id2label))
        return ImageFormat(form["size"], len(form["mean"]), form["mean"], form["std"], names)
    if is_local(where) and not any((Path(where) / file).exists() for file in _TOKENIZERS):
        return None
    return transformers.AutoTokenizer.from_pretrained(where)

"""Folders of sentence-transformers: which of its modules they hold, read and written without that package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MODULES = "modules.json"
_TRANSFORMER_FILES = ("sentence_bert_config.json",)
_PACKAGE = "sentence_transformers.models"  # where every version of that package finds its modules
_OURS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "weightedmean": "weighted_mean"}
_FLAGS = {  # as all versions read them
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says beside the weights.

    Args:
        transformer: the folder inside it that holds the transformers model; empty for itself.
        pooling: `mean`, `cls`, `last` or `weighted_mean`.
        normalize: whether embeddings are divided by their length.
        max_length: tokens after which text is cut; None where it says none.
    """

    transformer: str
    pooling: str
    normalize: bool
    max_length: int | None = None

    def tell(self, config: Any) -> None:
        """Say it in the config of the model inside, where that does not say it already."""
        if not hasattr(config, "sentence_embedding"):
            said = {"pooling": self.pooling, "normalize": self.normalize, "max_length": self.max_length}
            config.sentence_embedding = said


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """What a folder of sentence-transformers says; None where it is none.

    Raises:
        ConfigError: it has a module, or a pooling, that is none of those that are read.
    """
    if not (folder / MODULES).is_file():
        return None
    transformer, pooling, normalize = "", "mean", False
    for module in _json(folder / MODULES):
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Transformer":
            transformer = path
        elif kind == "Pooling":
            pooling = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        else:
            raise ConfigError(
                f"{folder / MODULES} has a module {kind}: Transformer, Pooling and Normalize are read, so the "
                "embedding would be another one"
            )
    lengths = (_max_length(folder / transformer / name) for name in _TRANSFORMER_FILES)
    return SentenceFolder(transformer, pooling, normalize, next(filter(None, lengths), None))


def write_sentence_folder(folder: Path, said: SentenceFolder, width: int) -> None:
    """Write beside a transformers model what sentence-transformers reads of it.

    Args:
        said: its `transformer` is the folder itself.
        width: of the embeddings.
    """
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if said.normalize:
        kinds.append(("Normalize", "2_Normalize"))
        (folder / "2_Normalize").mkdir(exist_ok=True)
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_PACKAGE}.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    _write(folder / MODULES, modules)
    theirs = next(name for name, ours in _OURS.items() if ours == said.pooling)
    flags = {flag: name == theirs for name, flag in _FLAGS.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    _write(folder / _TRANSFORMER_FILES[0], {"max_seq_length": said.max_length, "do_lower_case": False})
    if said.normalize:
        _write(folder / "2_Normalize" / "config.json", {})  # a folder without files is lost on the way to a hub
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_as_sentence_folder(folder: Path, config: Any) -> None:
    """Write beside a model whose config says how its embeddings are pooled what sentence-transformers reads of it.

    Args:
        config: the model's, with `pooling`, `normalize` and `max_length` as its `sentence_embedding`; without, nothing
            is written.
    """
    said = getattr(config, "sentence_embedding", None)
    if isinstance(said, dict):
        about = SentenceFolder("", said.get("pooling", "mean"), bool(said.get("normalize")), said.get("max_length"))
        write_sentence_folder(folder, about, config.hidden_size)


def _pooling(file: Path) -> str:
    said = _json(file)
    modes = said.get("pooling_mode") or [name for name, flag in _FLAGS.items() if said.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _OURS:
        raise ConfigError(f"{file} pools by {' and '.join(map(str, modes)) or 'nothing'}: {', '.join(_OURS)} are read")
    return _OURS[modes[0]]


def _max_length(file: Path) -> int | None:
    length = _json(file).get("max_seq_length") if file.is_file() else None
    return length if isinstance(length, int) else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

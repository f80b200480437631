"""A model into a folder that onnxruntime serves: `model.onnx`, optionally `model_int8.onnx`, tokenizer, config."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.image_format import is_local
from ..errors import ConfigError
from ..features.preserve import resting
from ..storage.checkpoint_files import replaced_files
from ..tasks.saved import load_saved
from ..teachers.cache_store import format_bytes
from .compared import check, furthest
from .made_up import input_names, shapes
from .onnx_model import OnnxModel, runtime
from .scoring import Score, score_on
from .tracing import OPSET, write_onnx

MODEL, INT8 = "model.onnx", "model_int8.onnx"
_QUANTIZED = ["MatMul", "Gemm", "Gather", "LSTM"]  # convolutions in int8 are not in every onnxruntime


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: where.
        opset: of ONNX.
        inputs, outputs: of the model, by name.
        sizes: file -> bytes.
        differences: file -> the largest difference from the model in torch, on batches that were made up.
        batches: how many those were.
        scores: "torch" and each file -> what `score` gave.
        notes: what was guessed of the evaluation rows.
    """

    folder: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: dict[str, int]
    differences: dict[str, float]
    batches: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def export_onnx(
    model: nn.Module,
    folder: str | Path,
    processing_class: Any = None,
    *,
    opset: int = OPSET,
    int8: bool = False,
    score: Score | None = None,
) -> Exported:
    """Write a model of transformers, or of this package, as ONNX. Rows and lengths stay open; nothing is cached.

    The file is run by onnxruntime on batches of several sizes, lengths and paddings, and kept where every output is
    the model's to 1e-4. A decoder gives the logits of all its tokens, and is called again for each token that is
    generated.

    Args:
        model: stays as it is, on whatever device and in whatever precision; the file is in float32.
        folder: its files are replaced one by one, each whole; others in it stay.
        processing_class: the tokenizer or image processor, saved beside it; its names are those of the inputs.
        opset: 14 to 20.
        int8: also write `model_int8.onnx`: weights of matrix products and embeddings in 8 bits, one scale for each
            column, activations quantized as they come.
        score: model -> metrics by name, called with the model and with every file as an `OnnxModel`.

    Raises:
        ConfigError: onnx or onnxruntime is missing, the model cannot be exported, or the file computes something else.
    """
    runtime()
    names, tried = input_names(model, processing_class), list(shapes(model, processing_class))
    with replaced_files(Path(folder)) as new, resting(model):
        plain = _in_float32(model).eval()
        outputs = write_onnx(plain, names, new / MODEL, opset)
        exported = {MODEL: OnnxModel(new / MODEL, model.config)}
        differences = {MODEL: check(plain, exported[MODEL], tried)}
        if int8:
            _quantize(new / MODEL, new / INT8)
            exported[INT8] = OnnxModel(new / INT8, model.config)
            differences[INT8] = furthest(plain, exported[INT8], tried)
        _save_beside(model, processing_class, new)
        scores = {} if score is None else {"torch": dict(score(plain))}
        scores |= {} if score is None else {name: dict(score(one)) for name, one in exported.items()}
        sizes = {name: sum(path.stat().st_size for path in new.glob(f"{name}*")) for name in exported}
    return Exported(Path(folder), opset, names, outputs, sizes, differences, len(tried), scores)


def export_saved(
    name: str,
    folder: str | Path | None = None,
    *,
    opset: int | None = None,
    int8: bool = False,
    data: Any = None,
    **how: Any,
) -> Exported:
    """As `export_onnx`, of a saved model with its tokenizer or the form of its pictures.

    Args:
        name: a directory, or a name on the hub.
        folder: None for `onnx` in the model's directory.
        data: evaluation rows, on which the model and every file are measured; None measures nothing.
        **how: how they are read, as of `score_on`.

    Raises:
        ConfigError: as there; or the model is on the hub and no folder is named.
    """
    runtime()
    if folder is None and not is_local(name):
        raise ConfigError(f"{name!r} is on the hub: name the folder of the exported model (--output-dir)")
    model, processor = load_saved(name)
    folder = Path(name).expanduser() / "onnx" if folder is None else Path(folder)
    score, notes = (None, ()) if data is None else score_on(data, model, processor, **how)
    exported = export_onnx(model, folder, processor, opset=opset or OPSET, int8=int8, score=score)
    return replace(exported, notes=notes)


def describe(exported: Exported) -> Iterator[str]:
    """What was written, line by line."""
    yield f"opset {exported.opset}; inputs {', '.join(exported.inputs)}; outputs {', '.join(exported.outputs)}"
    for name, size in exported.sizes.items():
        yield (
            f"{exported.folder / name}: {format_bytes(size)}, differs from the model in torch by at most "
            f"{exported.differences[name]:.0e} on {exported.batches} made-up batches"
        )
    yield from exported.notes
    for name, scores in exported.scores.items():
        yield f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in scores.items())}"


def _in_float32(model: nn.Module) -> nn.Module:
    """The model itself where it is on the processor in float32, else a copy that is."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64, torch.bool) for t in tensors):
        return model
    return copy.deepcopy(model).cpu().float()


def _save_beside(model: Any, processing_class: Any, folder: Path) -> None:
    """What a reader of the folder needs beside the model: config, generation config, tokenizer or image processor."""
    model.config.save_pretrained(folder)
    for part in (getattr(model, "generation_config", None), processing_class):
        if part is not None and hasattr(part, "save_pretrained"):
            part.save_pretrained(folder)


def _quantize(path: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _unheard():
        quantize_dynamic(path, target, op_types_to_quantize=_QUANTIZED, per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _unheard() -> Iterator[None]:
    """onnxruntime advises a preparation of the model, on the root logger; it changes nothing here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

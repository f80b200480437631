"""An ONNX file as a module: inputs by name in, outputs by name out, so that whatever scores a model scores it."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..errors import ConfigError


def runtime() -> Any:
    """onnxruntime.

    Raises:
        ConfigError: it or onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f'ONNX needs onnx and onnxruntime ({error}): pip install "knowledge_distillation[onnx]"'
        ) from error
    return onnxruntime


class OnnxModel(nn.Module):
    """Runs an ONNX file on the processor by onnxruntime. It has no parameters and is never trained.

    Args:
        path: the file.
        config: of the model that was exported: class names and what else readers of a model look up.

    Raises:
        ConfigError: onnxruntime is missing, or cannot read the file.
    """

    def __init__(self, path: str | Path, config: Any = None) -> None:
        super().__init__()
        options = runtime().SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds
            said = shorten(str(error), 300, placeholder="…")
            raise ConfigError(f"onnxruntime cannot read {path}: {said}") from error
        self.config = config
        self.device = torch.device("cpu")
        self.inputs = tuple(one.name for one in self.session.get_inputs())
        self.outputs = tuple(one.name for one in self.session.get_outputs())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **others: Tensor,
    ) -> ModelOutput:
        """The outputs by name. Inputs that the file does not have are not looked at; a mask left out is all ones."""
        given: dict[str, Any] = {**others, "input_ids": input_ids, "decoder_input_ids": decoder_input_ids}
        given["pixel_values"] = pixel_values
        if input_ids is not None:
            given["attention_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            given["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        missing = [name for name in self.inputs if given.get(name) is None]
        if missing:
            raise ConfigError(f"the exported model has no {', '.join(missing)}; it takes {', '.join(self.inputs)}")
        values = self.session.run(None, {name: given[name].cpu().numpy() for name in self.inputs})
        return ModelOutput(**{name: torch.from_numpy(v) for name, v in zip(self.outputs, values, strict=True)})

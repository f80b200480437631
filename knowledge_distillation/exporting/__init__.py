"""Models in a form that runs without torch: ONNX, compared with the model before it is kept."""

from __future__ import annotations

from .onnx import Exported as Exported
from .onnx import describe as describe
from .onnx import export_onnx as export_onnx
from .onnx import export_saved as export_saved
from .onnx_model import OnnxModel as OnnxModel

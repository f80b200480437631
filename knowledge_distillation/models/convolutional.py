"""What the image classifiers of this package share: convolutions, their first weights, the forward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .own_model import OwnModel


def conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, divided by its stride."""
    return nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class ConvolutionalClassifier(OwnModel):
    """`pixel_values` (batch, channels, height, width) to `logits` (batch, classes) by a stem, stages and pooling.

    Weights begin as those of He et al., Delving Deep into Rectifiers, 2015, by the fan out.
    """

    auto_class = AutoModelForImageClassification
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    stem: nn.Module
    stem_pool: nn.Module
    stages: tuple[str, ...]  # names of the modules
    pooler: nn.Module
    classifier: nn.Module

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Flags that are None are those of the config."""
        states = [self.stem_pool(self.stem(pixel_values))]
        for stage in self.stages:
            states.append(getattr(self, stage)(states[-1]))
        logits = self.classifier(self.pooler(states[-1]).flatten(1))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)

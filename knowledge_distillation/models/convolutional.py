"""What the image classifiers of this package share: convolutions, their first weights, the form of the output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


def conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, divided by its stride."""
    return nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class ConvolutionalModel(PreTrainedModel):
    """Images in; weights begin as those of He et al., Delving Deep into Rectifiers, 2015, by the fan out."""

    main_input_name = "pixel_values"
    input_modalities = ["image"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)


def classified(
    model: PreTrainedModel,
    logits: Tensor,
    labels: Tensor | None,
    states: list[Tensor],
    output_hidden_states: bool | None,
    return_dict: bool | None,
) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
    """The output of a classifier as transformers has it; flags that are None are those of the config."""
    wanted = model.config.output_hidden_states if output_hidden_states is None else output_hidden_states
    output = ImageClassifierOutputWithNoAttention(
        loss=None if labels is None else F.cross_entropy(logits, labels),
        logits=logits,
        hidden_states=tuple(states) if wanted else None,
    )
    as_dict = model.config.return_dict if return_dict is None else return_dict
    return output if as_dict else output.to_tuple()

"""WRN-d-k: residual networks that are wide and shallow, for small images.

Source: Zagoruyko and Komodakis, Wide Residual Networks, 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .configs import WIDE_RESNET_STEM_WIDTH, WideResNetConfig
from .convolutional import ConvolutionalClassifier, conv
from .own_model import offer


class WideResNetBlock(nn.Module):
    """Two convolutions, each after its BatchNorm and ReLU, added to what came in.

    Args:
        activated: the input went through BatchNorm and ReLU already.
    """

    def __init__(self, width_in: int, width: int, stride: int, dropout: float, activated: bool) -> None:
        super().__init__()
        self.norm1 = None if activated else nn.BatchNorm2d(width_in)
        self.conv1 = conv(width_in, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(width, width, 3)
        self.shortcut = None if width_in == width else conv(width_in, width, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        activated = hidden if self.norm1 is None else F.relu(self.norm1(hidden))
        residual = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))
        return residual + (hidden if self.shortcut is None else self.shortcut(activated))


class WideResNetStage(nn.Module):
    """Blocks at one size, and the BatchNorm and ReLU that the next stage begins with."""

    def __init__(self, config: WideResNetConfig, number: int, width_in: int, width: int) -> None:
        super().__init__()
        first = WideResNetBlock(width_in, width, 1 if number == 0 else 2, config.dropout, activated=number > 0)
        others = (
            WideResNetBlock(width, width, 1, config.dropout, activated=False) for _ in range(config.depths[number] - 1)
        )
        self.blocks = nn.Sequential(first, *others)
        self.norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.norm(self.blocks(hidden)))


class WideResNetForImageClassification(ConvolutionalClassifier):
    """`pixel_values` (batch, channels, height, width) to `logits` (batch, classes).

    `hidden_states` are the stem's output and that of each stage, after its ReLU: `layer1` to `layer3` in a
    `distill_config`. Before the ReLU it is `stage1.activation.input`; before the BatchNorm, the sum of the residual
    branches, `stage1.norm.input`. The pooled vector is `pooler.output`.
    """

    config_class = WideResNetConfig
    config: WideResNetConfig
    stages = ("stage1", "stage2", "stage3")

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        widths = [WIDE_RESNET_STEM_WIDTH, *config.hidden_sizes]
        self.stem = conv(config.num_channels, WIDE_RESNET_STEM_WIDTH, 3)
        self.stem_pool = nn.Identity()
        self.stage1, self.stage2, self.stage3 = (WideResNetStage(config, n, *widths[n : n + 2]) for n in range(3))
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], config.num_labels)  # type: ignore[arg-type]
        self.post_init()


offer(WideResNetForImageClassification)

"""ShuffleNetV2: small networks of split, shuffled channels.

Source: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, 2018, table 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configs import SHUFFLENET_V2_UNITS, SHUFFLENET_V2_WIDTHS, ShuffleNetV2Config
from .convolutional import ConvolutionalClassifier, conv
from .own_model import offer

_STEM_WIDTH = 24


class ConvNorm(nn.Module):
    """A convolution, its BatchNorm, and a ReLU where it is asked for."""

    def __init__(
        self, width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
    ) -> None:
        super().__init__()
        self.conv = conv(width_in, width, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU() if activated else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(hidden)))


class ShuffleNetV2Unit(nn.Module):
    """One half of the channels goes on as it is, the other through three convolutions; where the size is halved, all
    channels go through both branches. What comes out is before its ReLU: a half that went on had it before.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        inner = width_in if stride > 1 else half
        self.shortcut = (
            nn.Sequential(
                ConvNorm(width_in, width_in, 3, stride, groups=width_in, activated=False),
                ConvNorm(width_in, half, 1, activated=False),
            )
            if stride > 1
            else None
        )
        self.branch = nn.Sequential(
            ConvNorm(inner, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, activated=False),
            ConvNorm(half, half, 1, activated=False),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        if self.shortcut is not None:
            return shuffled(self.shortcut(hidden), self.branch(hidden))
        shortcut, rest = hidden.chunk(2, dim=1)
        return shuffled(shortcut, self.branch(rest))


def shuffled(one: Tensor, other: Tensor) -> Tensor:
    """Two maps of as many channels as one, its channels from either in turn."""
    return torch.stack([one, other], dim=2).flatten(1, 2)


class ShuffleNetV2Stage(nn.Module):
    """Units at one size; `activation` is the ReLU after the last of them."""

    def __init__(self, width_in: int, width: int, units: int) -> None:
        super().__init__()
        others = (ShuffleNetV2Unit(width, width, 1) for _ in range(units - 1))
        self.units = nn.ModuleList([ShuffleNetV2Unit(width_in, width, 2), *others])
        self.activation = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        *before, last = self.units
        for unit in before:
            hidden = F.relu(unit(hidden))
        return self.activation(last(hidden))


class ShuffleNetV2ForImageClassification(ConvolutionalClassifier):
    """`pixel_values` (batch, channels, height, width) to `logits` (batch, classes).

    `hidden_states` are the stem's output, that of each stage and that of the last convolution, after their ReLUs:
    `layer1` to `layer4` in a `distill_config`. Before the ReLU they are `stage1.activation.input` to
    `stage3.activation.input` and `stage4.activation.input`. The pooled vector is `pooler.output`.
    """

    config_class = ShuffleNetV2Config
    config: ShuffleNetV2Config
    stages = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, config: ShuffleNetV2Config) -> None:
        super().__init__(config)
        *widths, last = SHUFFLENET_V2_WIDTHS[config.width_multiplier]
        small = config.stem == "cifar"
        self.stem = ConvNorm(config.num_channels, _STEM_WIDTH, 3, stride=1 if small else 2)
        self.stem_pool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        pairs = zip([_STEM_WIDTH, *widths], widths, SHUFFLENET_V2_UNITS, strict=False)
        self.stage1, self.stage2, self.stage3 = (ShuffleNetV2Stage(*pair) for pair in pairs)
        self.stage4 = ConvNorm(widths[-1], last, 1)
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, config.num_labels)  # type: ignore[arg-type]
        self.post_init()


offer(ShuffleNetV2ForImageClassification)

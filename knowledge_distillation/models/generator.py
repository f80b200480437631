"""Generators: noise in, samples out. For data-free distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError


class ImageGenerator(nn.Module):
    """Noise (batch, noise_dim) -> images (batch, C, H, W): a linear map to a quarter of the size, then twice a
    doubling and a convolution. The last normalisation gives every channel mean 0 and variance 1 over the batch.

    Normalisation always takes the batch's own statistics, so that it keeps none.

    Args:
        size: (C, H, W); H and W are multiples of 4.
        noise_dim: numbers an image is made of.
        width: channels of the inner maps, twice as many in the first.

    Raises:
        ConfigError: the size has another form.

    Source: after Fang et al., Data-Free Adversarial Distillation, 2019, and Micaelli and Storkey, Zero-shot Knowledge
    Transfer via Adversarial Belief Matching, 2019.
    """

    def __init__(self, size: Sequence[int], noise_dim: int = 64, width: int = 32) -> None:
        super().__init__()
        if len(size) != 3 or min(size) < 1 or size[1] % 4 or size[2] % 4:
            raise ConfigError(f"size is (C, H, W), with H and W multiples of 4; found {tuple(size)}")
        _positive(noise_dim=noise_dim, width=width)
        channels, height, breadth = size
        self.noise_dim = noise_dim
        self.layers = nn.Sequential(
            nn.Linear(noise_dim, 2 * width * (height // 4) * (breadth // 4)),
            nn.Unflatten(1, (2 * width, height // 4, breadth // 4)),
            _norm(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            _norm(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1),
            _norm(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            _norm(channels),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


class VectorGenerator(nn.Module):
    """Noise (batch, noise_dim) -> samples (batch, *size) of any shape: two layers.

    Args:
        size: of a sample: (features,), or (length, width) of embeddings, or (length, vocabulary) of soft tokens.
        noise_dim: numbers a sample is made of.
        width: of the inner layer.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, size: Sequence[int], noise_dim: int = 64, width: int = 256) -> None:
        super().__init__()
        if not size or min(size) < 1:
            raise ConfigError(f"size is the shape of one sample; found {tuple(size)}")
        _positive(noise_dim=noise_dim, width=width)
        self.noise_dim = noise_dim
        self.layers = nn.Sequential(
            nn.Linear(noise_dim, width),
            nn.BatchNorm1d(width, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(width, math.prod(size)),
            nn.Unflatten(1, tuple(size)),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} is 1 or more; found {number}")

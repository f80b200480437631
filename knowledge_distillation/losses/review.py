"""Knowledge review: each level of the teacher is compared with a fusion of the student's levels from there down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

POOLED = (4, 2, 1)


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: squared error at full size and of averages over ever larger regions, per sample.

    d(b) = (sum_k 2^-k * mean_{c,p} (pool_k(student) - pool_k(teacher))^2) / sum_k 2^-k

    k = 0 is the whole map; k = 1, 2, ... are averages at 4 x 4, 2 x 2 and 1 x 1, of these those lower than the map.

    Args:
        student: (batch, channels, height, width) map.
        teacher: same shape.

    Returns:
        (batch,), each value 0 or more.

    Source: Chen et al., Distilling Knowledge via Knowledge Review, 2021, section 3.3, and the authors' code.
    """
    sizes = [size for size in POOLED if size < student.shape[2]]
    value, total = _squared_error(student, teacher), 1.0
    for number, size in enumerate(sizes, 1):
        pooled = [F.adaptive_avg_pool2d(feature, size) for feature in (student, teacher)]
        value = value + _squared_error(*pooled) / 2**number
        total += 1 / 2**number
        if student.shape[2] % size == 0 and student.shape[3] % size == 0:
            student, teacher = pooled  # averages of equal regions: the next are averages of these
    return value / total


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher, reduction="none").mean((1, 2, 3))


class ReviewKD(nn.Module):
    """Hierarchical context loss of each level of the teacher and the student's levels fused, one value per sample.

    d(b) = sum_i hcl(expand_i(u_i), teacher_i)
    u_n = reduce_n(student_n),   u_i = a_i * reduce_i(student_i) + b_i * up(u_{i+1})
    (a_i, b_i) = sigmoid(attention_i(reduce_i(student_i), up(u_{i+1}))), one number per position each

    Levels run from shallow to deep, and the deepest is fused first. reduce is a 1x1 convolution to `width` channels,
    expand a 3x3 convolution to the teacher's, attention a 1x1 convolution, up takes the nearest neighbour. Where a
    level's size is not the teacher's, u_i is brought to it in the same way. The released code has a BatchNorm after
    reduce and expand: left out here, since with it a sample's value would depend on the rest of the batch.

    Args:
        student: maps from shallow to deep, (batch, channels, height, width) each.
        teacher: as many maps, of any sizes and numbers of channels.
        width: channels in which levels are fused, 1 or more; None for those of the student's deepest level, at most
            512.

    Returns:
        (batch,), each value 0 or more, not 0 for equal models.

    Raises:
        ConfigError: the sides have different numbers of maps, a feature is no map, or the width is below 1.

    Source: Chen et al., Distilling Knowledge via Knowledge Review, 2021, eq. 6 to 8.
    """

    name_of = "review_kd"

    def __init__(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, width: int | None = None) -> None:
        super().__init__()
        if len(student) != len(teacher) or any(feature.dim() != 4 for feature in (*student, *teacher)):
            shapes = " and ".join(str([tuple(feature.shape) for feature in side]) for side in (student, teacher))
            raise ConfigError(f"loss review_kd compares as many maps of the student as of the teacher; found {shapes}")
        width = min(512, student[-1].shape[1]) if width is None else width
        if width < 1:
            raise ConfigError(f"loss review_kd: width is 1 or more; found {width}")
        self.reduce = nn.ModuleList(nn.Conv2d(level.shape[1], width, kernel_size=1) for level in student)
        self.expand = nn.ModuleList(nn.Conv2d(width, level.shape[1], kernel_size=3, padding=1) for level in teacher)
        # a convolution of two maps one upon the other is a sum of two: no map is copied
        self.attention = nn.ModuleList(nn.Conv2d(width, 2, kernel_size=1) for _ in student[1:])
        self.attention_below = nn.ModuleList(nn.Conv2d(width, 2, kernel_size=1, bias=False) for _ in student[1:])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        fused, values = None, []
        for i in reversed(range(len(teacher))):
            level = self.reduce[i](student[i])
            if fused is not None:
                fused = _resized(fused, level)
                gates = torch.sigmoid(self.attention[i](level) + self.attention_below[i](fused))
                level = level * gates[:, :1] + fused * gates[:, 1:]
            fused = level
            values.append(hcl(self.expand[i](_resized(fused, teacher[i])), teacher[i]))
        return torch.stack(values).sum(0)


def _resized(feature: Tensor, like: Tensor) -> Tensor:
    size = like.shape[2:]
    return feature if feature.shape[2:] == size else F.interpolate(feature, size=size, mode="nearest")

"""Learnable maps from the student's width to the teacher's."""

from __future__ import annotations

from torch import nn


def build_projection(kind: str, student_width: int, teacher_width: int) -> nn.Module:
    """A projection for a kind of feature: linear on the last dimension, a 1x1 convolution on the channels of a map.

    Source: the regressor of Romero et al., FitNets, 2015; the matrix W of Jiao et al., TinyBERT, 2020, eq. 8.
    """
    if kind == "map":
        return nn.Conv2d(student_width, teacher_width, kernel_size=1)
    return nn.Linear(student_width, teacher_width)

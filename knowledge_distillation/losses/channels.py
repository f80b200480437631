"""A loss on relations of channels: what each shows at every place of a map, or of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .feature_map import pooled_alike
from .samples import norms_of, unit


def nst(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Distance of the two distributions of channels over places, one value per sample.

    MMD^2 = mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c'),   k(x, y) = (x . y)^2

    s_c is what channel c shows at every place, divided by its length. On tokens the places are the tokens that count
    and the channels the dimensions of their width. As sum_cc' (x_c . y_c')^2 = ||X Y^T||_F^2 = <X^T X, Y^T Y>, either
    inner products of channels or those of places do, whichever are fewer.

    Args:
        student: (batch, channels, height, width), or (batch, length, width).
        teacher: the same kind; the numbers of channels may differ. Maps of another size are averaged, where they are
            larger, down to the smaller (adaptive average pooling); lengths are equal.
        mask: (batch, length) bool, the tokens that count. None counts all.

    Returns:
        (batch,), each value 0 or more.

    Raises:
        ConfigError: the two sides differ in kind, batch or length.

    Source: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017.
    """
    ours, theirs = _channels(student, teacher, mask)
    (wide, places), other = ours.shape[1:], theirs.shape[1]
    if places * (wide + other) <= wide**2 + wide * other + other**2:
        s, t = (side.mT @ side / max(side.shape[1], 1) for side in (unit(ours), unit(theirs)))
        return (s - t).square().sum((1, 2))
    ss, tt, st = ours @ ours.mT, theirs @ theirs.mT, ours @ theirs.mT
    s, t = (1 / norms_of(gram) for gram in (ss, tt))
    return _likeness(tt, t, t) + _likeness(ss, s, s) - 2 * _likeness(st, s, t)


def _channels(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both sides as (batch, channels, places), 0 at places that do not count."""
    found = f"the student's feature is {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
    if student.dim() != teacher.dim() or student.shape[0] != teacher.shape[0]:
        raise ConfigError(f"nst compares two maps, or two features of tokens, of one batch: {found}")
    if student.dim() == 4:
        student, teacher = pooled_alike(student, teacher)
        return student.flatten(2), teacher.flatten(2)
    if student.shape[1] != teacher.shape[1]:
        raise ConfigError(f"nst compares tokens place by place, so lengths are equal: {found}")
    if mask is not None:
        student, teacher = (torch.where(mask.bool()[:, :, None], side, 0.0) for side in (student, teacher))
    return student.mT, teacher.mT


def _likeness(products: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """(batch,) mean of the squared cosines, from inner products and inverse lengths of channels."""
    return (products * s[:, :, None] * t[:, None, :]).square().mean((1, 2))

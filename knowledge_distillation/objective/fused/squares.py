"""The squared error of whole tensors in one step: masked, weighted and summed without a copy of either side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def summed_hidden_mse(student: Tensor, teacher: Tensor, rows: Tensor | None, keys: Tensor | None) -> Tensor:
    """The weighted sum of `hidden_mse`.

    Args:
        student: (batch, length, width), or (batch, heads, length, width).
        teacher: same shape.
        rows: (batch, length) the weight of each token, 0 for what does not count; None where all weigh 1.
        keys: None.
    """
    return _SquaredRows.apply(student, teacher, rows, keys) / student.shape[-1]


def summed_attention_mse(student: Tensor, teacher: Tensor, rows: Tensor | None, keys: Tensor | None) -> Tensor:
    """The weighted sum of `attention_mse`.

    Args:
        student: (batch, heads, length, keys).
        teacher: same shape.
        rows: (batch, length) the weight of each row, 0 for what does not count; None where all weigh 1.
        keys: (batch, keys) keys that count; None for all.
    """
    return _SquaredRows.apply(student, teacher, rows, keys)


class _SquaredRows(torch.autograd.Function):
    """The weighted sum of the squared length of each row of a difference; it keeps the difference."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, rows: Tensor | None, keys: Tensor | None) -> Tensor:
        error = student.to(torch.promote_types(student.dtype, torch.float32))
        error = student - teacher if error is student else error.sub_(teacher)
        if rows is not None:
            rows = rows if student.dim() == 3 else rows[:, None]
            error.masked_fill_((rows == 0)[..., None], 0.0)
        if keys is not None:
            error.masked_fill_(~keys[:, None, None], 0.0)
        ctx.save_for_backward(error, rows)
        ctx.dtypes = student.dtype, teacher.dtype
        squares = torch.linalg.vector_norm(error, dim=-1).square_()
        return (squares if rows is None else squares.mul_(rows)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        error, rows = ctx.saved_tensors
        slope = error * (2 * gradient if rows is None else (rows * (2 * gradient))[..., None])
        student = slope.to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        teacher = slope.to(ctx.dtypes[1]).neg() if ctx.needs_input_grad[1] else None
        return student, teacher, None, None

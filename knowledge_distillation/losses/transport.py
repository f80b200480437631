"""Many layers with many: a transport plan says how much each student layer learns from each teacher layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError


class BertEMD(nn.Module):
    """Earth mover's distance between the layers of two models, with layer weights that follow what each layer costs.

    c(m, n) = mean over items and widths of (W student_m - teacher_n)^2,   W learned where widths differ, else left out
    d = sum_mn P(m, n) c(m, n),   P = transport plan of least cost with row sums w_student and column sums w_teacher
    in training, after each batch:  w(m) proportional to 1 / u(m),   u(m) = sum_n P(m, n) c(m, n) / w(m)

    P comes from Sinkhorn's iteration in the log domain, on the device. It is blurred a little: P(m, n) spreads over
    teacher layers whose costs lie within about regularisation * (mean cost) of each other, and its row sums are those
    asked for up to what the iterations left. Gradients go through c alone; P and w are constants there. The weights
    start equal; those of the teacher follow their layers' costs likewise. A cost per unit u below a hundredth of the
    mean cost counts as that, so that no layer takes all the weight.

    Of equal models with equal weights the best plan is the identity and its cost is 0; the blurred one is worth more,
    up to regularisation * (mean cost) * log(number of layers), most where neighbouring layers are alike. The authors'
    code solves the plan exactly on the CPU, and gives a layer whose cost is 0 the weight 0.

    Args:
        student: M features, all (batch, length, width) or all (batch, heads, length, keys).
        teacher: N features of the same kind, on the same items; of hidden states the width may differ.
        regularisation: above 0, relative to the mean cost; smaller is sharper and needs more iterations.
        iterations: 1 or more.
        learn_weights: False keeps all layers at equal weights.
        mask: (batch, length), rows that count; None keeps all.
        key_mask: (batch, keys) of attention maps, keys that count; None keeps all.

    Returns:
        A scalar, 0 or more.

    Raises:
        ConfigError: features of one side differ in shape, both sides hold different items, or an argument is out of
            range.

    Source: Li et al., BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's Distance, 2020;
        the plan of Cuturi, Sinkhorn Distances, 2013.
    """

    name_of = "bert_emd"
    student_weights: Tensor
    teacher_weights: Tensor

    def __init__(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        *,
        regularisation: float = 0.05,
        iterations: int = 100,
        learn_weights: bool = True,
    ) -> None:
        super().__init__()
        if not regularisation > 0 or iterations < 1:
            raise ConfigError(
                f"loss bert_emd: regularisation is above 0 and iterations 1 or more; found {regularisation!r} and "
                f"{iterations!r}"
            )
        _check_layers(student, teacher)
        self.regularisation, self.iterations, self.learn_weights = regularisation, iterations, learn_weights
        widths = student[0].shape[-1], teacher[0].shape[-1]
        self.projection = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)  # one for all layers
        for name, layers in (("student_weights", student), ("teacher_weights", teacher)):
            self.register_buffer(name, torch.full((len(layers),), 1 / len(layers)))

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        student = [self.projection(feature) for feature in student]
        weight = _weight_of_rows(student[0], mask, key_mask)
        with torch.no_grad():
            cost = torch.stack([torch.stack([_error(s, t, weight) for t in teacher]) for s in student])
            plan = transport_plan(
                cost, self.student_weights, self.teacher_weights, self.regularisation, self.iterations
            )
            moved = plan.sum(1)
            # sum_n P(m, n) ||s - t_n||^2 is the distance of s to the mean of the t_n under P, plus a number
            aims = (plan / moved[:, None]) @ torch.stack([feature.flatten() for feature in teacher])
        pulls = [_error(s, aim.view_as(s), weight) for s, aim in zip(student, aims, strict=True)]
        pull = (moved * torch.stack(pulls)).sum()
        if self.training and self.learn_weights:
            self._weigh(cost, plan)
        return (plan * cost).sum() + (pull - pull.detach())

    @torch.no_grad()
    def _weigh(self, cost: Tensor, plan: Tensor) -> None:
        mean = _over_processes(cost.mean())
        for weights, dimension in ((self.student_weights, 1), (self.teacher_weights, 0)):
            unit = _over_processes((plan * cost).sum(dimension)) / weights
            inverse = 1 / torch.maximum(unit, mean / 100)
            weights.copy_(torch.where(mean > 0, inverse / inverse.sum(), weights))


def _over_processes(value: Tensor) -> Tensor:
    """The sum over all processes, so that their weights stay equal; factors of it are of no account."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def transport_plan(
    cost: Tensor, student_weights: Tensor, teacher_weights: Tensor, regularisation: float, iterations: int
) -> Tensor:
    """The plan of least cost plus regularisation times its negative entropy: rows and columns are scaled in turn.

    Args:
        cost: (M, N), each 0 or more.
        student_weights: (M,), above 0, the sums of the rows; their sum is 1.
        teacher_weights: (N,), the same for the columns.
        regularisation: above 0, relative to the mean cost.
        iterations: how often rows and columns are scaled.

    Returns:
        (M, N), with exact column sums, and row sums that come near the weights.
    """
    rows, columns = student_weights.log()[:, None], teacher_weights.log()
    plan = cost / (-regularisation * cost.mean()).clamp(max=-torch.finfo(cost.dtype).tiny)
    for _ in range(iterations):
        plan = F.log_softmax(plan, dim=1) + rows
        plan = F.log_softmax(plan, dim=0) + columns
    return plan.exp()


def _error(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    return F.mse_loss(student, teacher, reduction="none").sum(-1).flatten() @ weight


def _weight_of_rows(feature: Tensor, mask: Tensor | None, key_mask: Tensor | None) -> Tensor:
    """For each row of the feature 1 / (the number of elements that count), or 0 where the row does not count."""
    attention = feature.dim() == 4
    rows = feature.new_ones(feature.shape[:-1])
    if mask is not None:
        rows = rows * (mask[:, None] if attention else mask)
    width = key_mask.sum(1)[:, None, None] if attention and key_mask is not None else feature.shape[-1]
    return (rows / (rows * width).sum().clamp(min=1)).flatten()


def _check_layers(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    shapes = [[tuple(feature.shape) for feature in side] for side in (student, teacher)]
    for who, side in zip(("student", "teacher"), shapes, strict=True):
        if len(set(side)) > 1:
            raise ConfigError(f"loss bert_emd needs layers of one shape, and the {who}'s are {_listed(side)}")
    ours, theirs = shapes[0][0], shapes[1][0]
    if ours[:2] != theirs[:2] or len(ours) != len(theirs) or (len(ours) == 4 and ours != theirs):
        raise ConfigError(
            f"loss bert_emd compares the same items, and a layer of the student is {ours}, one of the teacher "
            f"{theirs}. Only the width of hidden states may differ"
        )


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(shape) for shape in dict.fromkeys(shapes))

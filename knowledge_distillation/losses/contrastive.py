"""Contrastive losses, which tell a sample's own representation from those of other samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..errors import ConfigError
from .checks import check_above_0, check_choice, check_whole
from .samples import CHUNK, samples, unit

POOLINGS = ("mean", "first", "flatten")
DENSE = 16  # up to so many times the negatives, products with all of a memory cost less than to pick rows out of it


class CRD(nn.Module):
    """Contrastive representation distillation: a sample's student and teacher embeddings against other samples' ones.

    s, t = embeddings of student and teacher, linear and then of length 1; N = num_samples, K negatives
    h(u, v) = exp(u . v / temperature) / Z,   Z = N * mean of exp(u . v / temperature) over the first batch
    d(u; v) = - log (h(u, v_i) / (h(u, v_i) + K / N)) - sum_k log ((K / N) / (h(u, v_k) + K / N))
    loss(i) = d(s_i; memory of t) + d(t_i; memory of s)

    The memories hold an embedding of every training sample. After each batch, in training alone, its own rows move:
    row = momentum * row + (1 - momentum) * embedding, brought to length 1; a sample that is there more than once
    moves by its mean. With several processes the rows of all of them move everywhere. Both embedders train;
    memories and Z are buffers: all of it is in the checkpoints.

    Equal models do not give 0: the loss starts at about 2 (1 + log (K + 1)).

    Args:
        student: an example, (batch, width), (batch, length, width) or (batch, channels, height, width).
        teacher: an example of the other side, of any of these shapes.
        num_samples: N, the size of the training set, 2 or more.
        negatives: K, 1 or more; num_samples - 1 where that is less. Drawn anew from the other samples each time.
        temperature: above 0.
        momentum: of the memories, at least 0 and below 1.
        embedding_size: 1 or more.
        pooling: `mean` of tokens, or of the places of a map; `first` for the first token that counts ([CLS]);
            `flatten` for all the places of a map side by side.
        sample_index: (batch,) int64, the number of each sample in the training set, from 0.
        mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
        teacher_mask: the same for the teacher's tokens, where their number is another.

    Returns:
        (batch,), one value per sample, above 0.

    Raises:
        ConfigError: an argument is out of its range; `sample_index` is no int64 tensor of shape (batch,), or, where
            that can be known without waiting for a device, holds a number that is not in 0 .. num_samples - 1. On an
            accelerator such a number ends the run with a device-side assertion.

    Source: Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020; Z and the memories as
    in Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018.
    """

    name_of = "crd"
    student_memory: Tensor
    teacher_memory: Tensor
    log_normaliser: Tensor

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        num_samples: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        embedding_size: int = 128,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        check_whole("num_samples", num_samples, 2)
        check_whole("negatives", negatives, 1)
        check_whole("embedding_size", embedding_size, 1)
        check_above_0("temperature", temperature)
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum is at least 0 and below 1; found {momentum!r}")
        check_choice("pooling", pooling, POOLINGS)
        self.negatives = min(negatives, num_samples - 1)
        self.temperature, self.momentum, self.pooling = temperature, momentum, pooling
        self.embed_student = nn.Linear(self._width(student), embedding_size)
        self.embed_teacher = nn.Linear(self._width(teacher), embedding_size)
        bound = math.sqrt(3 / embedding_size)  # rows of length 1 on average
        for side in ("student", "teacher"):
            memory = torch.empty(num_samples, embedding_size).uniform_(-bound, bound)
            self.register_buffer(f"{side}_memory", memory)
        # log Z of the student's and of the teacher's direction; inf until the first batch has fixed it.
        self.register_buffer("log_normaliser", torch.full((2,), math.inf))

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        sample_index: Tensor,
        mask: Tensor | None = None,
        teacher_mask: Tensor | None = None,
    ) -> Tensor:
        """One value per sample.

        Args:
            student: (batch, width), (batch, length, width) or (batch, channels, height, width).
            teacher: any of these shapes, with the same batch.
            sample_index: (batch,) int64, the number of each sample in the training set, from 0.
            mask: (batch, length) bool, the tokens that count; a sample without any is not there. None counts all.
            teacher_mask: the same for the teacher's tokens, where their number is another.

        Returns:
            (batch,).
        """
        rows_s, rows_t, counted = self._samples(student, teacher, mask, teacher_mask)
        self._see(sample_index, len(counted))
        dtype = self.student_memory.dtype
        s, t = unit(self.embed_student(rows_s.to(dtype))), unit(self.embed_teacher(rows_t.to(dtype)))
        indices = torch.cat([sample_index[:, None], self._drawn(sample_index)], 1)
        learning = self.training and torch.is_grad_enabled()
        values = s.new_zeros(len(s))
        for side, (anchor, memory) in enumerate(((s, self.teacher_memory), (t, self.student_memory))):
            logits = inner_products(anchor.detach(), memory, indices) / self.temperature
            log_z = self._log_normaliser(side, logits, counted, learning)
            values = values + self._divergence(anchor, memory, indices, logits - log_z)
        if learning:
            self._remember(sample_index, torch.cat([s, t], 1).detach(), counted)
        return torch.where(counted > 0, values, 0.0)

    def _divergence(self, anchor: Tensor, memory: Tensor, indices: Tensor, log_h: Tensor) -> Tensor:
        """(batch,) noise-contrastive loss; the sample's own row of the memory is the first of its indices.

        The gradient is taken here, because the memory has changed when the backward pass comes, and because a row of
        the memory for every negative would be too much to keep.
        """
        odds = log_h - math.log(self.negatives / len(memory))
        values = -F.logsigmoid(odds[:, 0]) - F.logsigmoid(-odds[:, 1:]).sum(1)
        if not (torch.is_grad_enabled() and anchor.requires_grad):
            return values
        slopes = odds.sigmoid() / self.temperature
        slopes[:, 0] -= 1 / self.temperature
        gradient = weighted_rows(slopes, memory, indices)
        return values + ((anchor - anchor.detach()) * gradient).sum(1)  # adds 0, and the gradient

    def _log_normaliser(self, side: int, logits: Tensor, counted: Tensor, learning: bool) -> Tensor:
        """log Z: that of the first batch, over all processes; before there is one, that of this batch."""
        there = torch.where(counted[:, None] > 0, logits, -math.inf)
        sums = torch.stack([there.logsumexp((0, 1)), (counted.sum() * logits.shape[1]).log()])[None]
        if learning:
            (sums,) = _everywhere(sums)
        log_sum, log_number = sums.logsumexp(0)
        fresh = log_sum - torch.where(log_number.isinf(), 0.0, log_number) + math.log(len(self.student_memory))
        kept = self.log_normaliser[side]
        log_z = torch.where(kept.isinf(), fresh, kept)
        if learning:
            kept.copy_(log_z)
        return torch.where(log_z.isinf(), 0.0, log_z)

    def _drawn(self, sample_index: Tensor) -> Tensor:
        """(batch, negatives) numbers of other samples, all equally likely."""
        shape = (len(sample_index), self.negatives)
        drawn = torch.randint(len(self.student_memory) - 1, shape, device=sample_index.device)
        return drawn + (drawn >= sample_index[:, None])

    def _samples(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, teacher_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.pooling == "flatten":
            return samples(student, teacher, mask, teacher_mask, "mean")
        student, teacher = (side.mean((2, 3)) if side.dim() == 4 else side for side in (student, teacher))
        return samples(student, teacher, mask, teacher_mask, self.pooling)

    def _width(self, feature: Tensor) -> int:
        """Of a sample's row; raises where the pooling does not fit the feature."""
        fitting = {2: POOLINGS, 3: ("mean", "first"), 4: ("mean", "flatten")}.get(feature.dim(), ())
        if self.pooling not in fitting:
            raise ConfigError(
                f"pooling {self.pooling} does not apply to a feature of shape {tuple(feature.shape)}. "
                f"These do: {', '.join(fitting)}"
            )
        if feature.dim() == 4:
            return feature.shape[1] if self.pooling == "mean" else feature[0].numel()
        return feature.shape[-1]

    # --- the memories --------------------------------------------------------------------------------------------

    def _see(self, sample_index: Tensor, batch: int) -> None:
        """Raise where a number of a sample is none of the training set."""
        if sample_index.shape != (batch,) or sample_index.dtype != torch.int64:
            raise ConfigError(
                f"sample_index holds one int64 number per sample, shape ({batch},); found {sample_index.dtype} of "
                f"shape {tuple(sample_index.shape)}"
            )
        try:
            self.student_memory[:, :1].index_select(0, sample_index)  # takes no negative numbers, as [] would
        except IndexError as error:
            size = len(self.student_memory)
            raise ConfigError(
                f"sample_index holds a number that is not in 0 .. {size - 1}: num_samples is {size}. It is the number "
                "of rows of the training set, which are numbered from 0"
            ) from error

    @torch.no_grad()
    def _remember(self, sample_index: Tensor, embedded: Tensor, counted: Tensor) -> None:
        """Move the rows of the memories that belong to a batch, on every process alike.

        Rows that stand for one sample all write the same numbers, so that their order is of no account.
        """
        rows, embedded = _everywhere(torch.stack([sample_index, counted.long()], 1), embedded)
        index, there = rows.unbind(1)
        same = index[:, None] == index[None, :]
        weights = same.to(embedded.dtype) * there
        number = weights.sum(1, keepdim=True)
        mean = (weights @ embedded / number.clamp(min=1))[same.byte().argmax(1)]
        memories = (self.student_memory, self.teacher_memory)
        for memory, new in zip(memories, mean.chunk(2, 1), strict=True):
            old = memory.index_select(0, index)
            moved = unit(self.momentum * old + (1 - self.momentum) * new)
            memory.index_copy_(0, index, torch.where(number > 0, moved, old))


def inner_products(anchor: Tensor, memory: Tensor, indices: Tensor) -> Tensor:
    """anchor[b] . memory[indices[b, k]] as (batch, indices), without a tensor (batch, indices, width)."""
    if len(memory) <= DENSE * indices.shape[1]:
        return (anchor @ memory.T).gather(1, indices)
    return torch.cat(
        [torch.einsum("bd,bkd->bk", anchor, F.embedding(part, memory)) for part in _parts(indices, memory)], 1
    )


def weighted_rows(weights: Tensor, memory: Tensor, indices: Tensor) -> Tensor:
    """sum_k weights[b, k] * memory[indices[b, k]] as (batch, width)."""
    if len(memory) <= DENSE * indices.shape[1]:
        spread = weights.new_zeros(len(indices), len(memory)).scatter_add_(1, indices, weights)
        return spread @ memory
    parts = _parts(indices, memory)
    total = weights.new_zeros(len(indices), memory.shape[1])
    for part, weight in zip(parts, weights.split(parts[0].shape[1], 1), strict=True):
        total = total + torch.einsum("bk,bkd->bd", weight, F.embedding(part, memory))
    return total


def _parts(indices: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    return indices.split(max(1, CHUNK // max(1, len(indices) * memory.shape[1])), 1)


def _everywhere(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, one after another; a process with fewer rows adds rows of 0.

    The tensors have as many rows as each other.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return tensors
    longest = torch.tensor(len(tensors[0]), device=tensors[0].device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    gathered = []
    for tensor in tensors:
        padded = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, int(longest) - len(tensor))).contiguous()
        parts = [torch.empty_like(padded) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, padded)
        gathered.append(torch.cat(parts))
    return tuple(gathered)

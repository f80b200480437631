"""Weights that keep the terms of a loss on one scale, measured while training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config.entry import Entry

_MEMORY = 0.9  # how much of a running mean stays from step to step
_MOST = 1000.0  # a factor is within 1/1000 and 1000: a term near 0 neither takes over nor puts out the others


class Balance(nn.Module):
    """A factor for each entry, by which its term is multiplied beside its weight.

    The factor is what makes the entry's size that of the reference entry: sizes are running means of the terms
    (`relative_scale`: after Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation, 2024,
    where the ratio is that of one step), or of the norms of their gradients (`gradient_norm`: after Chen et al.,
    GradNorm, 2018, with equal norms as the aim and no learned weights). The reference, whose factor is 1, is the first
    entry on logits of those measured, else the first: a stage that compares no logits has its own.
    """

    factors: Tensor
    sizes: Tensor

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__()
        self.names = [entry.name for entry in entries]
        self.on_logits = [entry.name for entry in entries if entry.student[0].output == "logits"]
        self.register_buffer("factors", torch.ones(len(entries)))
        self.register_buffer("sizes", torch.zeros(len(entries)))

    def __getitem__(self, name: str) -> Tensor:
        return self.factors[self.names.index(name)]

    @torch.no_grad()
    def update(self, measured: Mapping[str, Tensor]) -> None:
        """Take in the sizes of one step, summed over processes already. An entry not measured keeps its size."""
        for number, name in enumerate(self.names):
            if name in measured:
                before, size = self.sizes[number], measured[name].to(self.sizes).abs()
                after = torch.where(before == 0, size, _MEMORY * before + (1 - _MEMORY) * size)
                self.sizes[number] = torch.where(size.isfinite(), after, before)
        of_reference = next((name for name in [*self.on_logits, *self.names] if name in measured), self.names[0])
        reference = self.sizes[self.names.index(of_reference)]
        have_sizes = (self.sizes > 0) & (reference > 0)
        factors = (reference / self.sizes.clamp(min=1e-12)).clamp(1 / _MOST, _MOST)
        self.factors.copy_(torch.where(have_sizes, factors, torch.ones_like(self.sizes)))

    def values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The factors of entries under the names they have in a history."""
        return {f"balance_{name}": self[name].clone() for name in names}


def gradient_norms(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The norm of each term's gradient over the parameters; the graph stays for the backward pass."""
    norms = {}
    for name, term in terms.items():
        if term.requires_grad:
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
            norms[name] = torch.stack(squares).sum().sqrt() if squares else term.new_zeros(())
    return norms

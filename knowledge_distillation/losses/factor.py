"""Factor transfer: the teacher's feature is paraphrased into a smaller factor, and the student learns that factor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from .feature_map import check_positions, pooled_alike


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's feature, trained by its reconstruction error, one value per item.

    d(i) = mean over the elements of item i of (decoder(encoder(teacher)) - teacher)^2

    Encoder and decoder are two 3x3 convolutions each (linear maps, of vectors and tokens) with a leaky ReLU between;
    the factor, between them, has `rate` times the teacher's channels. The released code has three layers and a
    BatchNorm after each: left out here, since with it a sample's value would depend on the rest of the batch. The
    student's feature is not used.

    Args:
        student: any feature of the student.
        teacher: (batch, channels, height, width) map, (batch, width) or (batch, length, width).
        rate: channels of the factor by channels of the teacher, above 0; 0.5 in the paper.

    Returns:
        (batch,) of maps and vectors, (batch, length) of tokens; each value 0 or more, not 0 for equal models.

    Raises:
        ConfigError: the rate is not above 0.

    Source: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, eq. 1.
    """

    name_of = "paraphraser"

    def __init__(self, student: Tensor, teacher: Tensor, *, rate: float = 0.5) -> None:
        super().__init__()
        width = teacher.shape[1 if teacher.dim() == 4 else -1]
        factor = factor_width(width, rate)
        self.encoder = _two_layers(teacher.dim(), width, width, factor)
        self.decoder = _two_layers(teacher.dim(), factor, width, width)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.reconstruction_error(self.encoder(teacher), teacher)

    def reconstruction_error(self, factor: Tensor, teacher: Tensor) -> Tensor:
        return _items(F.mse_loss(self.decoder(factor), teacher, reduction="none")).mean(-1)


class FactorTransfer(nn.Module):
    """Absolute difference between the student's factor and the teacher's, one value per item.

    d(i) = mean over the elements of item i of |n(translator(student)) - n(factor)|
           + paraphraser_weight * (mean squared reconstruction error of the paraphraser)
    factor = encoder(teacher),   n(f) = f / ||f||_2 over all elements of the item

    The translator is the paraphraser's encoder for the student's width. Where two maps differ in size, the larger
    factor is average-pooled first.

    The paper trains the paraphraser first and the student after it. That is an entry of loss `paraphraser` in an
    earlier stage, which `paraphraser` names, or in an earlier run, which `pretrained` names; it stays as it is then.
    Without both it learns beside the student: the factor the student sees is cut off from the graph, so the two share
    no gradient, and the paraphraser takes the steps it would take alone. One entry then does what takes two stages, at
    the price of a target that moves at first.

    Args:
        student: (batch, channels, height, width) map, (batch, width) or (batch, length, width).
        teacher: the same kind with any number of channels; tokens of the same length.
        rate: channels of the factor by channels of the teacher, above 0; 0.5 in the paper.
        paraphraser_weight: of the reconstruction error, 0 or more; None is 1, or 0 with a paraphraser trained before.
        paraphraser: the name of the entry of this config, of loss `paraphraser`, whose paraphraser it is.
        pretrained: path of a run directory, a checkpoint, or a safetensors file, that holds a paraphraser's weights
            alone or among others.
        pretrained_entry: the name of the entry whose paraphraser it is, where the file holds several.
        norm: the paper's Euclidean length of the difference in place of the mean absolute difference.
        losses: the modules of other entries, filled in by the loss model.
        weights: what `pretrained` holds by name, filled in by the loss model.

    Returns:
        (batch,) of maps and vectors, (batch, length) of tokens; each value 0 or more, not 0 for equal models.

    Raises:
        ConfigError: an argument is out of range, or the file holds no such paraphraser.

    Source: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, eq. 2, and the
        authors' code.
    """

    name_of = "factor_transfer"

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        rate: float = 0.5,
        paraphraser_weight: float | None = None,
        paraphraser: str | None = None,
        pretrained: str | None = None,
        pretrained_entry: str | None = None,
        norm: bool = False,
        losses: Mapping[str, nn.Module] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        alone = pretrained is None and paraphraser is None
        self.paraphraser_weight = float(alone) if paraphraser_weight is None else paraphraser_weight
        if self.paraphraser_weight < 0:
            raise ConfigError(f"loss factor_transfer: paraphraser_weight is 0 or more; found {paraphraser_weight}")
        if self.paraphraser_weight == 0 and alone:
            raise ConfigError(
                f"loss factor_transfer: paraphraser_weight is {paraphraser_weight}, which leaves the paraphraser "
                "untrained. Give a number above 0, or pretrained: PATH, or paraphraser: the entry that trains it"
            )
        self.paraphraser = Paraphraser(student, teacher, rate=rate)
        if paraphraser is not None:
            self.paraphraser = _of_entry(paraphraser, losses or {}, self.paraphraser)
        elif pretrained is not None:
            saved = _weights_of(self.paraphraser, pretrained, pretrained_entry, weights or {})
            self.paraphraser.load_state_dict(saved)
        if alone or pretrained is not None:
            self.paraphraser.requires_grad_(self.paraphraser_weight > 0)
        axis = 1 if teacher.dim() == 4 else -1
        width = student.shape[axis]
        self.translator = _two_layers(student.dim(), width, width, factor_width(teacher.shape[axis], rate))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_positions("factor_transfer", student, teacher)
        factor = self.paraphraser.encoder(teacher)
        factor_s, factor_t = self.translator(student), factor.detach()
        if student.dim() == 4:
            factor_s, factor_t = pooled_alike(factor_s, factor_t)
        factor_s, factor_t = (F.normalize(_items(f), dim=-1) for f in (factor_s, factor_t))
        if self.norm:
            value = torch.linalg.vector_norm(factor_s - factor_t, dim=-1)
        else:
            value = F.l1_loss(factor_s, factor_t, reduction="none").mean(-1)
        if self.paraphraser_weight == 0:
            return value
        return value + self.paraphraser_weight * self.paraphraser.reconstruction_error(factor, teacher)


def factor_width(width: int, rate: float) -> int:
    """The channels of a factor of a feature of `width` channels."""
    if rate <= 0:
        raise ConfigError(f"rate, channels of the factor by channels of the teacher, is above 0; found {rate}")
    return max(1, round(width * rate))


def _items(feature: Tensor) -> Tensor:
    """All elements of an item in the last dimension; an item is a sample of a map, a vector, a token."""
    return feature.flatten(1) if feature.dim() == 4 else feature


def _two_layers(dimensions: int, width: int, inner: int, out: int) -> nn.Sequential:
    if dimensions == 4:
        first: nn.Module = nn.Conv2d(width, inner, kernel_size=3, padding=1)
        return nn.Sequential(first, nn.LeakyReLU(0.1), nn.Conv2d(inner, out, kernel_size=3, padding=1))
    return nn.Sequential(nn.Linear(width, inner), nn.LeakyReLU(0.1), nn.Linear(inner, out))


def _of_entry(name: str, losses: Mapping[str, nn.Module], like: Paraphraser) -> Paraphraser:
    """The paraphraser that an earlier entry trains: the module itself."""
    module = losses[name] if name in losses else None
    names = [key for key, one in losses.items() if isinstance(one, Paraphraser)]
    if not isinstance(module, Paraphraser):
        raise ConfigError(
            f"loss factor_transfer: paraphraser {name!r} is no entry of loss paraphraser before this one."
            f"{nearest(name, names)} Known: {', '.join(names) or 'none'}"
        )
    if any(a.shape != b.shape for a, b in zip(module.parameters(), like.parameters(), strict=True)):
        raise ConfigError(f"loss factor_transfer: paraphraser {name!r} is of another width, kind or rate")
    return module


def _weights_of(
    paraphraser: nn.Module, path: str, entry: str | None, saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a paraphraser of these shapes in a file, whatever stands before their names."""
    state = paraphraser.state_dict()
    first = next(iter(state))
    prefixes = [key.removesuffix(first) for key in saved if key == first or key.endswith(f".{first}")]
    named = [prefix for prefix in prefixes if entry is None or entry in prefix.split(".")]
    fitting = [p for p in named if all(p + k in saved and saved[p + k].shape == state[k].shape for k in state)]
    if len(fitting) != 1:
        shape = tuple(state[first].shape)
        raise ConfigError(
            f"loss factor_transfer: pretrained {path} holds {len(fitting)} paraphrasers of this shape ({first} "
            f"{shape}){f' named {entry}' if entry else ''}; found {', '.join(prefixes) or 'none'}. "
            "One is needed: name its entry by pretrained_entry, and train it at the same rate"
        )
    return {key: saved[fitting[0] + key] for key in state}

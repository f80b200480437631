"""Published methods on the ends of stages, most of them for image models; where a model has no stages, on layers.

Each returns a `distill_config` list, as those of `presets` do. `alpha` is the weight of soft targets at `temperature`,
taken from that of the labels; at 0, where the papers compare, the labels alone go with the method.
"""

from __future__ import annotations

from typing import Any

from ..config.write import Entries
from ..errors import ConfigError
from .stage_ends import Stage, paired_stages


def similarity_preserving(
    teacher: Any, student: Any, weight: float = 3000.0, alpha: float = 0.0, temperature: float = 4.0
) -> Entries:
    """Which samples of a batch are alike, by the end of the last stage; and the labels.

    Args:
        weight: 3000 in the paper.
        alpha, temperature: of soft targets beside it.

    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019.
    """
    entry = _pair(*paired_stages(teacher, student)[-1], loss="similarity_preserving", weight=weight)
    return _with_logits([entry], teacher, alpha, temperature)


def fitnet(teacher: Any, student: Any, weight: float = 100.0, alpha: float = 0.0, temperature: float = 4.0) -> Entries:
    """A hint at the end of the middle stage: its map, through a 1x1 convolution where widths differ; and the labels.

    Args:
        weight: of the mean squared error. The paper learns the hint first and the task after it, here they go
            together.
        alpha, temperature: of soft targets beside it.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015.
    """
    pairs = paired_stages(teacher, student)
    return _with_logits([_alike(*pairs[(len(pairs) - 1) // 2], "fitnet_hint", weight)], teacher, alpha, temperature)


def factor_transfer(
    teacher: Any, student: Any, weight: float = 200.0, alpha: float = 0.0, temperature: float = 4.0
) -> Entries:
    """The factor of the last stage's end that a paraphraser makes of the teacher; and the labels.

    Args:
        weight: 200 in Tian et al., Contrastive Representation Distillation, 2020; 500 on CIFAR-10 in the paper. The
            paper trains the paraphraser first; here it learns beside the student, by its reconstruction error, of
            weight 1.
        alpha, temperature: of soft targets beside it.

    Source: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018.
    """
    entry = _pair(*paired_stages(teacher, student)[-1], loss="factor_transfer", weight=weight)
    entry["args"] = {"paraphraser_weight": 1 / weight} if weight else {}
    return _with_logits([entry], teacher, alpha, temperature)


def activation_boundary(
    teacher: Any, student: Any, weight: float = 1e-3, alpha: float = 0.0, temperature: float = 4.0
) -> Entries:
    """Which neurons are on, before the ReLU at the end of each stage; and the labels.

    Args:
        weight: of the last stage, halved with each stage before it. The paper learns the boundaries first and the task
            after them; here they go together.
        alpha, temperature: of soft targets beside it.

    Source: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, 2019.
    """
    pairs = paired_stages(teacher, student)
    entries = [
        _alike(*pair, "activation_boundary", weight / 2 ** (len(pairs) - number), before=True)
        for number, pair in enumerate(pairs, start=1)
    ]
    return _with_logits(entries, teacher, alpha, temperature)


def channel_wise(
    teacher: Any, student: Any, weight: float = 50.0, temperature: float = 4.0, alpha: float = 0.0
) -> Entries:
    """Where each channel of the last stage's end looks; and the labels.

    Args:
        weight, temperature: 50 and 4 of feature maps in the paper. The temperature is that of soft targets as well.
        alpha: weight of soft targets.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2021.
    """
    entry = _alike(*paired_stages(teacher, student)[-1], "channel_wise", weight)
    return _with_logits([entry | {"args": {"temperature": temperature}}], teacher, alpha, temperature)


def ofd(teacher: Any, student: Any, weight: float = 1e-3, alpha: float = 0.0, temperature: float = 4.0) -> Entries:
    """The comprehensive overhaul: features before the ReLU at the end of each stage, with a margin; and the labels.

    Args:
        weight: of the last stage, halved with each stage before it; 1e-3 in the paper's code.
        alpha, temperature: of soft targets beside it.

    Raises:
        ConfigError: no stage of the teacher ends in a BatchNorm and a ReLU, or none of the student in a ReLU.

    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019.
    """
    pairs = [pair for pair in paired_stages(teacher, student) if pair[0].normalised and pair[1].activation]
    if not pairs:
        names = " and ".join(type(getattr(model, "config", model)).__name__ for model in (teacher, student))
        raise ConfigError(
            f"ofd, margin_relu: stages of {names} do not end in a BatchNorm and a ReLU. Write its entries by hand: "
            "loss margin_relu on module paths, with projection conv1x1_bn"
        )
    entries = [
        _pair(*pair, loss="margin_relu", weight=weight / 2 ** (len(pairs) - number), before=True)
        | {"projection": "conv1x1_bn" if pair[0].size == pair[1].size else "resize"}
        for number, pair in enumerate(pairs, start=1)
    ]
    return _with_logits(entries, teacher, alpha, temperature)


def _pair(teacher: Stage, student: Stage, before: bool = False, **entry: Any) -> dict[str, Any]:
    """One stage's output from another's; `before` is that before their ReLUs."""
    features = [stage.before if before else stage.after for stage in (teacher, student)]
    return {"teacher": features[0], "student": features[1], **entry}


def _alike(teacher: Stage, student: Stage, loss: str, weight: float, before: bool = False) -> dict[str, Any]:
    """The same for a loss that compares place with place: maps of another size are resized."""
    entry = _pair(teacher, student, before, loss=loss, weight=weight)
    return entry if teacher.size == student.size or None in (teacher.size, student.size) else _resized(entry)


def _resized(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"projection": "resize"}


def _with_logits(entries: Entries, teacher: Any, alpha: float, temperature: float) -> Entries:
    """The entries that have a weight, and `hinton`."""
    from .soft_targets import hinton  # which lists the methods of this file

    regression = getattr(getattr(teacher, "config", teacher), "num_labels", 2) == 1
    return [entry for entry in entries if entry["weight"]] + hinton(alpha, temperature, regression)

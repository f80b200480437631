"""Published methods on the ends of stages, most of them for image models; where a model has no stages, on layers.

As in `methods.py`, each returns a `distill_config` list. `alpha` is the weight of soft targets at `temperature`, taken
from that of the labels; at 0, where the papers compare, the labels alone go with the method.
"""

from __future__ import annotations

from typing import Any

from ..config.layer_entries import Entries
from ..errors import ConfigError
from .mapping import config_of
from .methods import hinton
from .soft_targets import is_regression, weighted
from .stage_ends import ModelStage, paired_stages


def similarity_preserving(
    teacher: Any, student: Any, weight: float = 3000.0, alpha: float = 0.0, temperature: float = 4.0
) -> Entries:
    """Which samples of a batch are alike, by the end of the last stage; and the labels.

    Args:
        weight: 3000 in the paper.
        alpha, temperature: of soft targets beside it.

    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019.
    """
    entry = _entry(paired_stages(teacher, student)[-1], "similarity_preserving", weight)
    return _with_hinton([entry], teacher, alpha, temperature)


def fitnet(teacher: Any, student: Any, weight: float = 100.0, alpha: float = 0.0, temperature: float = 4.0) -> Entries:
    """A hint at the end of the middle stage: its map, through a 1x1 convolution where widths differ; and the labels.

    Args:
        weight: of the mean squared error. The paper learns the hint first and the task after it, here they go
            together.
        alpha, temperature: of soft targets beside it.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015.
    """
    pairs = paired_stages(teacher, student)
    entry = _entry(pairs[(len(pairs) - 1) // 2], "fitnet_hint", weight, resize=True)
    return _with_hinton([entry], teacher, alpha, temperature)


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
    entry = _entry(paired_stages(teacher, student)[-1], "factor_transfer", weight)
    entry["args"] = {"paraphraser_weight": 1 / weight} if weight else {}
    return _with_hinton([entry], teacher, alpha, temperature)


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
        _entry(pair, "activation_boundary", weight / 2 ** (len(pairs) - number), before=True, resize=True)
        for number, pair in enumerate(pairs, start=1)
    ]
    return _with_hinton(entries, teacher, alpha, temperature)


def channel_wise(
    teacher: Any, student: Any, weight: float = 50.0, temperature: float = 4.0, alpha: float = 0.0
) -> Entries:
    """Where each channel of the last stage's end looks; and the labels.

    Args:
        weight, temperature: 50 and 4 of feature maps in the paper. The temperature is that of soft targets as well.
        alpha: weight of soft targets.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2021.
    """
    entry = _entry(paired_stages(teacher, student)[-1], "channel_wise", weight, resize=True)
    return _with_hinton([entry | {"args": {"temperature": temperature}}], teacher, alpha, temperature)


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
        names = " and ".join(type(config_of(model)).__name__ for model in (teacher, student))
        raise ConfigError(
            f"ofd, margin_relu: stages of {names} do not end in a BatchNorm and a ReLU. Write its entries by hand: "
            "loss margin_relu on module paths, with projection conv1x1_bn"
        )
    entries = [
        _entry(pair, "margin_relu", weight / 2 ** (len(pairs) - number), before=True)
        | {"projection": "conv1x1_bn" if pair[0].size == pair[1].size else "resize"}
        for number, pair in enumerate(pairs, start=1)
    ]
    return _with_hinton(entries, teacher, alpha, temperature)


def _entry(
    stages: tuple[ModelStage, ModelStage], loss: str, weight: float, before: bool = False, resize: bool = False
) -> dict[str, Any]:
    """The student's stage from the teacher's.

    Args:
        before: compare what goes into their ReLUs.
        resize: the loss compares place with place, so maps of another size are resized.
    """
    teacher, student = stages
    entry = {
        "teacher": teacher.before if before else teacher.after,
        "student": student.before if before else student.after,
        "loss": loss,
        "weight": weight,
    }
    if resize and teacher.size != student.size and None not in (teacher.size, student.size):
        entry["projection"] = "resize"
    return entry


def _with_hinton(entries: Entries, teacher: Any, alpha: float, temperature: float) -> Entries:
    return weighted(entries) + hinton(alpha, temperature, is_regression(teacher))

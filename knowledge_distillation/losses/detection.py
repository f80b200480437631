"""A loss on the predictions of a one-stage detector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .checks import check_choice


def objectness_scaled(
    student: Tensor,
    teacher: Tensor,
    boxes: int = 4,
    box_weight: float = 1.0,
    class_weight: float = 1.0,
    objectness_activation: str = "sigmoid",
    class_activation: str = "softmax",
) -> Tensor:
    """Squared errors of a detector's predictions, of box and class only as far as the teacher sees an object there.

    d(i) = (o_s - o_t)^2 + o_t * (class_weight * sum_c (p_s(c) - p_t(c))^2 + box_weight * sum_k (x_s(k) - x_t(k))^2)

    The last dimension of a feature is x (box), o (objectness) and p (classes), in this order, as in YOLO. Most of a
    one-stage detector's candidates are background: without the factor o_t the student would learn the teacher's
    arbitrary boxes there.

    Args:
        student: (batch, candidates, boxes + 1 + classes) predictions.
        teacher: same shape, the same candidates in the same order.
        boxes: how many numbers a box has, 1 or more; 4, or 5 with an angle.
        box_weight: of the box, 0 or more.
        class_weight: of the classes, 0 or more.
        objectness_activation: `sigmoid` where objectness arrives as a logit, `none` where as a probability.
        class_activation: `softmax` or `sigmoid` where classes arrive as logits, `none` where as probabilities.

    Returns:
        (batch, candidates), each value 0 or more.

    Raises:
        ConfigError: the shapes differ or are too narrow, or an activation is unknown.

    Source: Mehta and Ozturk, Object Detection at 200 Frames Per Second, 2018.
    """
    if student.shape != teacher.shape or not (isinstance(boxes, int) and 1 <= boxes < student.shape[-1]):
        raise ConfigError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: both are (batch, candidates, "
            f"boxes + 1 + classes) with boxes={boxes}"
        )
    check_choice("objectness_activation", objectness_activation, ("sigmoid", "none"))
    check_choice("class_activation", class_activation, ("softmax", "sigmoid", "none"))
    sizes = (boxes, 1, student.shape[-1] - boxes - 1)
    (box_s, object_s, class_s), (box_t, object_t, class_t) = student.split(sizes, -1), teacher.split(sizes, -1)
    object_s, object_t = (_activated(side, objectness_activation).squeeze(-1) for side in (object_s, object_t))
    class_s, class_t = (_activated(side, class_activation) for side in (class_s, class_t))
    of_class, of_box = ((s - t).square().sum(-1) for s, t in ((class_s, class_t), (box_s, box_t)))
    return (object_s - object_t).square() + object_t * (class_weight * of_class + box_weight * of_box)


def _activated(scores: Tensor, activation: str) -> Tensor:
    return {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda z: z}[activation](scores)

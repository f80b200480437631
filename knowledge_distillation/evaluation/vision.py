"""How well a detector finds objects and a segmentation model finds classes: formulas, and evaluators that use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..features.adaptors import accepted, same_inputs


def mean_average_precision(
    predictions: Sequence[Mapping[str, Tensor]], references: Sequence[Mapping[str, Tensor]], iou: float = 0.5
) -> float:
    """Area under the precision-recall curve, its precision made monotone, averaged over the classes there are.

    Predictions of a class are taken by falling score over all pictures. One is right where it overlaps an object of
    its picture and class, which no prediction before it found, by `iou` or more.

    Args:
        predictions: for each picture `scores` (n,), `labels` (n,) and `boxes` (n, 4), centre x, centre y, width,
            height.
        references: for each picture `class_labels` (m,) and `boxes` (m, 4).
        iou: in (0, 1].

    Returns:
        From 0 to 1; 0 where there is no object.

    Raises:
        DataError: there are not as many predictions as pictures.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, 2010, with the area of the challenges since
    then, not its eleven points.
    """
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} pictures have predictions, and {len(references)} have references")
    classes = sorted({int(one) for reference in references for one in reference["class_labels"]})
    found = [_average_precision(predictions, references, one, iou) for one in classes]
    return sum(found) / len(found) if found else 0.0


def _average_precision(
    predictions: Sequence[Mapping[str, Tensor]], references: Sequence[Mapping[str, Tensor]], of: int, iou: float
) -> float:
    scored: list[tuple[float, bool]] = []
    objects = 0
    for predicted, reference in zip(predictions, references, strict=True):
        boxes = reference["boxes"][reference["class_labels"] == of]
        objects += len(boxes)
        mine = predicted["labels"] == of
        scores, order = predicted["scores"][mine].sort(descending=True, stable=True)
        scored += zip(scores.tolist(), _right(predicted["boxes"][mine][order], boxes, iou), strict=True)
    scored.sort(key=lambda one: -one[0])
    right = torch.tensor([hit for _, hit in scored], dtype=torch.float64).cumsum(0)
    precision = right / torch.arange(1, len(scored) + 1)
    best = precision.flip(0).cummax(0)[0].flip(0) if scored else precision
    steps = torch.diff(right / objects, prepend=right.new_zeros(1))
    return float((best * steps).sum())


def _right(boxes: Tensor, objects: Tensor, iou: float) -> list[bool]:
    """Which of the boxes of one picture, the best first, find an object that is not found yet."""
    overlaps = box_iou(boxes, objects)
    hits = []
    for overlap in overlaps:
        value, at = overlap.max(0) if len(objects) else (overlap.new_zeros(()), None)
        hits.append(bool(len(objects)) and bool(value >= iou))
        if hits[-1]:
            overlaps[:, at] = -1.0
    return hits


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (n, 4) and (m, 4), centre x, centre y, width, height: (n, m)."""
    (low, high), (others_low, others_high) = (
        (boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2) for boxes in (one, other)
    )
    sides = torch.minimum(high[:, None], others_high) - torch.maximum(low[:, None], others_low)
    both = sides.clamp(min=0).prod(-1)
    return both / (one[:, 2:].prod(-1)[:, None] + other[:, 2:].prod(-1) - both)


def mean_iou(predictions: Tensor, references: Tensor, classes: int, ignored: int = 255) -> float:
    """Intersection over union of the pixels of a class, averaged over the classes that are predicted or there.

    Args:
        predictions: any shape, class numbers.
        references: same shape; pixels of class `ignored` do not count.
        classes: how many there are.

    Returns:
        From 0 to 1; 0 where no pixel counts.

    Raises:
        DataError: a class number out of range.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, 2010.
    """
    counted = references != ignored
    for numbers, what in ((references[counted], "label"), (predictions[counted], "predicted class")):
        wrong = numbers[(numbers < 0) | (numbers >= classes)]
        if len(wrong):
            raise DataError(f"{what} {int(wrong[0])} is out of range: there are {classes} classes, 0 to {classes - 1}")
    if not counted.any():
        return 0.0
    pairs = references[counted] * classes + predictions[counted]
    table = torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes)
    both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    return float((both[either > 0] / either[either > 0]).mean())


def predicted_objects(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    """Each candidate with its best class, of logits (batch, candidates, classes + 1) whose last is "no object"."""
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    return [{"scores": s, "labels": one, "boxes": b} for s, one, b in zip(scores, labels, boxes, strict=True)]


class DetectionEvaluator:
    """Mean average precision at an overlap of 0.5 of a detector such as YOLOS or DETR.

    Batches hold what the model takes, and `labels`: for each picture `class_labels` and `boxes`.
    """

    primary_metric, greater_is_better = "map50", True

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        predictions: list[Any] = []
        references: list[Any] = []
        for batch, output in _outputs(student, dataloader, accelerator):
            predictions += predicted_objects(output.logits.float().cpu(), output.pred_boxes.float().cpu())
            references += [{name: value.cpu() for name, value in one.items()} for one in batch["labels"]]
        predictions, references = (_of_all(one) for one in (predictions, references))
        return {"map50": mean_average_precision(predictions, references)}


class SegmentationEvaluator:
    """Mean intersection over union of a segmentation model; its logits are brought to the size of the labels."""

    primary_metric, greater_is_better = "mean_iou", True

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        predictions, references, classes = [], [], 0
        for batch, output in _outputs(student, dataloader, accelerator):
            size, classes = batch["labels"].shape[-2:], output.logits.shape[1]
            logits = nn.functional.interpolate(output.logits.float(), size=size, mode="bilinear", align_corners=False)
            predictions.append(logits.argmax(1).cpu().flatten())
            references.append(batch["labels"].cpu().flatten())
        predictions, references = (_of_all(one) for one in (predictions, references))
        return {"mean_iou": mean_iou(torch.cat(predictions), torch.cat(references), classes)}


def _outputs(model: nn.Module, dataloader: Iterable[Any], accelerator: Any) -> Iterable[tuple[Any, Any]]:
    for raw in dataloader:
        batch, _ = same_inputs(accelerator.device, raw)
        with accelerator.autocast():
            yield batch, model(**accepted(batch, model))


def _of_all(parts: list[Any]) -> list[Any]:
    """Those of all processes, in their order."""
    from accelerate.utils import gather_object

    return gather_object(parts)

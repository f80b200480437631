"""Class and box distillation scaled by objectness: a YOLOS detector into a smaller one, on generated scenes.

python examples/detection.py [--seeds 1 2 3] [--smoke]
"""

import argparse
import statistics

import torch
from accelerate.utils import gather_object
from scenes import collate_detection, detection_scenes, outputs
from transformers import YolosConfig, YolosForObjectDetection

from knowledge_distillation import DataError, KnowledgeDistiller, MultiLayerBasedDistillationLoss
from knowledge_distillation.features.adaptors import ready_made_output

LABELS = {"student": "output.loss", "loss": "own_loss"}  # boxes and classes, matched by the model itself
TEACHER = {
    "teacher": "output.detections",
    "student": "output.detections",
    "loss": "objectness_scaled",
    "args": {"objectness_activation": "none"},
    "weight": 20.0,
}


def yolos(layers, width, seed):
    """A detector from nothing. YOLOS leaves its tokens and positions at 0, from which they hardly learn."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_labels": 3}
    places = {"image_size": [48, 48], "patch_size": 8, "num_detection_tokens": 6, "use_mid_position_embeddings": False}
    model = YolosForObjectDetection(YolosConfig(num_hidden_layers=layers, initializer_range=0.1, **sizes, **places))
    for name in ("cls_token", "detection_tokens", "position_embeddings"):
        torch.nn.init.normal_(getattr(model.vit.embeddings, name), std=0.5)
    return model


def detections(output):
    """An output adaptor for detectors such as YOLOS and DETR: the ready-made names, and `output.detections`.

    That is (batch, candidates, 4 + 1 + classes): the box, the probability that there is an object at all, and the
    logits of the classes without "no object": what `objectness_scaled` compares, with `objectness_activation: none`.
    """
    features = ready_made_output(output)
    logits = output["logits"]
    objectness = 1 - logits.softmax(-1)[..., -1:]
    features["output"]["detections"] = torch.cat([output["pred_boxes"], objectness, logits[..., :-1]], dim=-1)
    return features


# --- how well objects are found --------------------------------------------------------------------------------------


class DetectionEvaluator:
    """Mean average precision at an overlap of 0.5 of a detector such as YOLOS or DETR.

    Batches hold the pictures, and `labels`: for each picture `class_labels` and `boxes`.
    """

    primary_metric, greater_is_better = "map50", True

    def __call__(self, student, teacher, dataloader, accelerator):
        predictions, references = [], []
        for batch, output in outputs(student, dataloader, accelerator):
            predictions += predicted_objects(output.logits.float().cpu(), output.pred_boxes.float().cpu())
            references += [{name: value.cpu() for name, value in one.items()} for one in batch["labels"]]
        # Those of all processes, in their order.
        return {"map50": mean_average_precision(gather_object(predictions), gather_object(references))}


def predicted_objects(logits, boxes):
    """Each candidate with its best class, of logits (batch, candidates, classes + 1) whose last is "no object"."""
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    return [{"scores": s, "labels": one, "boxes": b} for s, one, b in zip(scores, labels, boxes, strict=True)]


def mean_average_precision(predictions, references, iou=0.5):
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
    precisions = [average_precision(predictions, references, one, iou) for one in classes]
    return sum(precisions) / len(precisions) if precisions else 0.0


def average_precision(predictions, references, label, iou):
    scored, objects = [], 0
    for predicted, reference in zip(predictions, references, strict=True):
        boxes = reference["boxes"][reference["class_labels"] == label]
        objects += len(boxes)
        mine = predicted["labels"] == label
        scores, order = predicted["scores"][mine].sort(descending=True, stable=True)
        scored += zip(scores.tolist(), hits(predicted["boxes"][mine][order], boxes, iou), strict=True)
    scored.sort(key=lambda one: -one[0])
    right = torch.tensor([hit for _, hit in scored], dtype=torch.float64).cumsum(0)
    precision = right / torch.arange(1, len(scored) + 1)
    best = precision.flip(0).cummax(0)[0].flip(0) if scored else precision
    steps = torch.diff(right / objects, prepend=right.new_zeros(1))
    return float((best * steps).sum())


def hits(boxes, objects, iou):
    """Which of the boxes of one picture, the best first, find an object that is not found yet."""
    if not len(objects):
        return [False] * len(boxes)
    overlaps, right = box_iou(boxes, objects), []
    for overlap in overlaps:
        value, at = overlap.max(0)
        right.append(bool(value >= iou))
        if right[-1]:
            overlaps[:, at] = -1.0
    return right


def box_iou(one, other):
    """Intersection over union of boxes (n, 4) and (m, 4), centre x, centre y, width, height: (n, m)."""
    (low, high), (others_low, others_high) = (
        (boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2) for boxes in (one, other)
    )
    sides = torch.minimum(high[:, None], others_high) - torch.maximum(low[:, None], others_low)
    both = sides.clamp(min=0).prod(-1)
    return both / (one[:, 2:].prod(-1)[:, None] + other[:, 2:].prod(-1) - both)


# --- the runs --------------------------------------------------------------------------------------------------------


def train(student, teacher, entries, data, epochs, seed, rate=2e-3):
    """The same budget for all: what differs is the list. Returns the mean average precision at the end."""
    distiller = KnowledgeDistiller(
        teacher,
        student,
        loss_model=MultiLayerBasedDistillationLoss(entries, detections, detections),
        **data,
        data_collator=collate_detection,
        evaluator=DetectionEvaluator(),
        num_train_epochs=epochs,
        learning_rate=rate,
        mixed_precision="no",
        seed=seed,
        disable_tqdm=True,
    )
    return distiller.train()["eval_map50"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the students; the teacher is one")
    options = parser.parse_args()

    train_rows, dev_rows = (64, 32) if options.smoke else (8000, 300)
    teacher_epochs, epochs = (1, 1) if options.smoke else (12, 4)
    data = {
        "train_dataset": detection_scenes(train_rows, seed=0),
        "eval_dataset": detection_scenes(dev_rows, seed=1),
    }
    teacher = yolos(layers=3, width=64, seed=0)
    score = train(teacher, None, [LABELS], data, teacher_epochs, seed=0, rate=1e-3)
    print(f"teacher     map50 {score:.4f}", flush=True)

    scores = {"plain": [], "distilled": []}
    for seed in options.seeds:
        for name, entries in (("plain", [LABELS]), ("distilled", [LABELS, TEACHER])):
            student = yolos(layers=2, width=32, seed=seed)
            score = train(student, teacher if name == "distilled" else None, entries, data, epochs, seed)
            scores[name].append(score)
            print(f"{name:<11} map50 {score:.4f}  seed {seed}", flush=True)
    for name, values in scores.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name:<11} mean  {statistics.mean(values):.4f}{spread}")


if __name__ == "__main__":
    main()

"""Channel-wise distillation: a SegFormer into a smaller one, on generated scenes.

python examples/segmentation.py [--seeds 1 2 3] [--smoke]
"""

import argparse
import statistics

import torch
from accelerate.utils import gather_object
from scenes import outputs, segmentation_scenes
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from knowledge_distillation import DataError, KnowledgeDistiller

LABELS = {"student": "output.loss", "loss": "own_loss"}  # cross-entropy of each pixel
TEACHER = {
    "teacher": "output.logits",
    "student": "output.logits",
    "loss": "channel_wise",
    "args": {"temperature": 4.0},
    "weight": 3.0,
}


def segformer(widths, decoder, seed):
    """A segmentation model from nothing: background and three shapes."""
    torch.manual_seed(seed)
    stages = {"num_encoder_blocks": 2, "depths": [2, 2], "hidden_sizes": widths, "num_attention_heads": [1, 2]}
    stages |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
    return SegformerForSemanticSegmentation(
        SegformerConfig(**stages, decoder_hidden_size=decoder, num_labels=4, drop_path_rate=0.0, initializer_range=0.1)
    )


class SegmentationEvaluator:
    """Mean intersection over union of a segmentation model; its logits are brought to the size of the labels."""

    primary_metric, greater_is_better = "mean_iou", True

    def __call__(self, student, teacher, dataloader, accelerator):
        predictions, references, classes = [], [], 0
        for batch, output in outputs(student, dataloader, accelerator):
            size, classes = batch["labels"].shape[-2:], output.logits.shape[1]
            logits = torch.nn.functional.interpolate(output.logits.float(), size=size, mode="bilinear")
            predictions.append(logits.argmax(1).cpu().flatten())
            references.append(batch["labels"].cpu().flatten())
        # Those of all processes, in their order.
        predictions, references = (torch.cat(gather_object(one)) for one in (predictions, references))
        return {"mean_iou": mean_iou(predictions, references, classes)}


def mean_iou(predictions, references, classes, ignored=255):
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


def train(student, teacher, entries, data, epochs, seed):
    """The same budget for all: what differs is the list. Returns the mean intersection over union at the end."""
    distiller = KnowledgeDistiller(
        teacher,
        student,
        entries,
        **data,
        evaluator=SegmentationEvaluator(),
        num_train_epochs=epochs,
        learning_rate=3e-3,
        mixed_precision="no",
        seed=seed,
        disable_tqdm=True,
    )
    return distiller.train()["eval_mean_iou"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the students; the teacher is one")
    options = parser.parse_args()

    train_rows, dev_rows = (64, 32) if options.smoke else (2000, 300)
    teacher_epochs, epochs = (1, 1) if options.smoke else (12, 10)
    data = {
        "train_dataset": segmentation_scenes(train_rows, seed=0),
        "eval_dataset": segmentation_scenes(dev_rows, seed=1),
    }
    teacher = segformer(widths=[32, 64], decoder=64, seed=0)
    print(f"teacher     mean_iou {train(teacher, None, [LABELS], data, teacher_epochs, seed=0):.4f}", flush=True)

    scores = {"plain": [], "distilled": []}
    for seed in options.seeds:
        for name, entries in (("plain", [LABELS]), ("distilled", [LABELS, TEACHER])):
            student = segformer(widths=[16, 32], decoder=32, seed=seed)
            score = train(student, teacher if name == "distilled" else None, entries, data, epochs, seed)
            scores[name].append(score)
            print(f"{name:<11} mean_iou {score:.4f}  seed {seed}", flush=True)
    for name, values in scores.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name:<11} mean     {statistics.mean(values):.4f}{spread}")


if __name__ == "__main__":
    main()

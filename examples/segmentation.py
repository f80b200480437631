"""Channel-wise distillation: a SegFormer into a smaller one, on generated scenes.

python examples/segmentation.py [--seeds 1 2 3] [--smoke]
"""

import argparse
import statistics

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.data import segmentation_scenes
from knowledge_distillation.evaluation.vision import SegmentationEvaluator

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

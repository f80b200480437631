"""Class and box distillation scaled by objectness: a YOLOS detector into a smaller one, on generated scenes.

python examples/detection.py [--seeds 1 2 3] [--smoke]
"""

import argparse
import statistics

import torch
from transformers import YolosConfig, YolosForObjectDetection

from knowledge_distillation import KnowledgeDistiller, MultiLayerBasedDistillationLoss
from knowledge_distillation.data import collate_detection, detection_scenes
from knowledge_distillation.evaluation.vision import DetectionEvaluator
from knowledge_distillation.features.adaptors import detections

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

"""A student of a digits classifier, without one real image: from a generator, and from a bank of pseudo-samples.

The images of scikit-learn's digits train the teacher and measure the student; the student learns from made ones alone.

python examples/data_free.py [--source generator|bank] [--seeds 1 2 3] [--smoke]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.data_free import GeneratorSource, Interval, Objective, PseudoSamples
from knowledge_distillation.models import VectorGenerator

LABELS = [{"student": "output.logits", "loss": "cross_entropy"}]
# The logits, and with projections what the stages say: made images say much more than their classes.
ENTRIES = [
    {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "args": {"temperature": 4}},
    {"teacher": "stage{1,2,3}.output", "student": "stage{1,2,3}.output", "loss": "mse", "weight": 10},
    {
        **{"teacher": "stage{1,2,3}.output", "student": "stage{1,2,3}.output"},
        **{"loss": "attention_transfer", "weight": 100},
    },
]
# What the images are made for: the two disagree, the teacher is sure, and its classes come alike.
OBJECTIVE = Objective(disagreement=1, loss="js_divergence", one_hot=0.5, balance=5)


class Stages(nn.Module):
    """Three convolutions and a linear map; no batch statistics, which made images would spoil."""

    def __init__(self, width):
        super().__init__()
        self.stage1 = stage(1, width, 1)
        self.stage2 = stage(width, 2 * width, 2)
        self.stage3 = stage(2 * width, 2 * width, 1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, image):
        return self.fc(self.stage3(self.stage2(self.stage1(image))).mean((2, 3)))


def stage(channels, width, stride):
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(4, width), nn.ReLU())


def digits():
    """1297 rows to train the teacher and 500 to measure on, as batches."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    batches = [{"image": images[rows], "labels": labels[rows]} for rows in order[:1297].split(64)]
    return batches, [{"image": images[rows], "labels": labels[rows]} for rows in order[1297:].split(250)]


def smooth(values):
    """Numbers of 5 by 5 as an image of 8 by 8, as smooth as strokes of a pen; most of it black."""
    return Interval(0, 1, slope=5)(interpolate(values, (8, 8), mode="bicubic", align_corners=False) - 0.3)


def generator(smoke):
    return GeneratorSource(
        VectorGenerator((1, 5, 5), noise_dim=64),
        batch_size=8 if smoke else 64,
        steps_per_epoch=2 if smoke else 100,
        student_iters=1 if smoke else 5,
        generator_lr=1e-3,
        objective=OBJECTIVE,
        scaler=smooth,
    )


def bank(smoke):
    return PseudoSamples(
        (1, 5, 5),
        16 if smoke else 4096,
        batch_size=8 if smoke else 64,
        student_iters=1 if smoke else 5,
        pseudo_lr=0.05,
        objective=OBJECTIVE,
        scaler=smooth,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("generator", "bank"), help="none: both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    options = parser.parse_args()
    sources = {"generator": generator, "bank": bank}
    train, dev = digits()
    settings = {"weight_decay": 0.0, "mixed_precision": "no", "disable_tqdm": True, "lr_scheduler_type": "cosine"}
    for seed in options.seeds:
        torch.manual_seed(seed)
        teacher = Stages(24)
        epochs = {"num_train_epochs": 1 if options.smoke else 12, "seed": seed}
        data = {"train_dataloader": train, "dev_dataloader": dev}
        scores = KnowledgeDistiller(None, teacher, LABELS, **data, learning_rate=3e-3, **epochs, **settings).train()
        print(f"seed {seed} teacher: {100 * scores['eval_accuracy']:.1f}")
        for name in [options.source] if options.source else sources:
            torch.manual_seed(seed)
            source, student = sources[name](options.smoke), Stages(16)
            data = {"train_dataloader": source, "dev_dataloader": dev}
            epochs = {"num_train_epochs": 1 if options.smoke else {"generator": 40, "bank": 60}[name], "seed": seed}
            run = KnowledgeDistiller(teacher, student, ENTRIES, **data, learning_rate=4e-3, **epochs, **settings)
            scores = run.train()  # the last student: no real image chooses one either
            print(f"seed {seed} student, {name}: {100 * scores['eval_accuracy']:.1f}")


if __name__ == "__main__":
    main()

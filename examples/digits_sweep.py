"""A grid of alpha and temperature on scikit-learn's digits: one teacher, whose outputs all runs share.

python examples/digits_sweep.py [--output-dir runs/digits_sweep] [--seeds 1 2 3] [--smoke]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import nn

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.recipes.sweep import sweep, write_results
from knowledge_distillation.recipes.sweep_report import heat_table, markdown_of, picture_of, table_of

GRID = {"alpha": [0.2, 0.4, 0.6, 0.8], "temperature": [2, 4, 8, 16]}
SETTINGS = {"mixed_precision": "no", "disable_tqdm": True, "weight_decay": 0.0}


def network(width, seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))


def digits(rows):
    """The first `rows` of 1297 for training, and 500 to measure on, as batches."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, dev = order[:1297][:rows], order[1297:]
    return [[{"input": images[some], "labels": labels[some]} for some in part.split(32)] for part in (train, dev)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", help="none: a folder that is deleted in the end")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--smoke", action="store_true", help="four short runs, to see that all works")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(options.output_dir or temporary))


def run(options, folder):
    everything, dev = digits(1297)
    teacher = network(32, 0)
    labels = [{"student": "output.logits", "loss": "cross_entropy"}]
    data = {"train_dataloader": everything, "dev_dataloader": dev}
    epochs = {"num_train_epochs": 1 if options.smoke else 15, "learning_rate": 3e-3}
    scores = KnowledgeDistiller(None, teacher, labels, **data, **epochs, **SETTINGS).train()
    print(f"teacher: {scores['eval_accuracy']:.4f}")
    rows_seen = []
    teacher.register_forward_pre_hook(
        lambda module, args, inputs: rows_seen.append(len(inputs["input"])), with_kwargs=True
    )
    train = digits(64 if options.smoke else 300)[0]  # the student has few: the teacher knows more than their labels
    epochs = {"num_train_epochs": 2 if options.smoke else 40, "learning_rate": 1e-2, "eval_steps": 50}

    def make(values, seed, output_dir, teacher_cache):
        soft = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}
        soft |= {"args": {"temperature": values["temperature"]}, "weight": values["alpha"]}
        return KnowledgeDistiller(
            teacher,
            network(4, seed),
            [soft, {**labels[0], "weight": 1 - values["alpha"]}],
            train_dataloader=train,
            dev_dataloader=dev,
            evaluator=accuracy,
            save_steps=200,
            metric_for_best_model="accuracy",
            output_dir=output_dir,
            teacher_cache=teacher_cache,
            seed=seed,
            **epochs,
            **SETTINGS,
        )

    one = make({"alpha": 0.5, "temperature": 2}, 1, None, None)
    one.plan()
    one.close()
    probe = sum(rows_seen)  # binding a run takes a look at its first batch
    rows_seen.clear()
    grid = {"alpha": [0.2, 0.8], "temperature": [2, 8]} if options.smoke else GRID
    result = sweep(make, grid, options.seeds, output_dir=folder, say=print)
    runs, trained = len(result.rows) * len(options.seeds), sum(len(batch["labels"]) for batch in train)
    passed = sum(rows_seen) - runs * probe
    print(f"rows through the teacher in {runs} runs: {passed} of {trained}, and {probe} to bind each run")
    Console().print(table_of(result), heat_table(result))
    write_results(result, markdown_of(result), picture_of(result))
    print(f"best student: {result.best.relative_to(folder)}")


def accuracy(student, teacher, dataloader, accelerator):
    """Without the teacher, which `TaskEvaluator` would measure again in each run."""
    right = [(student(batch["input"]).argmax(-1) == batch["labels"]).float() for batch in dataloader]
    return {"accuracy": torch.cat(right).mean().item()}


if __name__ == "__main__":
    main()

"""Make a table of presets in docs/results.md: one student by every method, the same steps and seeds for each.

    python tests/benchmarks/presets.py RECIPE FOLDER --teacher DIR [--methods hinton tinybert ...] [--seeds 1 2 3]
        [--epochs 2] [--set key=value ...] [--args METHOD=ARGUMENTS ...]

A method of several stages shares out the same number of optimizer steps among them. Runs that FOLDER holds already are
skipped, so the command may be given again, also with further methods. `labels` is the student without a teacher.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from results import evaluations, spread

STAGES = {
    "tinybert": ["intermediate", "prediction"],
    "minilm": ["relations", "labels"],
    "minilm_v2": ["relations", "labels"],
    "mobilebert": ["layers", "prediction"],
}
LABELS = "distill_config=[{student: output.logits, loss: cross_entropy}]"
METHODS = ["labels", "hinton", "layers", "attention_transfer", "tinybert", "pkd", "distilbert", "minilm", "minilm_v2"]
METHODS += ["mobilebert", "rkd", "crd", "byot", "born_again"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--args", dest="arguments", action="append", default=[], help="METHOD={key: value}")
    parser.add_argument("--metric", default="accuracy")
    options = parser.parse_args()
    given = dict(text.split("=", 1) for text in options.arguments)
    for seed in options.seeds:
        for method in options.methods:
            sets = [*options.overrides, *of_method(method, options.epochs, given.get(method))]
            run(options, folder_of(options, method, seed), seed, sets)
    teacher = float("nan")
    columns = [f"best {options.metric}", f"last {options.metric}", "to the teacher", "processor s / epoch"]
    print("| | " + " | ".join(columns) + " |\n|---|---:|---:|---:|---:|")
    for method in options.methods:
        folders = [folder_of(options, method, seed) for seed in options.seeds]
        scores = [evaluations(folder, options.metric) for folder in folders]
        teacher = next((e[-1] for e in (evaluations(f, f"teacher_{options.metric}") for f in folders) if e), teacher)
        best = [max(s) for s in scores]
        gap = 100 * (teacher - sum(best) / len(best))
        seconds = min(float((folder / "seconds").read_text()) for folder in folders) / options.epochs
        print(f"| `{method}` | {spread(best)} | {spread([s[-1] for s in scores])} | {gap:.2f} | {seconds:.0f} |")
    print(f"\nteacher: {100 * teacher:.2f}")


def of_method(method: str, epochs: int, arguments: str | None) -> list[str]:
    """The overrides that make a recipe one of a method, with its epochs shared out among its stages."""
    if method == "labels":
        return [LABELS, "method=null", f"training.num_train_epochs={epochs}"]
    stages = STAGES.get(method, [])
    if len(stages) > epochs:
        raise SystemExit(f"{method} has {len(stages)} stages: give at least as many --epochs")
    shares = [epochs // len(stages) + (i < epochs % len(stages)) for i in range(len(stages))]
    said = ", ".join(f"{{name: {name}, num_train_epochs: {n}}}" for name, n in zip(stages, shares, strict=True))
    sets = [f"method={method}", "distill_config=null", f"training.num_train_epochs={epochs}"]
    return sets + ([f"stages=[{said}]"] if stages else []) + ([f"method_args={arguments}"] if arguments else [])


def folder_of(options: argparse.Namespace, method: str, seed: int) -> Path:
    return options.folder / method / f"seed-{seed}"


def run(options: argparse.Namespace, folder: Path, seed: int, sets: list[str]) -> None:
    """`distill run`, unless the folder holds the finished run; its processor time, start included, goes to `seconds`.

    Processor time is little moved by what else a machine does.
    """
    if (folder / "seconds").exists():
        return
    call = [sys.executable, "-m", "knowledge_distillation", "run", options.recipe, "--teacher", options.teacher]
    call += [part for one in sets for part in ("--set", one)] + ["--seed", str(seed), "-o", str(folder)]
    print("$ distill", *call[3:], flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*call, "--resume"] if folder.exists() else call, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (folder / "seconds").write_text(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f}")


if __name__ == "__main__":
    main()

"""Make one table of docs/results.md: a teacher, and its student with and without it, over several seeds.

    python tests/benchmarks/results.py RECIPE FOLDER [--seeds 1 2 3] [--set key=value ...] [--teacher-seed 1]

Runs `distill finetune` once and `distill run --baseline` for each seed, skips what FOLDER already holds, and prints
mean and spread of the best and of the last score of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--metric", default="accuracy")
    options = parser.parse_args()
    sets = [part for override in options.overrides for part in ("--set", override)]
    teacher = options.folder / "teacher"
    distill("finetune", options.recipe, *sets, "--seed", "1", "-o", str(teacher))
    students: dict[str, list[Path]] = {"student without distillation": [], "student with distillation": []}
    for seed in options.seeds:
        folder = options.folder / f"seed-{seed}"
        given = ("--teacher", str(teacher / "student"), "--seed", str(seed), "-o", str(folder), "--baseline")
        distill("run", options.recipe, *sets, *given)
        students["student with distillation"].append(folder)
        students["student without distillation"].append(folder / "baseline")
    print(f"| | best {options.metric} | last {options.metric} |\n|---|---:|---:|")
    for name, folders in {"teacher": [teacher], **students}.items():
        scores = [evaluations(folder, options.metric) for folder in folders]
        print(f"| {name} | {spread([max(s) for s in scores])} | {spread([s[-1] for s in scores])} |")


def distill(command: str, recipe: str, *arguments: str) -> None:
    """Run one command, unless its output directory says it is done."""
    folder = Path(arguments[arguments.index("-o") + 1])
    if (folder / "done").exists():
        return
    call = [sys.executable, "-m", "knowledge_distillation", command, recipe, *arguments]
    print("$ distill", *call[3:], flush=True)
    subprocess.run([*call, "--resume"] if folder.exists() else call, check=True)
    (folder / "done").touch()


def evaluations(folder: Path, metric: str) -> list[float]:
    lines = (json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines())
    return [line[f"eval_{metric}"] for line in lines if f"eval_{metric}" in line]


def spread(values: list[float]) -> str:
    """Mean, and the smallest and largest where there are several."""
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    return (
        f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f} ({min(percent):.2f} to {max(percent):.2f})"
    )


if __name__ == "__main__":
    main()

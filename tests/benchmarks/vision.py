"""Make the table of image methods in docs/results.md: one student by each method, over several seeds.

    python tests/benchmarks/vision.py FOLDER --data-dir cifar10 [--methods kd at ...] [--seeds 1 2 3] [--set key=value]
        [--shard 0/2]

Runs `distill finetune examples/cifar10.yaml` once, then `distill run` for each method and seed, all with the same
budget; skips what FOLDER already holds, goes on with what was broken off, and prints the table of what is there.
Without `--set` sizes are those for one processor core: pictures of 24 by 24, WRN-16-2 for 20 epochs into WRN-16-1 for
3. `--paper` takes the recipe's own: WRN-28-4 into WRN-16-2, 200 epochs each. `--shard 1/2` does every second run,
beside another process.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import distill, evaluations, spread

RECIPE = str(Path(__file__).parents[2] / "examples" / "cifar10.yaml")
# row -> the options of `distill run`; of the methods the method's own part and the labels, as their papers compare
ROWS: dict[str, list[str]] = {
    "student": ["--method", "hinton", "--alpha", "0"],
    "kd": [],
    "at": ["--method", "at", "--alpha", "0"],
    **{name: ["--method", name] for name in ("sp", "margin_relu", "fitnet", "factor_transfer", "activation_boundary")},
    **{name: ["--method", name] for name in ("rkd", "crd", "channel_wise", "byot")},
}
SMALL = [
    "image_size=24",
    *("teacher.depth=16", "teacher.widen_factor=2", "student.depth=16", "student.widen_factor=1"),
    *("training.num_train_epochs=3", "finetune.num_train_epochs=20", "training.lr_scheduler_type=cosine"),
    *("training.lr_scheduler_kwargs=null", "training.warmup_ratio=0.05", "training.save_steps=100"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--paper", action="store_true", help="the recipe's own sizes and epochs")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th run from the i-th on")
    options = parser.parse_args()
    shard, shards = map(int, options.shard.split("/"))
    wanted = [*([] if options.paper else SMALL), *options.overrides]
    sets = [part for override in wanted for part in ("--set", override)]
    data = ("--data-dir", options.data_dir)
    teacher = options.folder / "teacher"
    distill("finetune", RECIPE, *sets, *data, "--seed", "1", "-o", str(teacher))

    of_student = [part for override in wanted if not override.startswith("teacher.") for part in ("--set", override)]
    for number, (seed, name) in enumerate((seed, name) for seed in options.seeds for name in options.methods):
        if number % shards == shard:
            given = (*of_student, *data, "--teacher", str(teacher / "student"), "--seed", str(seed))
            distill("run", RECIPE, *ROWS[name], *given, "-o", str(options.folder / f"{name}-{seed}"))
    print_table(options.folder, options.methods, options.seeds)


def print_table(folder: Path, methods: list[str], seeds: list[int]) -> None:
    print("| | seeds | best accuracy | last accuracy |\n|---|---:|---:|---:|")
    rows = {"teacher": [folder / "teacher"]} | {m: [folder / f"{m}-{seed}" for seed in seeds] for m in methods}
    for name, runs in rows.items():
        scores = [evaluations(run, "accuracy") for run in runs if (run / "done").exists()]
        if scores:
            cells = (spread([max(one) for one in scores]), spread([one[-1] for one in scores]))
            print(f"| {name} | {len(scores)} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()

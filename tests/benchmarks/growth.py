"""How the time of a step grows: with the number of entries, with the length of the sentences, with the cached samples.

    python tests/benchmarks/growth.py [--only entries ...] [--rounds 5] [--plots FOLDER] [--small] [--json]

`entries`        1 to 36: hidden states of every teacher layer onto every student layer, the deepest first, at 16x64.
`length`         64 to 2,048 tokens in sentences, 2,048 tokens in a batch; hidden states of three layers.
`length, maps`   the same with the attention maps of three layers.
`samples`        1,000 to 1,000,000 samples in a teacher cache: finding and reading a batch of 16 from all over it,
                 each one vector of 64 numbers.

Beside each time is that of the floor (sides.py) for the same batch, measured in turns with it. The table shows their
ratio, and how often it is that of the first line: 1 where both grow alike. For `samples` it is the time of a look-up
by that of the floor's step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import machine, ratios, spread, table
from sides import Job, own_precision
from step import entries, measure

ENTRIES = (1, 2, 4, 9, 18, 36)
LENGTHS = (64, 128, 256, 512, 1024, 2048)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
SERIES = {"entries": "entries", "length": "tokens", "length, maps": "tokens", "samples": "cached samples"}

Point = dict[str, Any]  # x, ours and floor in seconds, ratios of the rounds


def jobs(name: str, basis: Job, small: bool) -> Iterator[tuple[int, Job]]:
    """The value on the axis, and what to train there."""
    if name == "entries":
        layers = range(basis.layers, 0, -1)
        every = [("hidden_states", t, s) for t in layers for s in range(basis.student_layers, 0, -1)]
        for number in ENTRIES[:3] if small else ENTRIES:
            yield number, replace(basis, entries=every[:number])
    else:
        config = "maps" if name.endswith("maps") else "hidden"
        longest = 32 if small else LENGTHS[-1]
        for length in (16, 32) if small else LENGTHS:
            mapped = entries(config, basis.layers)
            yield length, replace(basis, entries=mapped, batch_size=longest // length, length=length)


def steps(name: str, options: argparse.Namespace) -> list[Point]:
    points = []
    for x, job in jobs(name, basis(options), options.small):
        costs = measure(job, ["ours", "floor"], options.rounds)
        seconds = {side: statistics.median(c["seconds"] for c in costs[side]) / job.steps for side in costs}
        points.append({"x": x, **seconds, "ratios": ratios(costs, "ours", "floor")})
    return points


def look_ups(options: argparse.Namespace) -> list[Point]:
    """Batches out of caches of growing size, by the floor's step."""
    job = basis(options)
    floor = [cost["seconds"] / job.steps for cost in measure(job, ["floor"], options.rounds)["floor"]]
    points = []
    for samples in SAMPLES[:1] if options.small else SAMPLES:
        with tempfile.TemporaryDirectory(prefix="teacher-cache-") as folder:
            taken = read_batches(Path(folder), samples, job.batch_size, options.rounds)
        found = [one / other for one, other in zip(taken, floor, strict=True)]
        points.append({"x": samples, "ours": statistics.median(taken), "floor": statistics.median(floor)})
        points[-1]["ratios"] = found
    return points


def read_batches(folder: Path, samples: int, batch_size: int, rounds: int, batches: int = 50) -> list[float]:
    """Seconds of one batch, of each round."""
    from knowledge_distillation.teachers.cache_format import Form
    from knowledge_distillation.teachers.cache_keys import Identity
    from knowledge_distillation.teachers.cache_store import Store

    width, part = 64, 10_000
    form = {"output.pooler_output": Form((width,), "bfloat16")}
    store = Store(folder / "cache", Identity("model", "weights", "", "bfloat16"), form)
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 1 << 63, (samples, 2), dtype=np.uint64)
    for start in range(0, samples, part):
        some = keys[start : start + part]
        values = torch.zeros(len(some), width, dtype=torch.bfloat16)
        store.add(some, {"output.pooler_output": values}, {})
    store.flush()
    times = []
    for _ in range(rounds + 1):  # the first does not count
        asked = [keys[generator.integers(0, samples, batch_size)] for _ in range(batches)]
        begin = time.process_time()
        for batch in asked:
            store.read(store.find(batch), {})
        times.append((time.process_time() - begin) / batches)
    return times[1:]


def basis(options: argparse.Namespace) -> Job:
    shape = (2, 16) if options.small else (16, 64)
    sizes = {"layers": 4, "width": 32, "heads": 2} if options.small else {}
    precision = own_precision(sizes.get("width", 768), shape[0] * shape[1])
    job = Job(entries("hidden", 12), *shape, threads=options.threads, precision=precision, **sizes)
    return replace(job, entries=entries("hidden", job.layers), steps=1 if options.small else 2)


def print_table(name: str, points: list[Point]) -> None:
    first = statistics.median(points[0]["ratios"])
    rows = []
    for point in points:
        times = [f"{1e3 * point[side]:.3g}" for side in ("ours", "floor")]
        grown = statistics.median(point["ratios"]) / first
        rows.append(
            [f"{point['x']:,}", *times, spread(point["ratios"], 4 if name == "samples" else 2), f"{grown:.2f}"]
        )
    what = "look-up ms" if name == "samples" else "ours ms"
    print(f"\n{name}\n\n{table([SERIES[name], what, 'floor ms', 'ratio', 'grown by'], rows, left=0)}", flush=True)


def plot(name: str, points: list[Point], folder: Path) -> None:
    """As SVG, where matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    x = [point["x"] for point in points]
    with plt.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
        for side, mark in (("ours", "o-"), ("floor", "s--")):
            label = "look-up" if name == "samples" and side == "ours" else side
            axes.plot(x, [1e3 * point[side] for point in points], mark, label=label, markersize=4)
        axes.set_xlabel(SERIES[name])
        axes.set_ylabel("ms per step")
        if name == "samples":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if name != "entries":
            axes.set_xscale("log", base=10 if name == "samples" else 2)
        axes.legend(frameon=False)
        figure.savefig(folder / f"growth-{name.replace(', ', '-')}.svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plots", type=Path, help="folder for a plot of each, with matplotlib")
    parser.add_argument("--small", action="store_true", help="small models, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="numbers for a program in place of the tables")
    options = parser.parse_args()
    if options.small:
        options.rounds = min(options.rounds, 2)
    torch.set_num_threads(options.threads)
    found = {}
    if not options.json:
        print(machine(options.threads), flush=True)
    for name in options.only:
        found[name] = look_ups(options) if name == "samples" else steps(name, options)
        if not options.json:
            print_table(name, found[name])
        if options.plots:
            plot(name, found[name], options.plots)
    if options.json:
        json.dump({"machine": machine(options.threads), "series": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

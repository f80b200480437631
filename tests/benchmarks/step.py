"""Time of one training step next to the least it can cost, and to a loop written by hand.

    python tests/benchmarks/step.py [--config hidden ...] [--shape 16x64 ...] [--rounds 12] [--steps 2] [--small]

What the sides do is told in sides.py, how they are timed in interleaved.py. A 12-layer teacher 768 wide teaches three
layers on sentences of random ids, in bf16 where the machine computes in it. Without dropout, ours and the loop by hand
must have the same loss on the first step, or nothing is timed. A ratio above its target is marked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Any

from interleaved import Cost, Worker, machine, ratios, spread, table, take_turns
from sides import Job, first_loss, own_precision, settings_of

MAPPED = {"hidden": (4, 8, 12), "maps": (4, 8, 12), "hidden-8": (3, 6, 8), "maps-8": (3, 6, 8)}
SHAPES = ("16x64", "8x512")
TOLERANCE = {"float32": 1e-5, "bf16": 2e-2}


@dataclass(frozen=True)
class Ratio:
    """Of two sides, and the most it should be."""

    one: str
    other: str
    target: float


def entries(config: str, layers: int) -> list[tuple[str, int, int]]:
    """Three layers of a teacher onto three of a student; with `maps` their attention maps as well."""
    mapped = [max(1, round(layer * layers / 12)) for layer in MAPPED[config]]
    pairs = list(zip(mapped, (1, 2, 3), strict=True))
    kinds = ["hidden_states", "attention"] if config.startswith("maps") else ["hidden_states"]
    return [(kind, teacher, student) for kind in kinds for teacher, student in pairs]


def targets(config: str, shape: str) -> list[Ratio]:
    wide = shape == "8x512"
    to_floor = 1.05 if config.startswith("hidden") else 1.15 if wide else 1.10
    to_plain = 1.0 if not config.endswith("-8") else 0.75 if wide else 0.9
    found = [Ratio("ours", "floor", to_floor), Ratio("ours", "plain", to_plain)]
    return [*found, Ratio("cached", "student", 1.10)]


def see_that_losses_agree(job: Job) -> None:
    """Ours and the loop by hand, one step without dropout.

    Raises:
        SystemExit: they do not.
    """
    for precision in dict.fromkeys(("float32", job.precision)):
        ours, plain = (first_loss(side, replace(job, precision=precision)) for side in ("ours", "plain"))
        if abs(ours - plain) > TOLERANCE[precision] * abs(plain):
            raise SystemExit(f"the first loss differs in {precision}: ours {ours!r}, by hand {plain!r}")


def measure(job: Job, sides: list[str], rounds: int) -> dict[str, list[Cost]]:
    given = {"OMP_NUM_THREADS": str(job.threads)}
    script = str(__file__).replace("step.py", "sides.py")
    workers = {side: Worker([sys.executable, script, job.as_json(side)], given) for side in sides}
    try:
        return take_turns(workers, rounds)
    finally:
        for worker in workers.values():
            worker.close()


HEADINGS = ["config", "shape", "sides", "ratio", "target", "s / step", "MiB"]


def line(config: str, shape: str, ratio: Ratio, costs: dict[str, list[Cost]], steps: int) -> dict[str, Any]:
    found = ratios(costs, ratio.one, ratio.other)
    return {
        "config": config,
        "shape": shape,
        "sides": f"{ratio.one} / {ratio.other}",
        "ratios": found,
        "ratio": statistics.median(found),
        "target": ratio.target,
        "seconds": [statistics.median(c["seconds"] for c in costs[s]) / steps for s in (ratio.one, ratio.other)],
        "mib": [max(cost["mib"] for cost in costs[side]) for side in (ratio.one, ratio.other)],
    }


def cells(found: dict[str, Any]) -> list[str]:
    mark = "" if found["ratio"] <= found["target"] else " (above)"
    times = " / ".join(f"{seconds:.3g}" for seconds in found["seconds"])
    mib = " / ".join(f"{mib:.0f}" for mib in found["mib"])
    ratio = spread(found["ratios"])
    return [found["config"], found["shape"], found["sides"], ratio, f"{found['target']:.2f}{mark}", times, mib]


def jobs(options: argparse.Namespace) -> list[tuple[str, str, Job]]:
    models = {"layers": options.layers, "width": options.width, "heads": options.heads, "threads": options.threads}
    settings = settings_of(options.set)
    made = []
    for shape in options.shape:
        rows, length = map(int, shape.split("x"))
        for config in options.config:
            job = Job(
                entries(config, options.layers),
                rows,
                length,
                options.steps,
                padding=options.padding,
                precision=options.precision or own_precision(options.width, rows * length),
                settings=settings,
                **models,
            )
            made.append((config, shape, job))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", choices=MAPPED, default=list(MAPPED))
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="ROWSxLENGTH")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="of one pass")
    parser.add_argument("--precision", choices=TOLERANCE, help="None: bf16 where the machine computes in it")
    parser.add_argument("--padding", type=float, default=0.0, help="share of the tokens")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our side")
    parser.add_argument("--without", nargs="+", default=[], metavar="SIDE", help="sides to leave out")
    parser.add_argument("--small", action="store_true", help="two rounds of small models, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="a list of lines in place of the table")
    options = parser.parse_args()
    if options.small:
        options.shape, options.layers, options.width, options.heads = ["2x16"], 4, 32, 2
        options.rounds, options.steps = 2, 1
    lines = []
    if not options.json:
        print(f"{machine(options.threads)}\n", flush=True)
        print(table(HEADINGS, [], left=3), flush=True)
    for config, shape, job in jobs(options):
        see_that_losses_agree(job)
        wanted = [r for r in targets(config, shape) if not {r.one, r.other} & set(options.without)]
        costs = measure(job, list(dict.fromkeys(s for r in wanted for s in (r.one, r.other))), options.rounds)
        for ratio in wanted:
            lines.append(line(config, shape, ratio, costs, options.steps))
            if not options.json:
                print(f"| {' | '.join(cells(lines[-1]))} |", flush=True)
    if options.json:
        json.dump({"machine": machine(options.threads), "lines": lines}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

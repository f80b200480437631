"""Time and memory of every loss, next to the textbook formula of `naive.py`.

    python tests/benchmarks/losses.py [--only NAME ...] [--repeat 7] [--small] [--json]

Both sides of a line are first run once on equal inputs: values and gradients have to be the same. Then one call is the
forward pass, the mean of its values and the backward pass, in float32, without a mask, with the arguments at their
defaults.

Time is processor time of one thread, so that other processes on the machine move it little; on a GPU that between two
CUDA events. The two sides take turns; a line shows the median of each, and the median of the ratios of neighbours.

Memory is the most that torch held at any moment of one call beyond what it held before (inputs, parameters, buffers),
the gradients included: the running sum of the allocations and releases that torch.profiler records, at its highest.
What MKL and oneDNN take for themselves inside an operation is not recorded. On a GPU it is `max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler tells of its starts and stops

import naive
import torch
from torch import Tensor, nn

from knowledge_distillation.losses.labels import hard_cross_entropy, label_mse
from knowledge_distillation.losses.table import LOSSES, spec_behind

Shapes = dict[str, tuple[int, ...]]
FULL: Shapes = {
    "vector": (32, 768),
    "tokens": (32, 128, 768),
    "heads": (32, 12, 128, 64),
    "attention": (8, 12, 512, 512),
    "map": (8, 12, 512, 512),
}
SMALL: Shapes = {
    "vector": (8, 64),
    "tokens": (4, 16, 64),
    "heads": (4, 2, 16, 8),
    "attention": (2, 2, 32, 32),
    "map": (4, 6, 16, 16),
}
OF_LOSS = {"nst": {"tokens": (8, 128, 256)}}  # in full: 32 samples of 768 channels would be 9 GiB for the naive kernel
NUMBERS = {  # losses that compare several features: how many of the student's with how many of the teacher's
    "ensemble_cross_entropy": (1, 3),
    "ensemble_kl": (1, 3),
    "adversarial": (1, 3),
    "bert_emd": (3, 6),
    "fsp": (2, 2),
    "review_kd": (3, 3),
}
NEEDED: dict[str, dict[str, Any]] = {"crd": {"num_samples": 50000}, "margin_relu": {"margin": -0.5}}
NEEDED_SMALL = {**NEEDED, "crd": {"num_samples": 40, "negatives": 6, "embedding_size": 3}}
SHORTEST = 0.05  # seconds: faster calls are timed several at once


@dataclass(frozen=True)
class Case:
    """One line of the table: a loss on one kind of feature. A loss with several names is one line."""

    name: str
    kind: str
    function: Any = field(repr=False)
    small: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        if self.name == "label_mse":
            return (32, 1)
        return SMALL[self.kind] if self.small else OF_LOSS.get(self.name, {}).get(self.kind, FULL[self.kind])

    @property
    def numbers(self) -> tuple[int, int]:
        return NUMBERS.get(self.name, (1, 1))


def cases(small: bool = False) -> list[Case]:
    lines = {}
    for method in LOSSES:
        for kind, function in method.functions.items() if method.name != "own_loss" else ():  # nothing computed there
            if kind == "positions":  # rows of classes, as a vector is
                continue
            name = getattr(function, "name_of", function.__name__)
            lines[name, kind] = Case(name, kind, function, small)
    return list(lines.values())


@dataclass
class Side:
    """A function to run, and the tensors that get gradients."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]

    def run(self) -> Tensor:
        for leaf in self.leaves:
            leaf.grad = None
        values = self.call()
        values.mean().backward()
        return values.detach()


def sides(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Side, Side]:
    """The loss and its naive formula on the same random inputs, with equal parameters of their own."""
    torch.manual_seed(0)
    hard = case.function in (hard_cross_entropy, label_mse)

    def features(number: int) -> list[Tensor]:
        made = [torch.randn(case.shape, dtype=dtype, device=device) for _ in range(number)]
        if spec_behind(case.function).probabilities:
            return [one.softmax(-1) for one in made]
        # more or less of one direction: wide samples of random ones are all equally far from each other
        shares = 2 * torch.rand(number, case.shape[0], *[1] * (len(case.shape) - 1), dtype=dtype, device=device)
        return [
            one + share * torch.randn(case.shape[1:], dtype=dtype, device=device)
            for one, share in zip(made, shares, strict=True)
        ]

    student, teacher = (features(number) for number in case.numbers)
    student = [one.requires_grad_() for one in student]
    context: dict[str, Tensor] = {}
    labels = torch.randint(case.shape[-1], case.shape[:-1], device=device)
    if case.name == "label_mse":
        labels = torch.randn(case.shape[0], dtype=dtype, device=device)
    elif case.name == "dkd":
        context["labels"] = labels
    elif case.name == "crd":
        context["sample_index"] = torch.arange(case.shape[0], device=device)
    elif case.name in ("margin_mse", "listwise_kl"):
        context["query"] = torch.arange(case.shape[0], device=device) // 4
    several = case.name in NUMBERS
    pair = (student, labels if hard else teacher) if several else (student[0], labels if hard else teacher[0])
    formula = getattr(naive, case.name)
    if not isinstance(case.function, type):
        made = lambda function: lambda: function(*pair, **context)  # noqa: E731
        return Side(made(case.function), student), Side(made(formula), student)
    needed = (NEEDED_SMALL if case.small else NEEDED).get(case.name, {})
    module: nn.Module = case.function(*pair, **needed).to(device, dtype)
    twin = copy.deepcopy(module)
    return (
        Side(lambda: module(*pair, **context), [*student, *module.parameters()]),
        Side(lambda: formula(twin, *pair, **context), [*student, *twin.parameters()]),
    )


def check(case: Case, ours: Side, theirs: Side, tolerance: float) -> None:
    """See that both sides give the same values and gradients, on a second call as well, where there is a state.

    Raises:
        AssertionError: they do not.
    """
    for _ in range(2 if isinstance(case.function, type) else 1):
        results = []
        for side in (ours, theirs):
            torch.manual_seed(1)  # the same negatives are drawn
            results.append([side.run(), *(leaf.grad for leaf in side.leaves)])
        for number, (found, expected) in enumerate(zip(*results, strict=True)):
            if expected is None:
                expected = torch.zeros_like(theirs.leaves[number - 1])
            found = torch.zeros_like(expected) if found is None else found
            scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
            what = f"{case.name} on {case.kind}: {'values' if number == 0 else f'gradient {number}'}"
            torch.testing.assert_close(
                found / scale, expected / scale, rtol=0, atol=tolerance, msg=lambda m, what=what: f"{what}: {m}"
            )
            del found, expected, scale


def peak_memory(side: Side, cuda: bool = False) -> int:
    """The most bytes held during one call beyond those held before it; see the module's docstring."""
    for leaf in side.leaves:
        leaf.grad = None
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        side.run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def seconds(side: Side, times: int, cuda: bool = False) -> float:
    """Of one call, the mean of several."""
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            side.run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / times
    begin = time.process_time()
    for _ in range(times):
        side.run()
    return (time.process_time() - begin) / times


@dataclass(frozen=True)
class Line:
    loss: str
    feature: str
    ms: float
    ms_naive: float
    time_ratio: float
    mib: float
    mib_naive: float
    memory_ratio: float

    @property
    def cells(self) -> list[str]:
        times = [f"{self.ms:.3g}", f"{self.ms_naive:.3g}", f"{self.time_ratio:.2f}"]
        return [
            f"`{self.loss}`",
            self.feature,
            *times,
            f"{self.mib:.3g}",
            f"{self.mib_naive:.3g}",
            f"{self.memory_ratio:.2f}",
        ]


def measure(case: Case, repeat: int, device: str) -> Line:
    cuda = device == "cuda"
    pair = sides(case, device)
    check(case, *pair, tolerance=2e-3)
    mib = [peak_memory(side, cuda) / 2**20 for side in pair]
    times = [max(1, round(SHORTEST / max(seconds(side, 1, cuda), 1e-6))) for side in pair]
    taken = [[seconds(side, number, cuda) for side, number in zip(pair, times, strict=True)] for _ in range(repeat)]
    ms = [1e3 * statistics.median(column) for column in zip(*taken, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in taken)
    shape = f"{case.kind} {list(case.shape)}" + (" {} with {}".format(*case.numbers) if case.name in NUMBERS else "")
    return Line(case.name, shape, *ms, ratio, *mib, mib[0] / mib[1])


HEADINGS = ["loss", "kind and shape", "ms", "ms naive", "ratio", "MiB", "MiB naive", "ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="losses by these names; else all")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="a list of lines in place of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = [case for case in cases(options.small) if options.only is None or case.name in options.only]
    if not asked:
        raise SystemExit(f"no loss of these names: {', '.join(options.only)}")
    lines = []
    if not options.json:
        print(f"| {' | '.join(HEADINGS)} |\n|---|---|{'---:|' * 6}")
    for case in asked:
        lines.append(measure(case, options.repeat, device))
        if not options.json:
            print(f"| {' | '.join(lines[-1].cells)} |", flush=True)
    if options.json:
        json.dump([asdict(line) for line in lines], sys.stdout, indent=1)


if __name__ == "__main__":
    main()

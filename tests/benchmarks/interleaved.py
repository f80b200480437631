"""Compare programs that train by letting them take turns, each in a process of its own.

A worker holds its models and, when told, makes one pass over its batches: `Meter` is its end, `Worker` the driver's.
Other work on the machine, and whatever the first of a round pays more for, then meet all sides alike: in every round
the sides come in another order, and a ratio is one of two passes of the same round.

The time of a pass is the processor time of the worker's process, which neighbours move little; on a GPU that between
two CUDA events.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Cost = dict[str, Any]  # of one pass: seconds, wall, mib, loss, and what else its worker tells


# --- the worker's end --------------------------------------------------------------------------------------------


class Meter:
    """Waits for the driver, times what is between `begin` and `end`, and tells what it cost.

    From its making on, what a library prints to the standard output goes to the standard error.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.cuda = torch.cuda.is_available()
        self.number = 0  # passes done
        self.loss: Any = None  # of the latest step, where the program says it

    def begin(self) -> None:
        """Wait until the driver asks for a pass; the process ends when it asks for no more."""
        self._say({"ready": self.number})
        if not sys.stdin.readline():
            raise SystemExit
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def end(self, more: Callable[[], Cost] = dict) -> None:
        """Tell the cost, and what `more`, which is not timed, adds to it."""
        if self.cuda:
            self._events[1].record()
            torch.cuda.synchronize()
            seconds = self._events[0].elapsed_time(self._events[1]) / 1e3
            mib = torch.cuda.max_memory_allocated() / 2**20
        else:
            seconds = time.process_time() - self._processor
            mib = peak_memory()
        wall = time.perf_counter() - self._wall
        self.number += 1
        loss = None if self.loss is None else float(self.loss)
        self._say({"seconds": seconds, "wall": wall, "mib": mib, "loss": loss, **more()})

    def _say(self, line: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def peak_memory() -> float:
    """Most MiB this program ever held; `ru_maxrss` would count the driver it was started from as well."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Passes:
    """An iterable of batches for a loop that is not ours: each time it is iterated is one pass of the meter.

    Args:
        batches: number of the pass -> its batches.
        more: what to tell after a pass beside its cost.
    """

    def __init__(self, meter: Meter, batches: Callable[[int], Sequence[Any]], more: Callable[[], Cost] = dict) -> None:
        self.meter, self.batches, self.more = meter, batches, more

    def __len__(self) -> int:
        return len(self.batches(self.meter.number))

    def __iter__(self) -> Iterator[Any]:
        batches = self.batches(self.meter.number)
        self.meter.begin()
        yield from batches
        self.meter.end(self.more)


# --- the driver's end --------------------------------------------------------------------------------------------


class Worker:
    """A process that makes a pass when called.

    Args:
        command: what to run; it makes a `Meter`.
        environment: variables beside those of this process.
        log: the file for what it prints; None for this process's standard error.
    Raises:
        RuntimeError: here or in a call, it ended.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.command, self.log = list(command), log
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if log is None else log.open("w"),
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._read()

    def __call__(self) -> Cost:
        print("pass", file=self._process.stdin, flush=True)
        cost = self._read()
        self._line()  # it is at rest again, or has ended after its last pass
        return cost

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _read(self) -> Cost:
        line = self._line()
        if not line:
            code = self._process.wait()
            said = "" if self.log is None else f":\n{self.log.read_text()[-3000:]}"
            raise RuntimeError(f"{' '.join(self.command)} ended with code {code}{said}")
        return json.loads(line)


def take_turns(workers: Mapping[str, Worker], rounds: int, warmup: int = 1) -> dict[str, list[Cost]]:
    """The costs of `rounds` passes of each worker, after `warmup` passes that do not count.

    The order turns by one place from round to round, and is reversed in every other turn of all.
    """
    names = list(workers)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number // len(names) % 2 == 0 else reversed(order):
            cost = workers[name]()
            if number >= 0:
                costs[name].append(cost)
    return costs


def ratios(costs: Mapping[str, Sequence[Cost]], one: str, other: str) -> list[float]:
    """Of each round, the time of a side by that of another."""
    return [a["seconds"] / b["seconds"] for a, b in zip(costs[one], costs[other], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest."""
    shown = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return "{} ({} to {})".format(*shown)


def machine(threads: int) -> str:
    """Where this runs, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    bf16 = next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), "no bf16")
    plural = "" if threads == 1 else "s"
    return f"{os.cpu_count()} cores ({bf16}), {threads} thread{plural}, torch {torch.__version__}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """In Markdown; all but the first `left` columns are set to the right."""
    lines = [headings, ["---"] * left + ["---:"] * (len(headings) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

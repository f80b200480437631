"""Time and memory of logit distillation with a large vocabulary: logits of the whole batch, and chunk by chunk.

    python tests/benchmarks/vocabulary.py [--tokens 2048] [--vocabulary 151936] [--width 512] [--teacher-width 1024]
        [--repeat 3] [--dtype float32 bfloat16] [--loss NAME ...] [--hard] [--top-k K] [--small] [--json]

One call takes hidden states of student and teacher through their heads, compares the logits, and gives hidden states
and the student's head their gradients. The plain form holds the logits as the model has them, and calls the loss on
them in float32; the other is `head_loss`. Parameters are float32; in bfloat16 the heads run as under autocast.

Time is processor time of one thread, the two in turns, the median of each. Memory is the most that torch held during a
call beyond what it held before it, and the same without the gradients of hidden states and head, which both have to
make (see `peak_memory` of losses.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from losses import Side, peak_memory, seconds
from torch import Tensor

from knowledge_distillation.features.deferred import HeadLogits, TopKLogits
from knowledge_distillation.losses import get_loss
from knowledge_distillation.losses.labels import hard_cross_entropy
from knowledge_distillation.objective.fused.vocabulary import HeadTerm, head_loss


@dataclass(frozen=True)
class Line:
    loss: str
    dtype: str
    seconds: float
    seconds_plain: float
    mib: float
    mib_plain: float
    gradients_mib: float

    @property
    def beyond(self) -> tuple[float, float]:
        return self.mib - self.gradients_mib, self.mib_plain - self.gradients_mib

    @property
    def cells(self) -> list[str]:
        ours, plain = self.beyond
        time = [f"{self.seconds:.3g}", f"{self.seconds_plain:.3g}", f"{self.seconds / self.seconds_plain:.2f}"]
        memory = [f"{ours:.4g}", f"{plain:.4g}", f"1/{plain / max(ours, 1):.1f}"]
        return [f"`{self.loss}`", self.dtype, *time, *memory, f"{self.mib:.4g}", f"{self.mib_plain:.4g}"]


HEADINGS = ["loss", "heads in", "s", "s plain", "ratio", "MiB", "MiB plain", "ratio", "with gradients", "plain"]


def sides(options: argparse.Namespace, loss: Any, dtype: torch.dtype, device: str) -> tuple[Side, Side]:
    """The two forms on the same random inputs."""
    torch.manual_seed(0)

    def states(width: int) -> Tensor:
        return torch.randn(1, options.tokens, width, device=device)

    def head(width: int) -> Tensor:
        return torch.randn(options.vocabulary, width, device=device) / width**0.5

    leaves = [states(options.width).requires_grad_(), head(options.width).requires_grad_()]
    teacher: Any = HeadLogits(states(options.teacher_width).to(dtype), head(options.teacher_width).to(dtype))
    if options.top_k:
        teacher = TopKLogits.of(teacher.tensor(), options.top_k)
    labels = torch.randint(options.vocabulary, (1, options.tokens), device=device)
    rows = torch.ones(1, options.tokens, device=device)

    def chunked() -> Tensor:
        parts = [HeadTerm(loss, teacher, rows)]
        parts += [HeadTerm(hard_cross_entropy, labels, rows)] if options.hard else []
        return head_loss(HeadLogits(*leaves, precision=dtype), parts)[0]

    def plain() -> Tensor:
        student = F.linear(*(leaf.to(dtype) for leaf in leaves)).float()
        values = (loss(student, teacher.tensor().float()) * rows).sum()
        return values + (hard_cross_entropy(student, labels) * rows).sum() if options.hard else values

    return Side(chunked, leaves), Side(plain, leaves)


def check(pair: Iterable[Side], dtype: torch.dtype) -> None:
    """See that both give the same sum and gradients.

    Raises:
        AssertionError: they do not.
    """
    ours, plain = ([side.run(), *(leaf.grad for leaf in side.leaves)] for side in pair)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for found, expected in zip(ours, plain, strict=True):
        difference, scale = (found - expected).abs().max(), expected.abs().max()
        assert difference <= tolerance * scale, f"{difference} of {scale}"


def measure(options: argparse.Namespace, name: str, dtype: torch.dtype, device: str) -> Line:
    cuda = device == "cuda"
    pair = sides(options, get_loss(name, "tokens"), dtype, device)
    check(pair, dtype)
    mib = [peak_memory(side, cuda) / 2**20 for side in pair]
    taken = [[seconds(side, 1, cuda) for side in pair] for _ in range(options.repeat)]
    times = [statistics.median(column) for column in zip(*taken, strict=True)]
    gradients = sum(leaf.nbytes for leaf in pair[0].leaves) / 2**20
    called = f"{name} + cross_entropy" if options.hard else name
    return Line(called, str(dtype).removeprefix("torch."), *times, *mib, gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--teacher-width", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--loss", nargs="+", default=["kl_divergence"])
    parser.add_argument("--hard", action="store_true", help="cross-entropy with labels beside it")
    parser.add_argument("--top-k", type=int, help="the teacher from its k likeliest classes")
    parser.add_argument("--small", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="a list of lines in place of the table")
    options = parser.parse_args()
    if options.small:
        options.tokens, options.vocabulary, options.width, options.teacher_width = 64, 1000, 8, 16
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [measure(options, name, getattr(torch, dtype), device) for name in options.loss for dtype in options.dtype]
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return
    print(f"| {' | '.join(HEADINGS)} |\n|---|---|{'---:|' * 8}")
    for line in lines:
        print(f"| {' | '.join(line.cells)} |")


if __name__ == "__main__":
    main()

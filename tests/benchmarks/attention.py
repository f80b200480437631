"""Time and memory of the losses on attention maps, from whole maps and from queries and keys.

    python tests/benchmarks/attention.py [--only NAME ...] [--layers 1] [--repeat 5] [--small] [--bf16] [--step]

One call computes the loss of one sample or more (about as many values at every length) from the queries and keys of
both models, as a mapped layer hands them out, and its gradients to those of the student: plain, with both maps whole,
and fused, part by part. Both are first run once, and have to give the same. `--step` measures a whole training step
instead: BERT of 4 layers with 12 heads and width 768, taught by one of 12, its maps always built or never.

Time is processor time of one thread, on a GPU that between two events; the two take turns, and a line shows the median
of each and the median of the ratios of neighbours. Memory is the most that is held at any moment of a call beyond what
was held before it, as in losses.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from losses import Side, peak_memory, seconds
from torch import Tensor

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.features import attention
from knowledge_distillation.features.deferred import AttentionMap
from knowledge_distillation.losses.attention import attention_cross_entropy, attention_kl, attention_mse
from knowledge_distillation.objective.fused.forms import FUSED
from knowledge_distillation.training.prepare import prepare
from knowledge_distillation.training.step import step

LOSSES = {
    "mse": (attention_mse, False),
    "mse-of-scores": (attention_mse, True),
    "kl": (attention_kl, False),
    "cross-entropy": (attention_cross_entropy, False),
}
FULL = [(16, 12, 64, 64), (8, 12, 512, 64), (1, 12, 2048, 64)]
SMALL = [(2, 2, 16, 8), (1, 2, 64, 8)]
STEPS, SMALL_STEPS = [(16, 64), (8, 512)], [(2, 8)]


def sides(name: str, shape: tuple[int, ...], layers: int, dtype: torch.dtype, device: str) -> tuple[Side, Side]:
    """The loss from whole maps and from parts, of layers one after the other, on the same random inputs."""
    torch.manual_seed(0)
    function, scores = LOSSES[name]
    batch, _, length, _ = shape

    def maps(learns: bool) -> list[AttentionMap]:
        drawn = [torch.randn(shape, dtype=dtype, device=device, requires_grad=learns) for _ in range(2 * layers)]
        return [AttentionMap(*drawn[n : n + 2], scores=scores) for n in range(0, 2 * layers, 2)]

    student, teacher = maps(True), maps(False)
    rows = torch.ones(batch, length, device=device)

    def plain(ours: AttentionMap, theirs: AttentionMap) -> Tensor:
        return function(ours.tensor().float(), theirs.tensor().float()).sum()

    def fused(ours: AttentionMap, theirs: AttentionMap) -> Tensor:
        return FUSED[function](ours, theirs, rows, None)

    def side(call: Callable[[AttentionMap, AttentionMap], Tensor]) -> Side:
        leaves = [part for one in student for part in one.parts.values()]
        return Side(lambda: torch.stack([call(*pair) for pair in zip(student, teacher, strict=True)]).sum(), leaves)

    return side(plain), side(fused)


def step_sides(name: str, shape: tuple[int, int], dtype: torch.dtype, device: str, small: bool) -> tuple[Side, Side]:
    """A training step of the distiller, with maps that are built and with maps that are not."""
    from transformers import BertConfig, BertForSequenceClassification

    batch, length = shape
    width, heads, depths = (16, 2, (1, 2)) if small else (768, 12, (4, 12))
    ids = torch.randint(1000, (batch, length))
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(batch, dtype=torch.long)}]

    def side(largest_built: int) -> Side:
        torch.manual_seed(0)
        student, teacher = (
            BertForSequenceClassification(
                BertConfig(
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_attention_heads=heads,
                    num_hidden_layers=depth,
                    max_position_embeddings=length,
                    vocab_size=1000,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                )
            )
            for depth in depths
        )
        output = "attention_scores" if LOSSES[name][1] else "attention"
        loss = {"mse": "mse", "mse-of-scores": "mse", "kl": "attention_kl"}.get(name, "attention_cross_entropy")
        entries = [
            {"teacher": f"layer{n * depths[1] // depths[0]}.{output}", "student": f"layer{n}.{output}", "loss": loss}
            for n in range(1, depths[0] + 1)
        ]
        run = KnowledgeDistiller(
            teacher,
            student,
            entries,
            train_dataloader=data,
            mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
            disable_tqdm=True,
            max_steps=1000,
            device=device,
        )
        attention.SMALL = largest_built
        prepare(run.run)

        def call() -> Tensor:
            attention.SMALL = largest_built
            return step(run.run, [run.idle_batch])["loss"].clone().requires_grad_()

        return Side(call, [])

    return side(1 << 62), side(-1)


def line(pair: tuple[Side, Side], repeat: int, cuda: bool, tolerance: float) -> list[str]:
    values = [side.run() for side in pair]
    torch.testing.assert_close(values[1], values[0], rtol=tolerance, atol=0)
    mib = [peak_memory(side, cuda) / 2**20 for side in pair]
    taken = [[seconds(side, 1, cuda) for side in pair] for _ in range(repeat)]
    ms = [1e3 * statistics.median(column) for column in zip(*taken, strict=True)]
    ratio = statistics.median(fused / plain for plain, fused in taken)
    return [*(f"{one:.3g}" for one in ms), f"{ratio:.2f}", *(f"{one:.3g}" for one in mib), f"{mib[1] / mib[0]:.3f}"]


HEADINGS = ["loss", "shape", "ms plain", "ms fused", "ratio", "MiB plain", "MiB fused", "ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--bf16", action="store_true", help="queries and keys in bfloat16; a step under autocast")
    parser.add_argument("--step", action="store_true", help="a whole training step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, tolerance = (torch.bfloat16, 0.05) if options.bf16 else (torch.float32, 1e-4)
    print(f"| {' | '.join(HEADINGS)} |\n|---|---|{'---:|' * 6}")
    shapes = (STEPS, SMALL_STEPS) if options.step else (FULL, SMALL)
    for name in options.only:
        for shape in shapes[options.small]:
            if options.step:
                pair = step_sides(name, shape, dtype, device, options.small)
            else:
                pair = sides(name, shape, options.layers, dtype, device)
            cells = line(pair, options.repeat, device == "cuda", tolerance)
            print(f"| {name} | {'×'.join(map(str, shape))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

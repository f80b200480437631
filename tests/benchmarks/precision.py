"""Processor time of an epoch in float32, in bf16, and in what `auto` chooses; the least of rounds in turns.

python tests/benchmarks/precision.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import time

import torch
from sides import Job

from knowledge_distillation import KnowledgeDistiller

PRECISIONS = ("no", "bf16", "auto")
JOBS = {  # hidden states of three layers, or two
    "4 layers of width 32, 8 x 16": Job([("hidden_states", 4, 2)], 8, 16, 60, 4, 2, 32, 2),
    "12 layers of width 128, 32 x 64": Job([("hidden_states", 12, 3)], 32, 64, 6, 12, 3, 128, 4),
    "12 layers of width 768, 8 x 32": Job([("hidden_states", 12, 3)], 8, 32, 2),
}


def epoch(job: Job, precision: str) -> float:
    """Seconds of this process, the making of the distiller and its measurement aside."""
    run = KnowledgeDistiller(
        job.model(job.layers, "sdpa"),
        job.model(job.student_layers, "sdpa"),
        job.distill_config(),
        train_dataloader=job.batches(),
        device="cpu",
        mixed_precision=precision,
        disable_tqdm=True,
        num_train_epochs=3,
    )
    run.train_epoch()
    begin = time.process_time()
    run.train_epoch()
    took = time.process_time() - begin
    run.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name, job in JOBS.items():
        times = [[epoch(job, precision) for precision in PRECISIONS] for _ in range(rounds)]
        least = [min(column) / job.steps * 1e3 for column in zip(*times, strict=True)]
        cells = " | ".join(f"{milliseconds:.1f}" for milliseconds in least)
        print(f"| {name} | {cells} | {least[2] / min(least[:2]):.3f} |", flush=True)


if __name__ == "__main__":
    main()

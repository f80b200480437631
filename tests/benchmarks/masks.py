"""Processor time of a step whose soft losses count labelled tokens, against one that counts all that is no padding.

python tests/benchmarks/masks.py [pairs]
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowledge_distillation import KnowledgeDistiller


def llama(layers: int, classes: int) -> Any:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=classes, num_hidden_layers=layers, **sizes))


def distiller(classes: int, mask: str) -> KnowledgeDistiller:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, classes, (8, 64), generator=generator)
    labels = ids.masked_fill(torch.arange(64) < 24, -100)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}] * 4
    torch.manual_seed(0)
    entry = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "mask": mask}
    options = {"mixed_precision": "no", "device": "cpu", "disable_tqdm": True, "num_train_epochs": 10**6}
    return KnowledgeDistiller(llama(4, classes), llama(2, classes), [entry], train_dataloader=batches, **options)


def main(pairs: int) -> None:
    torch.set_num_threads(1)
    for classes in (2000, 16000):
        runs = {mask: distiller(classes, mask) for mask in ("labels", "attention")}
        for run in runs.values():
            run.train_epoch()
        ratios = []
        for number in range(pairs):
            spent = {}
            for mask in list(runs)[:: 1 if number % 2 else -1]:
                begun = time.process_time()
                runs[mask].train_epoch()
                spent[mask] = time.process_time() - begun
            ratios.append(spent["labels"] / spent["attention"])
        low, high = min(ratios), max(ratios)
        step = 1e3 * spent["attention"] / 4
        print(f"{classes} classes: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), step {step:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)

"""A BERT in any precision and rows of uneven length, for runs that have to give the same however they are batched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification


def bert(layers: int, width: int, seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).to(dtype)


def batches(number: int, size: int) -> list[dict[str, Tensor]]:
    """The same rows whatever the size: of 1 to 12 tokens, padded to the batch's longest.

    One row in five has no label, and none of rows 8 to 15: the second of four batches of 8.
    """
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 40, (number, 12), generator=generator)
    lengths = torch.randint(1, 13, (number,), generator=generator)
    row = torch.arange(number)
    labels = torch.where((row % 5 == 0) | (row // 8 == 1), -100, ids[:, 0] % 3)
    made = []
    for start in range(0, number, size):
        rows = slice(start, min(start + size, number))
        longest = int(lengths[rows].max())
        mask = (torch.arange(longest) < lengths[rows, None]).long()
        made.append({"input_ids": ids[rows, :longest] * mask, "attention_mask": mask, "labels": labels[rows]})
    return made

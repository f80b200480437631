"""A bidirectional LSTM that classifies a sentence, or a pair of sentences that one encoder reads apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ..errors import ConfigError
from .configs import BiLSTMConfig
from .own_model import OwnModel, offer


@dataclass
class BiLSTMOutput(SequenceClassifierOutput):
    """`pooler_output` is what the classifier gets: (batch, hidden_size), of pairs (batch, 4 * hidden_size)."""

    pooler_output: Tensor | None = None


class Reading(NamedTuple):
    """In which order the tokens of a batch are read; a row of length L may hold two sentences, S = 1 or 2.

    Args:
        sentences: (S, batch, L), whether a token belongs to each sentence.
        forwards, backwards: (S * batch, longest) places in the flattened batch: each sentence from its first token on
            and from its last one; what follows after its end is read in vain.
        ahead, behind: (batch * L) where the two readings come to each token.
    """

    sentences: Tensor
    forwards: Tensor
    backwards: Tensor
    ahead: Tensor
    behind: Tensor

    @classmethod
    def of(cls, sentences: Tensor) -> Reading:
        number, batch, length = sentences.shape
        rows = sentences.flatten(0, 1)
        sizes = rows.sum(-1, keepdim=True)
        longest = _longest(sizes, number, length)
        position = torch.arange(longest, device=rows.device)
        start = torch.arange(batch, device=rows.device).repeat(number)[:, None] * length
        places = torch.arange(length, device=rows.device)
        forwards = start + torch.argsort(torch.where(rows, places, places + length), dim=-1)[:, :longest]
        backwards = forwards.gather(1, torch.where(position < sizes, sizes - 1 - position, position))
        rank = (rows.long().cumsum(-1) - 1).clamp(min=0)
        first = torch.arange(number * batch, device=rows.device)[:, None] * longest
        comes = torch.stack([first + rank, first + (sizes - 1 - rank).clamp(min=0)])
        ahead, behind = (comes.unflatten(1, (number, batch)) * sentences).sum(1).flatten(1)
        return cls(sentences, forwards, backwards, ahead, behind)


def _longest(sizes: Tensor, number: int, length: int) -> int:
    """Tokens of the longest sentence; one of a pair may take the whole row where looking would wait for the device, or
    would write the number into an exported model."""
    looks = number > 1 and sizes.device.type == "cpu" and not torch.jit.is_tracing()
    return max(1, int(sizes.max())) if looks else length


class BiLSTMLayer(nn.Module):
    """Both directions over whole sentences: two LSTMs without packing, which costs time and waits for the device."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(input_size, hidden_size // 2, batch_first=True)
        self.behind = nn.LSTM(input_size, hidden_size // 2, batch_first=True)

    def forward(self, states: Tensor, reading: Reading) -> Tensor:
        """(batch, L, input_size) -> (batch, L, hidden_size), zero where there is no token."""
        tokens = states.flatten(0, 1)
        ahead, _ = self.ahead(_at(tokens, reading.forwards))
        behind, _ = self.behind(_at(tokens, reading.backwards))
        halves = [_at(ahead.flatten(0, 1), reading.ahead), _at(behind.flatten(0, 1), reading.behind)]
        hidden = torch.cat(halves, dim=-1).unflatten(0, states.shape[:2])
        return hidden * reading.sentences.any(0).unsqueeze(-1)


def _at(rows: Tensor, places: Tensor) -> Tensor:
    return rows.index_select(0, places.flatten()).view(*places.shape, rows.shape[-1])


class Pooler(nn.Module):
    """Tokens into sentences, and of two sentences u, v into [u, v, |u - v|, u * v]; no token gives zero.

    Source: Conneau et al., Supervised Learning of Universal Sentence Representations, 2017 (max pooling, the pair).
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, states: Tensor, sentences: Tensor) -> Tensor:
        """(batch, L, D) and (S, batch, L) -> (batch, D), or (batch, 4 * D) of pairs."""
        pooled = [getattr(self, self.pooling)(states, tokens) for tokens in sentences]
        if len(pooled) == 1:
            return pooled[0]
        u, v = pooled
        return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)

    def max(self, states: Tensor, tokens: Tensor) -> Tensor:
        most = states.masked_fill(~tokens.unsqueeze(-1), -torch.inf).amax(1)
        return most.masked_fill(~tokens.any(1, keepdim=True), 0.0)

    def mean(self, states: Tensor, tokens: Tensor) -> Tensor:
        return (states * tokens.unsqueeze(-1)).sum(1) / tokens.sum(1, keepdim=True).clamp(min=1)

    def last(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The forward state of a sentence's last token, and the backward state of its first."""
        order = tokens.long().cumsum(1)
        ends = tokens & (order == order[:, -1:]), tokens & (order == 1)
        halves = states.chunk(2, dim=-1)
        return torch.cat([(half * end.unsqueeze(-1)).sum(1) for half, end in zip(halves, ends, strict=True)], dim=-1)


class BiLSTMForSequenceClassification(OwnModel):
    """Embedding, bidirectional LSTM layers, pooling, and a classifier with one ReLU layer.

    Source: Tang et al., Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, 2019.
    """

    config_class = BiLSTMConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "bilstm"

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        if config.sentence_pairs and config.sep_token_id is None:
            raise ConfigError("sentence_pairs needs sep_token_id, which stands between the two sentences")
        widths = [config.embedding_size] + [config.hidden_size] * config.num_hidden_layers
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(BiLSTMLayer(width, config.hidden_size) for width in widths[:-1])
        self.dropout = nn.Dropout(config.dropout)
        self.pooler = Pooler(config.pooling)
        self.dense = nn.Linear(widths[-1] * (4 if config.sentence_pairs else 1), config.classifier_size)
        self.classifier = nn.Linear(config.classifier_size, config.num_labels or 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BiLSTMOutput:
        """(batch, L) ids of sentences, padded on either side, to logits (batch, num_labels).

        `labels` add a loss: cross-entropy of classes, squared error of one real output. `token_type_ids`, which many
        tokenizers give, are not looked at: the separator tells sentences apart.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        reading = Reading.of(self._sentences(input_ids, mask))
        tokens = self.embeddings(input_ids)
        states = [tokens if self.config.train_embeddings else tokens.detach()]
        for number, layer in enumerate(self.layers):
            drop = self.dropout if number else self.embedding_dropout
            states.append(layer(drop(states[-1]), reading))
        pooled = self.pooler(states[-1], reading.sentences)
        hidden = self.dense(self.dropout(pooled)).relu()
        logits = self.classifier(self.dropout(hidden))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BiLSTMOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=tuple(states) if output_hidden_states else None,
            pooler_output=pooled,
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value  # type: ignore[assignment]

    def _sentences(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(S, batch, L): which tokens belong to each sentence; the first separator ends the first one."""
        if not self.config.sentence_pairs:
            return mask.unsqueeze(0)
        separators = (input_ids == self.config.sep_token_id) & mask
        second = separators.long().cumsum(1) > separators.int()
        return torch.stack([mask & ~second, mask & second])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.num_labels == 1:
            return nn.functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        return nn.functional.cross_entropy(logits.float(), labels)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.Linear, nn.LSTM)):
            module.reset_parameters()


offer(BiLSTMForSequenceClassification)

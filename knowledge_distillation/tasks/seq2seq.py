"""A text out of a text: translation, summaries, answers; for models with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.blocks import text_of
from ..errors import ConfigError
from ..evaluation.by_row import ROW
from ..evaluation.evaluators import TaskEvaluator
from ..evaluation.generated import generate
from ..evaluation.written import WritingEvaluator
from ..evaluation.written_metrics import score_of
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset


class Seq2Seq(Task):
    """Two columns, the text that is read and the one to be written; the second may also be named as the label.

    Each is cut at `max_length`. Perplexity, by which the best student is kept, and accuracy are of the next token
    after those that are right; what the models write by themselves is scored where a `metric` is named, which takes
    far longer.

    Options:
        metric: `bleu` or `rouge` of the texts that student and teacher write; needs the extra `seq2seq`.
        max_new_tokens: of a text that is written, 128; all else is as the model's generation config says.
        source_prefix: stands before each text that is read, as T5 has it.
    """

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    primary_metric = "perplexity"
    texts = (1, 2)
    labelled = False
    measured_by_label = False
    options: Mapping[str, type] = MappingProxyType({"metric": str, "max_new_tokens": int, "source_prefix": str})

    def settle(self, model: Any, reading: Reading) -> None:
        """A decoder that is not told how a text begins begins with the pad token, as T5's does."""
        for config in (model.config, getattr(model, "generation_config", None)):
            if config is not None and getattr(config, "decoder_start_token_id", None) is None:
                config.decoder_start_token_id = reading.tokenizer.pad_token_id

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        source, target = _columns(reading)
        tokenizer: Any = reading.tokenizer
        cut = {"truncation": True, "max_length": reading.max_length}

        def tokens(sources: list[Any], targets: list[Any], places: list[int]) -> dict[str, Any]:
            made = tokenizer(_texts(sources, places, source, reading), **cut)
            right = [text_of(value, place, target) for value, place in zip(targets, places, strict=True)]
            return {
                **{name: made[name] for name in ("input_ids", "attention_mask")},
                "labels": tokenizer(text_target=right, **cut)["input_ids"],
                "length": [len(ids) for ids in made["input_ids"]],
                ROW: places,
            }

        read = {"input_columns": [source, target], "batched": True, "with_indices": True}
        return rows.map(tokens, **read, remove_columns=rows.column_names, desc="Tokenizing")

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> TaskEvaluator | WritingEvaluator:
        metric = reading.options.get("metric")
        if metric is None:
            return TaskEvaluator(primary_metric=self.primary_metric, fixed_order=True)
        references = rows[_columns(reading)[1]]
        how = {"max_new_tokens": _most(reading)}
        return WritingEvaluator(score_of(metric), references, reading.tokenizer, self.primary_metric, **how)

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        source = reading.columns.text[0]
        texts = _texts(rows[source], range(len(rows)), source, reading)
        ids = reading.tokenizer(texts, truncation=True, max_length=reading.max_length)["input_ids"]
        for text in generate(model, ids, reading.tokenizer, batch_size, _most(reading)):
            yield {"prediction": text}


def _columns(reading: Reading) -> tuple[str, str]:
    columns = (*reading.columns.text, *([reading.columns.label] if reading.columns.label else []))[:2]
    if len(columns) < 2:
        raise ConfigError(
            f"seq2seq reads one column and writes another; found {columns[0]!r} alone: name both, the one that is "
            "read first"
        )
    return columns[0], columns[1]


def _texts(values: Any, places: Any, column: str, reading: Reading) -> list[str]:
    prefix = reading.options.get("source_prefix", "")
    return [prefix + text_of(value, place, column) for value, place in zip(values, places, strict=True)]


def _most(reading: Reading) -> int:
    return int(reading.options.get("max_new_tokens", 128))

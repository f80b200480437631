"""Tokens that are hidden in a text, to be told from those around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.blocks import Tokens, text_of, texts_as_blocks
from ..data.train_batches import seeded
from ..errors import ConfigError, DataError
from ..evaluation.evaluators import TaskEvaluator
from .predicting import outputs
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

_MASK = "[MASK]"  # is written for the mask of every tokenizer


class MaskedLM(Task):
    """Rows of text, of which a share of the tokens is hidden as BERT's pre-training does.

    Texts are put one after the other and cut into blocks of `max_length` tokens. Training hides other tokens each
    time a block comes; what is hidden in evaluation rows follows from their place alone. Soft targets and labels are
    of the hidden tokens; perplexity, by which the best student is kept, and accuracy are too.

    Options:
        line_by_line: a row of text is a block of its own, cut at `max_length`.
        mlm_probability: the share of hidden tokens, 0.15; of these 80 in a hundred become the mask, 10 another token.

    Source: Devlin et al., BERT, 2019.
    """

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
    primary_metric = "perplexity"
    labelled = False
    measured_by_label = False
    options: Mapping[str, type] = MappingProxyType({"line_by_line": bool, "mlm_probability": float})

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        hide = self.collator(reading).hide
        (column,) = reading.columns.text

        def tokens(texts: list[str]) -> Tokens:
            if not texts:
                return {"input_ids": [], "special_tokens_mask": []}
            made = reading.tokenizer(texts, return_special_tokens_mask=True, verbose=False)
            return {name: made[name] for name in ("input_ids", "special_tokens_mask")}

        together = not reading.options.get("line_by_line", False)
        blocks = texts_as_blocks(rows, column, tokens, reading.max_length, together)
        return blocks if train else _with_fixed_masks(blocks, hide)

    def collator(self, reading: Reading) -> HidingCollator:
        return HidingCollator.of(reading.tokenizer, reading.options.get("mlm_probability", 0.15))

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> TaskEvaluator:
        return TaskEvaluator(primary_metric=self.primary_metric, fixed_order=True)

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """The text with its masks filled, and for each of them the token and its probability."""
        (column,) = reading.columns.text
        tokenizer: Any = reading.tokenizer
        texts = [
            text_of(value, place, column).replace(_MASK, tokenizer.mask_token)
            for place, value in enumerate(rows[column])
        ]
        encoded = rows.map(
            lambda _, place: dict(tokenizer(texts[place], truncation=True, max_length=reading.max_length)),
            with_indices=True,
            remove_columns=rows.column_names,
            desc="Tokenizing",
        )
        _check_masks(texts, encoded, reading)
        remaining = iter(texts)
        for output, batch in outputs(model, encoded, tokenizer, batch_size):
            for ids, logits in zip(batch["input_ids"], output.logits, strict=True):
                best = logits[ids == tokenizer.mask_token_id].float().softmax(-1).max(-1)
                found = [tokenizer.decode([number]).strip() for number in best.indices.tolist()]
                yield {
                    "prediction": _filled(next(remaining), found, tokenizer.mask_token),
                    "tokens": found,
                    "probability": best.values.tolist(),
                }


@dataclass(frozen=True)
class HidingCollator:
    """Pads rows, and hides tokens of those that have no labels yet, by the generators of this process."""

    pad: Any
    hide: Any

    def __call__(self, rows: list[Any]) -> Any:
        return self.pad(rows) if "labels" in rows[0] else self.hide(rows)

    @classmethod
    def of(cls, tokenizer: Any, probability: float) -> HidingCollator:
        """Raises a ConfigError where the tokenizer has no mask, or the share is none."""
        from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

        if tokenizer.mask_token is None:
            raise ConfigError(
                f"{type(tokenizer).__name__} has no mask token: masked-lm is for models such as BERT; a model that "
                "writes text learns by causal-lm"
            )
        try:
            hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"mlm_probability is a number from 0 to 1; found {probability!r}") from error
        return cls(DataCollatorForSeq2Seq(tokenizer), hide)


def _with_fixed_masks(blocks: Dataset, hide: Any) -> Dataset:
    """Blocks with the same tokens hidden whenever this is called."""

    def hidden(row: dict[str, Any], place: int) -> dict[str, Any]:
        with seeded(place):
            made = hide([row])
        return {name: made[name][0].tolist() for name in ("input_ids", "labels")}

    return blocks.map(hidden, with_indices=True, remove_columns="special_tokens_mask", desc="Masks")


def _check_masks(texts: list[str], encoded: Dataset, reading: Reading) -> None:
    mask, number = reading.tokenizer.mask_token, reading.tokenizer.mask_token_id
    for place, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        if mask not in text:
            raise DataError(f"row {place} has no {mask} to fill in column {reading.columns.text[0]!r}")
        if text.count(mask) != ids.count(number):
            raise DataError(f"row {place} has a {mask} after its first {reading.max_length} tokens: raise max_length")


def _filled(text: str, found: list[str], mask: str) -> str:
    for token in found:
        before, _, after = text.partition(mask)
        text = (before.rstrip() + token[2:] if token.startswith("##") else before + token) + after
    return text

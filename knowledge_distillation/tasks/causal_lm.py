"""The next token of a text, of an answer to a prompt, or of what an assistant says."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.blocks import Tokens, text_of, texts_as_blocks
from ..data.conversations import prompt_ids, tokenized_rows
from ..data.token_columns import PadTokens
from ..errors import DataError, shown
from ..evaluation.evaluators import TaskEvaluator
from ..evaluation.generated import generate, padding_id
from ..losses.labels import IGNORED_LABEL
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class CausalLM(Task):
    """One column of texts or of messages, or two: prompts and completions, each a text or messages.

    Texts are put one after the other, each ended by the tokenizer's end token, and cut into blocks of `max_length`
    tokens, all of which are learnt. Of a prompt nothing is learnt, only its completion; of messages what the assistant
    says. These rows are cut at `max_length`, and left out where nothing to learn is left.

    Options:
        pack: False makes a block of each text, and cuts what is longer.
        max_new_tokens: of a prediction, 64, which takes the likeliest token each time.
    """

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    primary_metric = "perplexity"
    texts = (1, 2)
    labelled = False
    measured_by_label = False
    options: Mapping[str, type] = MappingProxyType({"pack": bool, "max_new_tokens": int})

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        columns = reading.columns.text
        if len(columns) == 1 and not _holds_messages(rows, columns[0]):
            pack = reading.options.get("pack", True)
            blocks = texts_as_blocks(rows, columns[0], _ended_texts(reading.tokenizer), reading.max_length, pack)
            return blocks.map(lambda ids: {"labels": ids}, input_columns="input_ids", desc="Labels")
        names = ("messages",) if len(columns) == 1 else ("prompt", "completion")
        tools = ["tools"] if "tools" in rows.column_names else []
        chosen = rows.select_columns([*columns, *tools]).rename_columns(dict(zip(columns, names, strict=True)))
        for name, column in zip(names, columns, strict=True):
            for place, value in enumerate(chosen[name]):
                _check_said(value, place, column, chosen[0][name])
        return _cut(tokenized_rows(chosen, reading.tokenizer, None), reading.max_length)

    def collator(self, reading: Reading) -> Callable[[list[Any]], Any]:
        """Pads with the tokenizer; with a copy where it has no padding token."""
        tokenizer: Any = reading.tokenizer
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
        return PadTokens(tokenizer, True)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> TaskEvaluator:
        return TaskEvaluator(primary_metric=self.primary_metric, fixed_order=True)

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        column = reading.columns.text[0]
        values = rows[column]
        for place, value in enumerate(values):
            _check_said(value, place, column, values[0])
        prompts = [_prompt(value, reading.tokenizer)[-reading.max_length :] for value in values]
        most = reading.options.get("max_new_tokens", 64)
        for text in generate(model, prompts, reading.tokenizer, batch_size, most, do_sample=False, num_beams=1):
            yield {"prediction": text}


def _holds_messages(rows: Dataset, column: str) -> bool:
    return column in rows.column_names and len(rows) > 0 and isinstance(rows[0][column], list)


def _check_said(value: Any, place: int, column: str, first: Any) -> None:
    """See that a row says something: a text, or messages where the first row has them.

    Raises:
        DataError: it does not; the row is named.
    """
    if not isinstance(first, list):
        text_of(value, place, column)
        return
    turns = value if isinstance(value, list) else []
    if not turns or not all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in turns):
        raise DataError(
            f"row {place} has {shown(value, 80)} in column {column!r}, where messages were expected: a list of "
            '{"role": …, "content": …}'
        )


def _ended_texts(tokenizer: Any) -> Callable[[list[str]], Tokens]:
    end = tokenizer.eos_token_id

    def tokens(texts: list[str]) -> Tokens:
        made = tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return {"input_ids": [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in made]}

    return tokens


def _cut(rows: Dataset, length: int) -> Dataset:
    """Rows of at most so many tokens, of which something is learnt.

    Raises:
        DataError: there is none.
    """

    def cut(row: dict[str, Any]) -> dict[str, Any]:  # every column has a number for each token
        made = {name: values[:length] for name, values in row.items()}
        return {**made, "length": len(made["input_ids"])}

    made = rows.map(cut, desc="Tokens that fit")
    kept = made.filter(lambda labels: any(one != IGNORED_LABEL for one in labels[1:]), input_columns="labels")
    left_out = f"{len(rows) - len(kept)} of {len(rows)} rows have nothing to learn in their first {length} tokens"
    if len(kept) == 0:
        raise DataError(f"{left_out}: raise max_length, or see that there are completions")
    if len(kept) < len(rows):
        logger.warning("%s, and are left out: raise max_length", left_out)
    return kept


def _prompt(value: Any, tokenizer: Any) -> list[int]:
    """The ids after which the model is to go on: a text's, or those of messages up to the assistant's last turn."""
    if isinstance(value, str):
        return prompt_ids(tokenizer, value)
    before = value[:-1] if value[-1]["role"] == "assistant" else value
    return list(tokenizer.apply_chat_template(before, add_generation_prompt=True, return_dict=True)["input_ids"])

"""Rows of text for language models: what becomes of them, and what of it is labelled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import SOFT, distiller
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from knowledge_distillation.data.conversations import tokenized_rows
from knowledge_distillation.data.text import train_tokenizer
from knowledge_distillation.errors import DataError

TURNS = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
MARKED = (
    "{% for m in messages %}{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{{ ' ' }}{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "two and two"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "one more"},
    {"role": "assistant", "content": "five of them"},
]


def tokenizer(template: str | None = TEMPLATE) -> Any:
    made = train_tokenizer(["user assistant two and four one more five of them say it"] * 9, 60)
    made.chat_template, made.eos_token = template, "[SEP]"
    return made


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=16, n_layer=1, n_head=2, n_positions=64))


def said(row: dict[str, Any], words: Any) -> str:
    return words.decode([one for one in row["labels"] if one != -100], skip_special_tokens=True)


@pytest.mark.case("A12")
@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prefixes", "marked"])
def test_of_messages_what_the_assistant_says_is_labelled(template: str) -> None:
    words = tokenizer(template)
    (row,) = tokenized_rows([{"messages": TALK}], words, gpt2())
    assert "four five of them" == said(row, words)
    assert words.decode(row["input_ids"], skip_special_tokens=True).startswith("user two and two assistant four user")
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
    assert row["assistant_masks"] == [int(one != -100) for one in row["labels"]]


@pytest.mark.case("A12")
@pytest.mark.parametrize("chat", [False, True])
def test_of_prompt_and_completion_the_completion_is_labelled(chat: bool) -> None:
    words = tokenizer()
    rows = [{"prompt": "two and two", "completion": "four"}]
    if chat:
        rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    (row,) = tokenized_rows(rows, words, gpt2())
    assert said(row, words) == ("five of them" if chat else "four")
    assert chat or row["labels"][-1] == words.eos_token_id
    assert row["labels"][0] == -100
    assert row["completion_mask"] == [int(one != -100) for one in row["labels"]]


@pytest.mark.case("A12")
def test_text_is_labelled_for_a_language_model_and_not_for_a_classifier() -> None:
    words = tokenizer()
    (row,) = tokenized_rows([{"text": "say it"}], words, gpt2())
    assert row["labels"] == row["input_ids"] == words("say it")["input_ids"]
    (row,) = tokenized_rows([{"text": "say it", "label": 1}], words, gpt2())
    assert row["label"] == 1 and "labels" not in row


@pytest.mark.case("A12")
def test_an_encoder_reads_the_prompt_and_its_decoder_says_the_completion() -> None:
    words = tokenizer()
    sizes = {"vocab_size": 80, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    (row,) = tokenized_rows([{"prompt": "two and two", "completion": "four"}], words, model)
    assert row["input_ids"] == words("two and two")["input_ids"] and row["labels"] == words("four")["input_ids"]
    assert row["completion_mask"] == [1] * len(row["labels"])


@pytest.mark.case("A12")
@pytest.mark.parametrize("form", [list, Dataset.from_list])
def test_a_run_takes_conversations_as_they_come(form: Any) -> None:
    rows = form([{"messages": TALK[:2]}, {"messages": TALK}, {"messages": TALK[:2]}])
    config = [*SOFT, {"student": "output.logits", "loss": "cross_entropy"}]
    run = distiller(config, gpt2(), gpt2(1), train_dataset=rows, eval_dataset=rows, processing_class=tokenizer())
    results = run.train()
    assert {"eval_accuracy", "eval_perplexity", "eval_agreement"} < set(results)


@pytest.mark.case("A12")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_mask_of_completions_trains_on_them_alone_with_the_ready_collator(as_text: bool, side: str) -> None:
    words = tokenizer()
    words.padding_side = side
    rows = [{"prompt": "two and", "completion": "two"}, {"prompt": "one more four", "completion": "five of them say"}]
    made = tokenized_rows(rows, words, gpt2())
    assert len(made[0]["input_ids"]) < len(made[1]["input_ids"])
    config = [{**SOFT[0], "teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}]
    options = {"processing_class": words, "per_device_train_batch_size": 2}

    def loss(**mask: str) -> float:
        data = rows if as_text else made
        return distiller([{**config[0], **mask}], gpt2(), gpt2(1), train_dataset=data, **options).train()["loss"]

    assert loss(mask="completion") == loss(mask="labels") != loss()


@pytest.mark.case("A12")
def test_what_is_missing_is_said() -> None:
    rows = [{"messages": TALK}]
    with pytest.raises(DataError, match="the rows hold messages and no input_ids: give their tokenizer as processing"):
        tokenized_rows(rows, None, gpt2())
    with pytest.raises(DataError, match="the rows hold messages as messages, and .* has no chat template: set"):
        tokenized_rows(rows, tokenizer(None), gpt2())
    backwards = "{% for m in messages|reverse %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    with pytest.raises(DataError, match="cannot be told: mark it in the template by"):
        tokenized_rows(rows, tokenizer(backwards), gpt2())

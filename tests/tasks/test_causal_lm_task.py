"""The next token: from rows of text, prompts or messages to what a model writes."""

from __future__ import annotations

import logging
import math
from itertools import chain

import datasets
import pytest
import torch
import torch.nn.functional as F
from task_runs import trained
from tolerance import near
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.presets import hinton
from knowledge_distillation.tasks import Reading, find_task

TASK = find_task("causal-lm")
TEXTS = ["one two three", "", "two three four five", " ", "one one two"]
PROMPTS, ANSWERS = ["one and two", "two and two", "one"], ["three", "four of them", "one"]
TURNS = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
TALK = [
    {"role": "user", "content": "two and two"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "one and two"},
    {"role": "assistant", "content": "three of them"},
]


def words(pad: bool = True):
    """A tokenizer as decoders have them: a token that ends a text, none that begins it, perhaps none for padding."""
    made = train_tokenizer([*TEXTS, *PROMPTS, *ANSWERS, "user assistant four of them"], 80)
    made.backend_tokenizer.post_processor = None
    made.eos_token, made.sep_token, made.cls_token = "[SEP]", None, None
    made.chat_template = TEMPLATE
    if not pad:
        made.pad_token = None
    return made


WORDS = words()


def reading(*text: str, max_length: int = 16, tokenizer=WORDS, **options) -> Reading:
    return Reading(Columns(text or ("text",)), tokenizer, (), max_length, options=options)


def texts() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})


def pairs() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"question": PROMPTS, "answer": ANSWERS})


def talks() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"messages": [TALK, TALK[:2], TALK]})


def llama(layers: int = 1, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": WORDS.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), num_hidden_layers=layers, initializer_range=0.3, **sizes, **ids)
    )


def gpt2(positions: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": WORDS.eos_token_id, "initializer_range": 0.3}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=positions, **ids)
    )


def ended(text: str) -> list[int]:
    return [*WORDS(text)["input_ids"], WORDS.eos_token_id]


def test_texts_are_ended_and_put_together_in_blocks_that_are_learnt_whole():
    encoded = TASK.encode(texts(), reading(max_length=4), True)
    ids = list(chain.from_iterable(ended(text) for text in TEXTS if text.strip()))
    assert encoded["input_ids"][:] == [ids[start : start + 4] for start in range(0, len(ids), 4)]
    assert encoded["labels"][:] == encoded["input_ids"][:]
    assert encoded["length"][:] == [len(row) for row in encoded["input_ids"]]
    alone = TASK.encode(texts(), reading(max_length=4, pack=False), True)
    assert alone["input_ids"][:] == [ended(text)[:4] for text in TEXTS if text.strip()]


def test_of_a_prompt_nothing_is_learnt_and_the_completion_is_ended():
    encoded = TASK.encode(pairs(), reading("question", "answer"), True)
    for row, prompt, answer in zip(encoded, PROMPTS, ANSWERS, strict=True):
        before = WORDS(prompt)["input_ids"]
        assert row["input_ids"] == [*before, *ended(answer)]
        assert row["labels"] == [*[-100] * len(before), *ended(answer)]


def test_of_messages_what_the_assistant_says_is_learnt():
    encoded = TASK.encode(talks(), reading("messages", max_length=64), True)
    whole = WORDS.apply_chat_template(TALK, tokenize=False)
    assert encoded[0]["input_ids"] == WORDS(whole)["input_ids"]
    learnt = [number for number in encoded[0]["labels"] if number != -100]
    assert learnt == WORDS("four three of them")["input_ids"]
    prompt_of_messages = datasets.Dataset.from_dict({"prompt": [TALK[:3]] * 2, "completion": [TALK[3:]] * 2})
    encoded = TASK.encode(prompt_of_messages, reading("prompt", "completion", max_length=64), True)
    assert [number for number in encoded[0]["labels"] if number != -100] == WORDS("three of them")["input_ids"]


def test_rows_are_cut_and_those_with_nothing_left_to_learn_are_left_out_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        encoded = TASK.encode(pairs(), reading("question", "answer", max_length=3), True)
    assert "2 of 3 rows have nothing to learn in their first 3 tokens, and are left out" in caplog.text
    assert encoded["input_ids"][:] == [[*WORDS("one")["input_ids"], *ended("one")][:3]]
    with pytest.raises(DataError, match="3 of 3 rows have nothing to learn in their first 1 tokens: raise max_length"):
        TASK.encode(pairs(), reading("question", "answer", max_length=1), True)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({"text": ["a", None]}, ("text",), "row 1 has None in column 'text', where text was expected"),
        ({"q": ["a", "b"], "a": ["a", None]}, ("q", "a"), "row 1 has None in column 'a', where text was expected"),
        ({"m": [TALK, []]}, ("m",), r"row 1 has \[\] in column 'm', where messages were expected"),
        ({"m": [TALK, None]}, ("m",), "row 1 has None in column 'm', where messages were expected"),
        ({"m": [[{"who": "me"}]]}, ("m",), "row 0 has .*'who': 'me'.* where messages were expected"),
    ],
)
def test_rows_that_say_nothing(rows, columns, message):
    with pytest.raises(DataError, match=message):
        TASK.encode(datasets.Dataset.from_dict(rows), reading(*columns), True)


def test_a_tokenizer_without_a_padding_token_pads_and_stays_as_it_is():
    own = words(pad=False)
    read_as = reading("question", "answer", tokenizer=own)
    batch = TASK.collator(read_as)([dict(row) for row in TASK.encode(pairs(), read_as, True)])
    assert own.pad_token is None
    filled = batch["attention_mask"] == 0
    assert filled.any() and batch["labels"][filled].eq(-100).all()
    assert batch["input_ids"][filled].eq(own.eos_token_id).all()


def test_perplexity_and_accuracy_are_of_the_next_token_that_is_learnt():
    read_as = reading("question", "answer")
    student = llama(seed=1)
    _, result = trained(TASK, read_as, pairs(), hinton(0.5), llama(2), student=student, num_train_epochs=2)
    student.eval()
    surprise, right, number = 0.0, 0, 0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        before, after = WORDS(prompt)["input_ids"], torch.tensor(ended(answer))
        with torch.no_grad():
            logits = student(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
        surprise += float(F.cross_entropy(logits, after, reduction="sum"))
        right += int((logits.argmax(-1) == after).sum())
        number += len(after)
    assert result["eval_perplexity"] == near(math.exp(surprise / number))
    assert result["eval_accuracy"] == near(right / number)
    assert result["best_perplexity"] <= result["eval_perplexity"]
    assert {"eval_teacher_perplexity", "eval_agreement"} <= result.keys()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_what_is_written_is_the_likeliest_token_each_time_whatever_else_is_in_the_batch(make):
    model = make().eval()
    said = list(TASK.predict(model, pairs(), reading("question", "answer", max_new_tokens=5), batch_size=2))
    for prompt, found in zip(PROMPTS, said, strict=True):
        ids = WORDS(prompt)["input_ids"]
        for _ in range(5):
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == WORDS.eos_token_id:
                break
        new = ids[len(WORDS(prompt)["input_ids"]) :]
        assert found["prediction"] == WORDS.decode(new, skip_special_tokens=True).strip()
    assert any(found["prediction"] for found in said)


def test_what_the_assistant_says_last_is_written_anew():
    model = llama().eval()
    some = {"max_length": 64, "max_new_tokens": 4}
    by_messages = list(TASK.predict(model, talks(), reading("messages", **some)))
    asked = datasets.Dataset.from_dict({"text": [as_text(TALK[:3]), as_text(TALK[:1]), as_text(TALK[:3])]})
    assert by_messages == list(TASK.predict(model, asked, reading("text", **some)))


def as_text(talk: list) -> str:
    return WORDS.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


def test_a_prompt_that_leaves_no_room_keeps_its_end():
    model = gpt2(positions=8).eval()
    long = datasets.Dataset.from_dict({"text": ["one two three four five one two three"]})
    end = datasets.Dataset.from_dict({"text": ["four five one two three"]})
    read_as = reading("text", max_new_tokens=3)
    assert list(TASK.predict(model, long, read_as)) == list(TASK.predict(model, end, read_as))
    with pytest.raises(ConfigError, match="max_new_tokens is 8, and the model has 8 positions"):
        list(TASK.predict(model, long, reading("text", max_new_tokens=8)))

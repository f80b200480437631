"""Hidden tokens of a text: from rows of text to predictions."""

from __future__ import annotations

import math
from itertools import chain

import datasets
import pytest
import torch
import torch.nn.functional as F
from runs import same, weights
from task_runs import bert_config, trained
from tolerance import near
from transformers import BertForMaskedLM

from knowledge_distillation import Callback, ConfigError, DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.presets import hinton
from knowledge_distillation.tasks import Reading, find_task

TASK = find_task("masked-lm")
TEXTS = ["the cat sat on the mat", "", "a dog ran", "the dog and the cat sat", "  ", "on a mat the cat ran and ran"]
TOKENIZER = train_tokenizer(TEXTS * 2, vocab_size=80)


def rows(texts: list = TEXTS) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"line": texts, "other": list(range(len(texts)))})


def reading(max_length: int = 8, tokenizer=TOKENIZER, **options) -> Reading:
    return Reading(Columns(("line",)), tokenizer, (), max_length, options=options)


def model(layers: int = 1, seed: int = 0) -> BertForMaskedLM:
    torch.manual_seed(seed)
    return BertForMaskedLM(bert_config(len(TOKENIZER), layers, initializer_range=0.3))


def test_texts_are_put_together_and_cut_into_blocks_and_no_token_is_lost():
    encoded = TASK.encode(rows(), reading(), True)
    texts = [TOKENIZER(text) for text in TEXTS if text.strip()]
    ids = list(chain.from_iterable(one["input_ids"] for one in texts))
    assert encoded["input_ids"][:] == [ids[start : start + 8] for start in range(0, len(ids), 8)]
    assert encoded["length"][:-1] == [8] * (len(encoded) - 1) and 0 < encoded[-1]["length"] <= 8
    special = list(chain.from_iterable(encoded["special_tokens_mask"]))
    assert special == [int(number in (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)) for number in ids]
    assert "labels" not in encoded.column_names and "other" not in encoded.column_names


def test_a_line_is_a_block_of_its_own_where_so_asked():
    encoded = TASK.encode(rows(), reading(6, line_by_line=True), True)
    assert encoded["input_ids"][:] == [TOKENIZER(text)["input_ids"][:6] for text in TEXTS if text.strip()]


def test_evaluation_hides_the_same_tokens_always_and_training_others_each_time():
    read_as = reading(mlm_probability=0.5)
    first, second = (TASK.encode(rows(), read_as, False) for _ in range(2))
    assert first["labels"][:] == second["labels"][:] and first["input_ids"][:] == second["input_ids"][:]
    whole = TASK.encode(rows(), read_as, True)
    for row, hidden in zip(whole, first, strict=True):
        pairs = zip(row["input_ids"], row["special_tokens_mask"], hidden["labels"], hidden["input_ids"], strict=True)
        for own, special, label, shown in pairs:
            assert label in (-100, own) and not (special and label != -100)
            assert label != -100 or shown == own
    collate = TASK.collator(read_as)
    drawn = [collate([dict(row) for row in whole])["labels"] for _ in range(2)]
    assert not torch.equal(*drawn)
    kept = collate([dict(row) for row in first])["labels"]
    assert kept[0].tolist() == first[0]["labels"] and kept[-1, first[-1]["length"] :].eq(-100).all()


def test_the_share_of_hidden_tokens_is_that_of_bert():
    torch.manual_seed(0)
    read_as = reading(64)
    many = TASK.encode(rows([" ".join(TEXTS)] * 200), read_as, True)
    batch = TASK.collator(read_as)([dict(row) for row in many])
    words = sum(len(row["input_ids"]) - sum(row["special_tokens_mask"]) for row in many)
    hidden = batch["labels"] != -100
    assert abs(float(hidden.sum()) / words - 0.15) < 0.02
    masks = float((batch["input_ids"][hidden] == TOKENIZER.mask_token_id).float().mean())
    assert abs(masks - 0.8) < 0.06


def test_perplexity_and_accuracy_are_of_the_hidden_tokens_and_the_lowest_perplexity_is_the_best():
    read_as = reading(mlm_probability=0.5)
    student = model(seed=1)
    run, result = trained(TASK, read_as, rows(), hinton(0.5), model(2), student=student, num_train_epochs=3)
    student.eval()
    surprise, right, number = 0.0, 0, 0
    for row in TASK.encode(rows(), read_as, False):
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            logits = student(torch.tensor([row["input_ids"]])).logits[0]
        surprise += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        right += int(((logits.argmax(-1) == labels) & (labels != -100)).sum())
        number += int((labels != -100).sum())
    assert result["eval_perplexity"] == near(math.exp(surprise / number))
    assert result["eval_accuracy"] == near(right / number)
    assert result["best_perplexity"] <= result["eval_perplexity"]
    assert {"eval_teacher_perplexity", "eval_agreement"} <= result.keys()


class Leaves(Callback):
    def on_step_end(self, run):
        if run.progress.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_draws_the_masks_of_one_that_was_never_broken_off(tmp_path, workers):
    def run(folder: str, resume: bool = False, **options):
        student = model(seed=1)
        settings = {"save_steps": 1, "learning_rate": 1e-2, "output_dir": tmp_path / folder}
        settings |= {"dataloader_num_workers": workers, "resume": resume, **options}
        made, _ = trained(
            TASK, reading(4, mlm_probability=0.5), rows(), TASK.hard_entries(), student=student, **settings
        )
        assert made.progress.step > 3
        return weights(student)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", callbacks=[Leaves()])
    assert same(whole, run("broken", resume=True))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "row 1 has None in column 'line', where text was expected"),
        ([1, 2], "row 0 has 1 in column 'line', where text was expected"),
        (["", "  "], "column 'line' has no text: all of its 2 rows are blank"),
    ],
)
def test_rows_without_text(texts, message):
    with pytest.raises(DataError, match=message):
        TASK.encode(rows(texts), reading(), True)
    with pytest.raises(DataError, match="no column 'lines'. They have: line, other. Nearest: line."):
        TASK.encode(rows(), Reading(Columns(("lines",)), TOKENIZER), True)


def test_what_cannot_hide_tokens():
    no_mask = train_tokenizer(TEXTS, vocab_size=80)
    no_mask.mask_token = None
    with pytest.raises(ConfigError, match="has no mask token: masked-lm is for models such as BERT"):
        TASK.encode(rows(), reading(tokenizer=no_mask), True)
    for wrong in (1.5, "much"):
        with pytest.raises(ConfigError, match="mlm_probability is a number from 0 to 1; found"):
            TASK.collator(reading(mlm_probability=wrong))


def test_masks_are_filled_with_the_likeliest_token():
    one = model().eval()
    texts = ["the [MASK] sat", "a dog", "[MASK] and [MASK] ran on the mat"]
    said = list(TASK.predict(one, rows([texts[0], texts[2]]), reading(16), batch_size=2))
    for text, found in zip([texts[0], texts[2]], said, strict=True):
        ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
        chances = one(ids).logits.softmax(-1)[ids == TOKENIZER.mask_token_id]
        tokens = [TOKENIZER.decode([number]) for number in chances.argmax(-1).tolist()]
        assert found["tokens"] == tokens and found["probability"] == near(chances.max(-1).values.tolist())
        for token in tokens:
            text = text.replace("[MASK]", token, 1)
        assert found["prediction"].replace(" ", "") == text.replace("##", "").replace(" ", "")
    with pytest.raises(DataError, match=r"row 1 has no \[MASK\] to fill in column 'line'"):
        list(TASK.predict(one, rows(texts), reading(16)))
    with pytest.raises(DataError, match=r"row 0 has a \[MASK\] after its first 3 tokens: raise max_length"):
        list(TASK.predict(one, rows(["the cat [MASK]"]), reading(3)))

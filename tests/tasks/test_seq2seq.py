"""A text out of a text: from two columns to what a model writes, and its scores."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from itertools import count
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from task_runs import trained
from tolerance import near
from transformers import DataCollatorForSeq2Seq, T5Config, T5ForConditionalGeneration

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.evaluation.written_metrics import bleu, rouge
from knowledge_distillation.presets import hinton
from knowledge_distillation.tasks import Reading, find_task

TASK = find_task("seq2seq")
ENGLISH = ["a cat sat here", "the dog", "a dog sat on the cat", "a cat", "here"]
GERMAN = ["eine katze hier", "der hund", "ein hund auf der katze", "eine katze", "hier"]
WORDS = train_tokenizer(ENGLISH + GERMAN, 90)
WORDS.eos_token = "[SEP]"
HIDDEN = {"teacher": "decoder_layer2.hidden_states", "student": "decoder_layer1.hidden_states", "loss": "mse"}


PAIR = Columns(("en", "de"))


def rows(**columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns or {"de": GERMAN, "n": [0] * 5, "en": ENGLISH})


def reading(columns: Columns = PAIR, max_length: int = 16, **options) -> Reading:
    return Reading(columns, WORDS, (), max_length, options=options)


def t5(layers: int = 1, seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": layers, "dropout_rate": 0.0}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": WORDS.eos_token_id}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), initializer_factor=3.0, **sizes, **ids)).eval()


@pytest.mark.parametrize("columns", [PAIR, Columns(("en",), "de")])
def test_one_column_is_read_and_the_other_written(columns):
    encoded = TASK.encode(rows(), reading(columns, max_length=5, source_prefix="the "), True)
    for number, row in enumerate(encoded):
        assert row["input_ids"] == WORDS("the " + ENGLISH[number], truncation=True, max_length=5)["input_ids"]
        assert row["labels"] == WORDS(GERMAN[number], truncation=True, max_length=5)["input_ids"]
        assert row["idx"] == number and row["length"] == len(row["input_ids"])
    assert "n" not in encoded.column_names


def test_rows_without_a_text_and_columns_without_a_fellow():
    with pytest.raises(DataError, match="row 1 has None in column 'de', where text was expected"):
        TASK.encode(rows(en=["a", "b"], de=["c", None]), reading(), True)
    with pytest.raises(ConfigError, match="seq2seq reads one column and writes another; found 'en' alone"):
        TASK.encode(rows(), reading(Columns(("en",))), True)


def test_perplexity_and_accuracy_are_of_the_next_token_after_the_right_ones():
    student = t5(seed=1)
    _, result = trained(TASK, reading(), rows(), hinton(0.5), t5(2), student=student, learning_rate=1e-3)
    student.eval()
    surprise, right, number = 0.0, 0, 0
    for source, target in zip(ENGLISH, GERMAN, strict=True):
        labels = WORDS(target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            before = torch.cat([torch.zeros(1, 1, dtype=torch.long), labels[:, :-1]], 1)
            ids = WORDS(source, return_tensors="pt")["input_ids"]
            logits = student(input_ids=ids, decoder_input_ids=before).logits[0]
        surprise += float(F.cross_entropy(logits, labels[0], reduction="sum"))
        right += int((logits.argmax(-1) == labels[0]).sum())
        number += labels.numel()
    assert result["eval_perplexity"] == near(math.exp(surprise / number))
    assert result["eval_accuracy"] == near(right / number)
    assert result["best_perplexity"] == result["eval_perplexity"]


def greedy(model: T5ForConditionalGeneration, source: str, most: int) -> str:
    ids, said = WORDS(source, return_tensors="pt")["input_ids"], [0]
    while len(said) <= most and said[-1] != WORDS.eos_token_id:
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([said])).logits
        said.append(int(logits[0, -1].argmax()))
    return WORDS.decode(said, skip_special_tokens=True).strip()


def test_what_is_written_is_the_likeliest_token_each_time_whatever_else_is_in_the_batch():
    model = t5().train()
    said = list(TASK.predict(model, rows(en=ENGLISH), reading(max_new_tokens=4), batch_size=2))
    assert model.training
    model.eval()
    assert [one["prediction"] for one in said] == [greedy(model, source, 4) for source in ENGLISH]
    assert any(one["prediction"] for one in said)


def test_a_beam_is_what_the_generation_config_says():
    model = t5()
    model.generation_config.num_beams = 3
    (said,) = TASK.predict(model, rows(en=ENGLISH[:1]), reading(max_new_tokens=4))
    ids = WORDS(ENGLISH[0], return_tensors="pt")
    by_hand = model.generate(ids["input_ids"], num_beams=3, max_new_tokens=4)
    assert said["prediction"] == WORDS.decode(by_hand[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("metric", ["bleu", "rouge"])
def test_what_both_models_write_is_scored_row_by_row_while_other_entries_look_on(metric):
    student, teacher = t5(seed=1), t5(2)
    read_as = reading(metric=metric, max_new_tokens=4)
    run, result = trained(
        TASK, read_as, rows(), [HIDDEN, *hinton(0.5)], teacher, student=student, per_device_eval_batch_size=2
    )
    score = {"bleu": bleu, "rouge": rouge}[metric]
    student.eval()
    for prefix, model in (("eval_", student), ("eval_teacher_", teacher)):
        expected = score([greedy(model, source, 4) for source in ENGLISH], GERMAN)
        assert {name: result[prefix + name] for name in expected} == near(expected)
    assert "best_perplexity" in result and run.evaluate()["perplexity"] == result["eval_perplexity"]


def test_the_best_student_may_be_chosen_by_what_it_writes():
    settings = {"metric_for_best_model": "rouge1", "num_train_epochs": 2, "learning_rate": 1e-2}
    _, result = trained(
        TASK, reading(metric="rouge", max_new_tokens=3), rows(), TASK.hard_entries(), student=t5(), **settings
    )
    assert result["best_rouge1"] >= result["eval_rouge1"]


def bleu_by_hand(written: list[str], references: list[str]) -> float:
    """Papineni et al., section 2.3, on words split by spaces: clipped precisions up to four words, brevity penalty."""
    logs = 0.0
    for size in range(1, 5):
        both = whole = 0
        for one, other in zip(written, references, strict=True):
            grams = [Counter(zip(*(text.split()[n:] for n in range(size)), strict=False)) for text in (one, other)]
            both += sum((grams[0] & grams[1]).values())
            whole += sum(grams[0].values())
        logs += math.log(both / whole) / 4
    lengths = [sum(len(text.split()) for text in texts) for texts in (written, references)]
    return 100 * min(1.0, math.exp(1 - lengths[1] / lengths[0])) * math.exp(logs)


def rouge_n_by_hand(written: str, reference: str, size: int) -> float:
    """Lin, section 2, as F: shared groups of words, of both sides."""
    grams = [Counter(zip(*(text.split()[n:] for n in range(size)), strict=False)) for text in (written, reference)]
    total = sum(sum(one.values()) for one in grams)
    return 2 * sum((grams[0] & grams[1]).values()) / total if total else 0.0


def test_scores_of_texts_are_those_of_their_papers():
    written = ["the dog sat on the red mat again", "a cat was here at last"]
    references = ["the dog sat on the red cat", "a cat was here at noon today my friend"]
    assert bleu(written, references)["bleu"] == pytest.approx(bleu_by_hand(written, references))
    scores = rouge(written, references)
    for size in (1, 2):
        by_row = [rouge_n_by_hand(*pair, size) for pair in zip(written, references, strict=True)]
        assert scores[f"rouge{size}"] == pytest.approx(sum(by_row) / 2)
    assert scores["rougeL"] == pytest.approx((12 / 15 + 10 / 15) / 2)


def test_a_metric_that_is_unknown_or_not_installed(monkeypatch):
    data = rows()
    with pytest.raises(ConfigError, match="metric 'blue' of written texts is unknown. Nearest: bleu. Known: bleu, ro"):
        TASK.evaluator(data, data, reading(metric="blue"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for metric, library in (("bleu", "sacrebleu"), ("rouge", "rouge_score")):
        with pytest.raises(ConfigError, match=rf"{metric} needs {library}: pip install .knowledge_distillation\[seq2"):
            TASK.evaluator(data, data, reading(metric=metric))
    assert TASK.evaluator(data, data, reading()).primary_metric == "perplexity"


def test_every_process_has_the_scores_of_all_rows(monkeypatch):
    """Three shares of the rows, one of them without any, as `gather_object` hands them to each process."""
    read_as = reading(metric="rouge", max_new_tokens=4)
    encoded, place = (
        TASK.encode(rows(), read_as, False),
        SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext),
    )
    batches = [DataCollatorForSeq2Seq(WORDS)([row]) for row in encoded]

    def scores(share: list[Any]) -> dict[str, float]:
        return TASK.evaluator(rows(), encoded, read_as)(t5(seed=1), t5(2), share, place)

    whole = scores(batches)
    gathered: list[list[Any]] = [[], [], []]  # of tokens, of what the student writes, and of what the teacher writes
    calls = count()

    def gather(parts: list[Any]) -> list[Any]:
        kind = gathered[next(calls) % 3]
        kind.extend(parts)
        return list(kind)

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    for share in (batches[3:], batches[:3], []):
        last = scores(share)
    assert last == near(whole)

"""A student may read other tokens than its teacher: two streams out of one text, each padded as its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from families import hooks_left_on
from runs import HARD, SOFT, TINY_BERT, bert, distill, same, weights, written
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from knowledge_distillation import ConfigError, DataError, KnowledgeDistiller
from knowledge_distillation.data import (
    TwoTokenizers,
    embedded_sentiment,
    tokenize,
    train_tokenizer,
    train_word_tokenizer,
)
from knowledge_distillation.data.two_tokenizers import two_token_streams
from knowledge_distillation.models import BiLSTMConfig, BiLSTMForSequenceClassification

CPU = torch.device("cpu")
TEXTS = ["the film was good .", "The film was BAD", "a film"]


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return embedded_sentiment(num_train=40, num_validation=16)


@pytest.fixture(scope="module")
def tokenizers(raw) -> tuple[Any, Any]:
    texts = raw["train"]["sentence"]
    return train_tokenizer(texts, vocab_size=60), train_word_tokenizer(texts)


def twice(raw: dict[str, Any], tokenizers: tuple[Any, Any], split: str = "train") -> Any:
    return tokenize(raw[split], tokenizers[0], ["sentence"], student_tokenizer=tokenizers[1])


def student(tokenizer: Any) -> BiLSTMForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 8, "classifier_size": 8}
    return BiLSTMForSequenceClassification(BiLSTMConfig(vocab_size=len(tokenizer), **sizes))


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_word_tokenizer_knows_the_most_frequent_words_and_puts_special_tokens_as_bert_does():
    tokenizer = train_word_tokenizer(TEXTS, vocab_size=8)
    assert tokenizer.convert_ids_to_tokens(range(8)) == [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *("film", "the", "was"),
    ]
    found = tokenizer("The Film", "was it?")
    assert tokenizer.convert_ids_to_tokens(found["input_ids"]) == [
        *("[CLS]", "the", "film", "[SEP]"),
        *("was", "[UNK]", "[UNK]", "[SEP]"),
    ]
    assert found["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_word_tokenizer_is_saved_and_loaded(tmp_path):
    tokenizer = train_word_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert dict(loaded("a good film", "and bad")) == dict(tokenizer("a good film", "and bad"))
    assert (loaded.pad_token_id, loaded.sep_token_id, loaded.unk_token_id) == (0, 3, 1)


def test_a_word_tokenizer_needs_words():
    with pytest.raises(DataError, match="the texts are empty"):
        train_word_tokenizer([" ", ""])
    with pytest.raises(ConfigError, match="vocab_size is 5; the 5 special tokens need more"):
        train_word_tokenizer(TEXTS, vocab_size=5)


# --- two streams -----------------------------------------------------------------------------------------------------


def test_a_row_holds_what_each_tokenizer_gives_alone(raw, tokenizers):
    rows = twice(raw, tokenizers)
    alone = [tokenize(raw["train"], tokenizer, ["sentence"]) for tokenizer in tokenizers]
    assert rows["input_ids"] == alone[0]["input_ids"] and rows["student_input_ids"] == alone[1]["input_ids"]
    assert rows["input_ids"] != rows["student_input_ids"] and rows["length"] == alone[0]["length"]


def test_each_model_gets_its_own_tokens_padded_as_its_own(raw, tokenizers):
    rows = list(twice(raw, tokenizers))[:6]
    batch = TwoTokenizers(*tokenizers)(rows)
    teacher, own = two_token_streams(CPU, batch)
    for inputs, tokenizer, prefix in ((teacher, tokenizers[0], ""), (own, tokenizers[1], "student_")):
        plain = [{"input_ids": row[f"{prefix}input_ids"]} for row in rows]
        expected = DataCollatorWithPadding(tokenizer)(plain)
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
        assert torch.equal(inputs["labels"], torch.tensor([row["labels"] for row in rows]))
    assert not [key for key in (*teacher, *own) if key.startswith("student_")]


def test_token_types_that_only_the_teacher_has_are_not_the_students(raw, tokenizers):
    batch = TwoTokenizers(*tokenizers)(list(twice(raw, tokenizers))[:4])
    del batch["student_token_type_ids"]
    teacher, own = two_token_streams(CPU, batch)
    assert "token_type_ids" in teacher and "token_type_ids" not in own


def test_rows_without_the_students_tokens_are_said(raw, tokenizers):
    rows = list(tokenize(raw["train"], tokenizers[0], ["sentence"]))[:2]
    with pytest.raises(DataError, match="no student_input_ids: tokenize them with a student_tokenizer"):
        TwoTokenizers(*tokenizers)(rows)


# --- runs ------------------------------------------------------------------------------------------------------------


def run(raw: dict[str, Any], tokenizers: tuple[Any, Any], **settings: Any) -> KnowledgeDistiller:
    return KnowledgeDistiller(
        bert(vocab_size=60, max_position_embeddings=128),
        student(tokenizers[1]),
        [*SOFT, *HARD],
        train_dataset=twice(raw, tokenizers),
        eval_dataset=twice(raw, tokenizers, "validation"),
        processing_class=tokenizers[1],
        data_collator=TwoTokenizers(*tokenizers),
        train_data_adaptor=two_token_streams,
        device="cpu",
        **{"mixed_precision": "no", "disable_tqdm": True, "num_train_epochs": 2, "learning_rate": 1e-2, **settings},
    )


def test_a_run_with_two_tokenizers_batches_by_length_and_each_model_sees_its_tokens(raw, tokenizers):
    one = run(raw, tokenizers, per_device_train_batch_size=8)
    seen: dict[str, list[Any]] = {"teacher": [], "student": []}
    for name, model in (("teacher", one.teacher.model), ("student", one.student)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen[name].append(kwargs["input_ids"]), with_kwargs=True
        )
    one.plan()
    for rows in seen.values():
        rows.clear()
    one.train_epoch()
    texts = [" ".join(text.split()) for text in raw["train"]["sentence"]]
    read = {name: [row for ids in batches for row in ids.tolist()] for name, batches in seen.items()}
    assert len(read["teacher"]) == len(read["student"]) == len(texts)
    by_teacher, by_student = tokenizers[0](texts)["input_ids"], tokenizers[1](texts)["input_ids"]
    place = {tuple(ids): text for text, ids in zip(texts, by_teacher, strict=True)}
    for theirs, mine in zip(read["teacher"], read["student"], strict=True):
        text = place[tuple(token for token in theirs if token)]
        assert [token for token in mine if token] == by_student[texts.index(text)]
    spread = [int((ids != 0).sum(1).max() - (ids != 0).sum(1).min()) for ids in seen["teacher"]]
    lengths = [len(ids) for ids in by_teacher]
    assert sum(spread) < len(spread) * (max(lengths) - min(lengths)) / 2


def test_the_teacher_cache_gives_the_same_student_and_the_teacher_runs_once(raw, tokenizers, tmp_path):
    plain, cached = (
        run(raw, tokenizers),
        run(raw, tokenizers, teacher_cache=str(tmp_path), teacher_cache_dtype="float32"),
    )
    plain.train()
    assert cached.cache_teachers() == {str(tmp_path): len({tuple(ids) for ids in twice(raw, tokenizers)["input_ids"]})}
    rows: list[int] = []
    cached.teacher.model.register_forward_hook(lambda module, args, output: rows.append(len(output.logits)))
    cached.train()
    assert same(weights(plain.student), weights(cached.student))
    assert sum(rows) <= len(raw["validation"]) + 32 + 2  # the evaluation, and the batch on which all is bound


def test_a_students_vocabulary_may_be_larger_than_the_teachers(raw, tokenizers):
    assert len(tokenizers[1]) > 60
    run(raw, tokenizers).plan()


# --- recipes ---------------------------------------------------------------------------------------------------------

BILSTM = {"model_type": "bilstm", "hidden_size": 8, "embedding_size": 8, "embeddings": "teacher"}


def test_a_recipe_with_a_tokenizer_of_words_from_text_to_a_scored_student(tmp_path):
    changes = {"student": BILSTM, "student_tokenizer": "words", "distill_config": [*SOFT, *HARD]}
    path = written(tmp_path, **changes)
    tuned = distill("finetune", path, "-o", tmp_path / "teacher")
    assert tuned.exit_code == 0, tuned.output
    teacher = tmp_path / "teacher" / "student"
    done = distill("run", path, "--teacher", teacher, "-o", tmp_path / "run", "--baseline")
    assert done.exit_code == 0, done.output

    folder = tmp_path / "run" / "student"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    assert {"good", "film"} <= set(tokenizer.get_vocab()) and model.config.vocab_size == len(tokenizer)
    assert AutoTokenizer.from_pretrained(teacher).get_vocab() != tokenizer.get_vocab()

    given = ("--task", "sst2", "--data-dir", tmp_path / "glue", "--teacher", teacher)
    scored = yaml.safe_load("\n".join(distill("evaluate", folder, *given).output.splitlines()[1:]))
    lines = [line.split("\t") for line in (tmp_path / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    read = AutoModelForSequenceClassification.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    mine, theirs = (
        [int(one(**reader(text, return_tensors="pt")).logits.argmax()) for text, _ in lines]
        for one, reader in ((model.eval(), tokenizer), (read[0].eval(), read[1]))
    )
    agreement = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(lines)
    accuracy = sum(a == int(label) for a, (_, label) in zip(mine, lines, strict=True)) / len(lines)
    assert (scored["agreement"], scored["accuracy"]) == pytest.approx((agreement, accuracy), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"layers": [2]}}, "a student cut out of a model reads its tokens: leave student_tokenizer out"),
        ({"student_tokenizer": "./wrods"}, "'./wrods': no such directory"),
        ({"student_tokenizer": 3}, "student_tokenizer is a text; found 3"),
        (
            {
                "distill_config": [
                    {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
                ]
            },
            "the two models read different tokens: map logits or pooled vectors",
        ),
        (
            {"distill_config": None, "method": "layers", "mapping": "search"},
            "mapping search compares models on the same tokens: leave student_tokenizer out",
        ),
    ],
)
def test_what_does_not_go_with_a_students_tokenizer_is_said(tmp_path, changes, message):
    narrow = {"student": {**TINY_BERT, "num_hidden_layers": 1}, "student_tokenizer": "words"}
    done = distill("check", written(tmp_path, **{**narrow, **changes}))
    assert done.exit_code == 2 and message in done.output


def test_a_refused_entry_on_tokens_leaves_no_hook():
    teacher, small = bert(2), bert(1, seed=1)
    ids, mask = torch.randint(1, 20, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}
    batch |= {"student_input_ids": ids.flip(1), "student_attention_mask": mask}
    entry = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    options: dict[str, Any] = {"train_dataloader": [batch], "train_data_adaptor": two_token_streams}
    distiller = KnowledgeDistiller(teacher, small, [entry], **options, disable_tqdm=True)
    with pytest.raises(ConfigError, match="read different tokens"):
        distiller.plan()
    assert hooks_left_on(distiller.teacher.model) == hooks_left_on(small) == []

"""A tokenizer of one's own, and tokenized data sets without padding."""

from __future__ import annotations

import random
import time

import datasets
import pytest
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerFast

from knowledge_distillation.data.text import tokenize, train_tokenizer
from knowledge_distillation.errors import ConfigError, DataError

TEXTS = [
    f"The {noun} was {adjective}, wasn't it?"
    for noun in ("plot", "score", "naïve hero")
    for adjective in ("unbelievable", "believable", "remarkable", "fine", "finest")
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=200)


def rows(**columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_the_tokenizer_has_berts_special_tokens_first(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("[PAD]", "[MASK]")
    assert len(tokenizer.all_special_tokens) == 5


def test_text_is_lower_cased_split_into_pieces_and_put_between_special_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("THE plots").input_ids)
    assert tokens[:3] == ["[CLS]", "the", "plot"] and tokens[3:] == ["##s", "[SEP]"]
    assert tokenizer("naïve").input_ids == tokenizer("naive").input_ids
    assert "[UNK]" not in tokenizer.tokenize(" ".join(TEXTS))
    assert "[UNK]" in tokenizer.tokenize("the Ω")


def test_pairs_are_separated_and_typed(tokenizer):
    encoded = tokenizer("the plot", "fine")
    assert tokenizer.decode(encoded.input_ids) == "[CLS] the plot [SEP] fine [SEP]"
    assert encoded.token_type_ids == [0, 0, 0, 0, 1, 1]


def test_the_same_texts_give_the_same_tokenizer():
    # Sizes at which merges tie: the trainer alone differs here from run to run.
    for size in (60, 80, 100, 140):
        vocabularies = [train_tokenizer(iter(TEXTS), size).get_vocab() for _ in range(6)]
        assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


@pytest.mark.parametrize("size", [6, 20, 60, 100])
def test_vocab_size_is_an_upper_bound(size):
    tokenizer = train_tokenizer(TEXTS, vocab_size=size)
    assert len(tokenizer) <= size
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_a_saved_tokenizer_is_read_back_by_transformers_alone(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read("Fine Plot!", "No?").data == tokenizer("Fine Plot!", "No?").data
    assert read.model_max_length == tokenizer.model_max_length == 512


def test_texts_without_a_word_are_refused():
    for texts in ([], [""], [" \n"]):
        with pytest.raises(DataError, match="cannot train a tokenizer: the texts are empty"):
            train_tokenizer(texts)
    with pytest.raises(ConfigError, match="vocab_size is 5; the 5 special tokens need more"):
        train_tokenizer(TEXTS, vocab_size=5)


def test_tokenizing_keeps_idx_and_adds_labels_and_length_without_padding(tokenizer):
    tokenized = tokenize(rows(sentence=TEXTS[:2], label=[1, 0], idx=[5, 9]), tokenizer, ["sentence"])
    assert set(tokenized.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels", "length", "idx"}
    assert tokenized["input_ids"][:] == [tokenizer(text).input_ids for text in TEXTS[:2]]
    assert tokenized["length"][:] == [len(ids) for ids in tokenized["input_ids"]]
    assert tokenized["labels"][:] == [1, 0] and tokenized["idx"][:] == [5, 9]


def test_pairs_are_tokenized_together_and_cut_longest_first(tokenizer):
    pair = rows(first=["the plot was fine"], second=["the score"], label=[0.5])
    tokenized = tokenize(pair, tokenizer, ("first", "second"), max_length=7)
    assert tokenizer.decode(tokenized["input_ids"][0]) == "[CLS] the plot [SEP] the score [SEP]"
    assert tokenized["length"][0] == 7
    assert tokenized["labels"][0] == 0.5


def test_unlabelled_rows_get_no_labels(tokenizer):
    assert "labels" not in tokenize(rows(sentence=["fine"]), tokenizer, ["sentence"]).column_names


def test_tokenized_rows_are_padded_by_the_collator_of_transformers(tokenizer):
    tokenized = tokenize(rows(sentence=["fine", "the plot was fine"], label=[1, 0]), tokenizer, ["sentence"])
    batch = DataCollatorWithPadding(tokenizer)([tokenized[0], tokenized[1]])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "text_columns", "error", "message"),
    [
        ({"sentence": [], "label": []}, ["sentence"], DataError, "the data set is empty"),
        (
            {"sentence": ["x"], "label": [1]},
            ["sentense"],
            DataError,
            "the data set has no column 'sentense'. It has: sentence, label. Nearest: sentence",
        ),
        ({"sentence": ["x", None]}, ["sentence"], DataError, "column 'sentence' holds None where text was expected"),
        ({"sentence": ["x"]}, "sentence", ConfigError, "text_columns is 'sentence'; expected a list of one column"),
        ({"sentence": ["x"]}, [], ConfigError, r"text_columns is \[\]; expected a list of one column"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(tokenizer, columns, text_columns, error, message):
    with pytest.raises(error, match=message):
        tokenize(rows(**columns), tokenizer, text_columns)


@pytest.mark.case("F2")
def test_a_word_of_a_megabyte_teaches_nothing_and_costs_little():
    huge = "".join(random.Random(0).choices("abcdefghij", k=1_000_000))
    begin = time.process_time()
    tokenizer = train_tokenizer([*TEXTS, huge, f"fine {huge}"], vocab_size=200)
    cut = tokenizer([huge], truncation=True, max_length=8)["input_ids"]
    assert time.process_time() - begin < 20  # some five minutes where it is taken for a word
    assert tokenizer.get_vocab() == train_tokenizer([*TEXTS, "fine"], vocab_size=200).get_vocab()
    assert tokenizer.convert_ids_to_tokens(cut[0]) == ["[CLS]", "[UNK]", "[SEP]"]

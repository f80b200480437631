"""A tag for each word: from rows of words to predictions."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from runs import distiller
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForTokenClassification, BertConfig, PreTrainedTokenizerFast

from knowledge_distillation import DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.data.words import word_windows, words_of
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.evaluation.entities import entity_scores
from knowledge_distillation.presets import hinton
from knowledge_distillation.tasks import Reading, find_task

TASK = find_task("token-classification")
WORDS = [
    ["Ada", "Lovelace", "lives", "in", "London", "."],
    ["Paris", "and", "New", "York", "are", "towns", "that", "Ada", "visited", "twice"],
    ["nothing"],
]
TAGS = [
    ["B-per", "I-per", "O", "O", "B-loc", "O"],
    ["B-loc", "O", "B-loc", "I-loc", "O", "O", "O", "B-per", "O", "O"],
    ["O"],
]
NAMES = ("O", "B-loc", "I-loc", "B-per", "I-per")
COLUMNS = Columns(("tokens",), "tags")
TOKENIZER = train_tokenizer([" ".join(row) for row in WORDS[:2]] * 2, vocab_size=50)  # most words in several pieces


def rows(tags: Any = TAGS, words: Any = WORDS) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tokens": words, "tags": tags})


def reading(**options: Any) -> Reading:
    return Reading(COLUMNS, TOKENIZER, NAMES, options=options)


def model(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes |= {"vocab_size": len(TOKENIZER), "initializer_range": 0.5, **TASK.fields(reading()), **changes}
    return AutoModelForTokenClassification.from_config(BertConfig(**sizes))


# --- tags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ([["B-per", "O"], ["I-loc"]], ("O", "B-loc", "I-loc", "B-per", "I-per")),
        ([["S-per", "B-loc", "E-loc"]], ("S-loc", "B-loc", "E-loc", "S-per", "B-per", "E-per")),
        ([["VERB", "NOUN", "ADJ"]], ("ADJ", "NOUN", "VERB")),
        ([["per", "O"]], ("O", "per")),
        ([[10, 9, 0]], ("0", "9", "10")),
    ],
)
def test_tags_in_their_order(tags: list, names: tuple[str, ...]) -> None:
    data = rows(tags, [["word"] * len(row) for row in tags])
    assert TASK.class_names({"train": data}, COLUMNS) == names
    labels = TASK.encode(data, Reading(COLUMNS, TOKENIZER, names), True)["labels"][:]
    assert [[names[n] for n in row if n >= 0] for row in labels] == [list(map(str, row)) for row in tags]


def test_numbers_of_a_class_label_keep_their_names_and_order() -> None:
    feature = datasets.Sequence(datasets.ClassLabel(names=["O", "I-per", "B-per"]))
    data = rows([[2, 1, 0, 0, 0, 0], [0] * 10, [0]]).cast_column("tags", feature)
    assert TASK.class_names({"train": data}, COLUMNS) == ("O", "I-per", "B-per")
    read = Reading(COLUMNS, TOKENIZER, ("O", "I-per", "B-per"))
    assert [n for n in TASK.encode(data, read, True)[0]["labels"] if n >= 0] == [2, 1, 0, 0, 0, 0]
    other = Reading(COLUMNS, TOKENIZER, ("B-per", "I-per", "O"))  # as another split of the data has them
    assert [n for n in TASK.encode(data, other, True)[0]["labels"] if n >= 0] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [["O"]]}, "holds O alone"),
        ({"train": [["O", "B-per"], None]}, "row 1 of the train rows has None in column 'tags'"),
        ({"train": [["O", "B-per"]], "validation": [["B-pre"]]}, "B-pre, of which there is no training row. Nearest"),
    ],
)
def test_tags_that_are_none(splits: dict[str, list], message: str) -> None:
    data = {name: rows(tags, [["word"]] * len(tags)) for name, tags in splits.items()}
    with pytest.raises(DataError, match=message):
        TASK.class_names(data, COLUMNS)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([["O"] * 6, ["O"] * 9, ["O"]], "row 1 has 10 words and 9 tags"),
        ([["O"] * 6, ["O"] * 10, None], "row 2 has 1 words and None as its tags"),
        ([["O"] * 6, ["O"] * 9 + ["B-lok"], ["O"]], "row 1 has the tag 'B-lok', which is none of .* Nearest: B-loc"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tags: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASK.encode(rows(tags), reading(), True)
    with pytest.raises(DataError, match="row 1 has no words in column 'tokens'"):
        TASK.encode(rows([["O"], ["O"]], [["word"], None]), reading(), True)


# --- words as tokens -------------------------------------------------------------------------------------------------


def test_the_first_piece_of_each_word_has_its_label() -> None:
    encoded = TASK.encode(rows(), reading(), True)
    assert sorted(encoded.column_names) == [
        *("attention_mask", "input_ids", "labels", "length", "token_type_ids", "window")
    ]
    every = TASK.encode(rows(), reading(pieces="all"), True)
    for number, (words, tags) in enumerate(zip(WORDS, TAGS, strict=True)):
        ids, first, all_ = [TOKENIZER.cls_token_id], [-100], [-100]
        for word, tag in zip(words, tags, strict=True):
            pieces = TOKENIZER(word, add_special_tokens=False)["input_ids"]
            ids += pieces
            first += [NAMES.index(tag)] + [-100] * (len(pieces) - 1)
            all_ += [NAMES.index(tag)] + [NAMES.index(tag.replace("B-", "I-"))] * (len(pieces) - 1)
        assert encoded[number]["input_ids"] == [*ids, TOKENIZER.sep_token_id]
        assert encoded[number]["labels"] == [*first, -100] and encoded[number]["length"] == len(ids) + 1
        assert every[number]["labels"] == [*all_, -100]
        assert encoded[number]["window"] == [number, 0]
    assert TASK.encode(rows(), reading(pieces="all"), False)["labels"][:] == encoded["labels"][:]
    assert "labels" not in TASK.encode(rows().remove_columns("tags"), reading(), False).column_names


@pytest.mark.parametrize("max_length", [5, 8, 11])
@pytest.mark.parametrize("stride", [0, 1, 3, 32])
def test_each_word_counts_once_in_windows(max_length: int, stride: int) -> None:
    columns = word_windows(WORDS, TOKENIZER, max_length, stride)
    overlap = min(stride, (max_length - 2) // 2)
    assert max(map(len, columns["input_ids"])) == max_length
    for row, words in enumerate(WORDS):
        whole = [n for word in words for n in TOKENIZER(word, add_special_tokens=False)["input_ids"]]
        windows = [place for place, one in enumerate(columns["row"]) if one == row]
        assert [columns["number"][place] for place in windows] == list(range(len(windows)))
        counted, start = [], 0
        for place in windows:
            ids = columns["input_ids"][place][1:-1]
            assert ids == whole[start : start + len(ids)]
            for n, (word, first) in enumerate(zip(columns["words"][place], columns["first"][place], strict=True)):
                if first:
                    counted.append(word)
                    assert ids[n - 1] == TOKENIZER(words[word], add_special_tokens=False)["input_ids"][0]
                    assert place == windows[-1] or len(ids) - (n - 1) > overlap // 2  # tokens that follow it
            start += len(ids) - overlap
        assert counted == list(range(len(words)))


@pytest.mark.parametrize("prefix", [False, True])
def test_words_have_the_space_that_is_part_of_a_token(prefix: bool) -> None:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    inner.train_from_iterator([" ".join(row) for row in WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    for words, ids in zip(WORDS, word_windows(WORDS, tokenizer, 64, 0)["input_ids"], strict=True):
        assert ids == tokenizer(" " + " ".join(words))["input_ids"]


def test_words_of_which_nothing_is_left_are_unknown() -> None:
    columns = word_windows([["Ada", "\u200b", "", "lives"], []], TOKENIZER, 32, 0)
    firsts = [n for n, first in zip(columns["input_ids"][0], columns["first"][0], strict=True) if first]
    assert firsts[1:3] == [TOKENIZER.unk_token_id] * 2 and len(firsts) == 4
    assert columns["input_ids"][1] == [TOKENIZER.cls_token_id, TOKENIZER.sep_token_id]


def test_a_window_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 3, of which 2 tokens are taken already"):
        word_windows(WORDS, TOKENIZER, 3, 0)


def test_words_of_a_text() -> None:
    text = "Ada's 3.5 kg (well-known), #1 of @her «Zürich»! 東京は"
    words = words_of(text)
    assert [word.text for word in words] == [
        *("Ada's", "3.5", "kg", "(", "well-known", ")", ",", "#1", "of", "@her", "«", "Zürich", "»", "!"),
        *("東", "京", "は"),
    ]
    assert all(text[word.start : word.end] == word.text for word in words)


# --- learnt, measured, predicted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [64, 8])
def test_predictions_are_those_of_the_model_word_by_word(max_length: int) -> None:
    read, tagger = Reading(COLUMNS, TOKENIZER, NAMES, max_length), model().train()
    said = list(TASK.predict(tagger, rows(words=[*WORDS[:2], []], tags=[*TAGS[:2], []]), read, batch_size=2))
    assert tagger.training and [len(one["prediction"]) for one in said] == [6, 10, 0]
    tagger.eval()
    if max_length == 64:
        for words, one in zip(WORDS[:2], said, strict=False):
            inputs = TOKENIZER([words], is_split_into_words=True, return_tensors="pt")
            numbers, places = tagger(**inputs).logits[0].argmax(-1), inputs.word_ids(0)
            assert one["prediction"] == [NAMES[numbers[places.index(n)]] for n in range(len(words))]
    spans = [(words, span) for words, one in zip(WORDS, said, strict=False) for span in one["entities"]]
    assert spans and all(span["text"] == " ".join(words[span["start"] : span["end"]]) for words, span in spans)


def test_plain_text_is_tagged_as_its_words_are() -> None:
    text = "Ada Lovelace  lives in London."
    read = Reading(Columns(("text",)), TOKENIZER, NAMES)
    (said,) = TASK.predict(model(), datasets.Dataset.from_dict({"text": [text]}), read)
    (of_words,) = TASK.predict(model(), rows().select([0]), reading())
    assert said["words"] == WORDS[0] and said["prediction"] == of_words["prediction"]
    assert said["entities"] and len(said["entities"]) == len(of_words["entities"])
    for one, other in zip(said["entities"], of_words["entities"], strict=True):
        assert text[one["start"] : one["end"]] == one["text"]
        assert [part["text"].replace(" ", "") for part in (one, other)] == [other["text"].replace(" ", "")] * 2
        assert one["type"] == other["type"]


def test_a_tagger_is_taught_and_scored_by_words() -> None:
    """Soft targets of first pieces alone; the scores are those of the tags that are predicted."""
    data = rows()
    read = Reading(COLUMNS, TOKENIZER, NAMES, max_length=12)
    train, dev = TASK.encode(data, read, True), TASK.encode(data, read, False)
    assert len(dev) > len(data)
    teacher, student = model(1), model(2)
    config = [*TASK.fit(hinton(alpha=1.0, temperature=1.0)), {**TASK.hard_entries()[0], "name": "hard", "weight": 0}]
    options = {"train_dataset": train, "eval_dataset": dev, "processing_class": TOKENIZER, "learning_rate": 0.0}
    evaluator = TASK.evaluator(data, dev, read)
    results = distiller(config, teacher, student, **options, evaluator=evaluator).train()

    soft = []
    for row in train:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        counted = torch.tensor(row["labels"]) >= 0
        mine, theirs = (one.eval()(**inputs).logits[0][counted].log_softmax(-1) for one in (student, teacher))
        soft.append((theirs.exp() * (theirs - mine)).sum(-1))
    assert results["loss"] == pytest.approx(torch.cat(soft).mean().item(), rel=1e-4)
    for prefix, one in (("eval_", student), ("eval_teacher_", teacher)):
        said = [row["prediction"] for row in TASK.predict(one, data, read)]
        found = {name: results[prefix + name] for name in ("f1", "precision", "recall", "accuracy")}
        assert found == pytest.approx(entity_scores(said, TAGS))
    assert results["best_f1"] == results["eval_f1"]

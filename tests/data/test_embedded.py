"""The embedded sentences follow their grammar, and words alone do not give the label away."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from knowledge_distillation.data import embedded
from knowledge_distillation.data.embedded import embedded_sentiment
from knowledge_distillation.data.glue import GLUE_TASKS
from knowledge_distillation.errors import ConfigError

POLARITY = {
    **dict.fromkeys([*embedded.GOOD, *embedded.LIKED, *embedded.LIKE], 1),
    **dict.fromkeys([*embedded.BAD, *embedded.DISLIKED, *embedded.DISLIKE], -1),
}


@pytest.fixture(scope="module")
def splits():
    return embedded_sentiment(num_train=4000, num_validation=1000)


def meaning(sentence: str) -> int:
    """1 or -1, read off the finished sentence from the outside in; shares only the lexicon with the generator."""
    text = sentence.removesuffix(" .")
    for stance, sign in ((" , and i agree", 1), (" , but i disagree", -1)):
        if text.endswith(stance):
            return sign * meaning(text.removesuffix(stance).split(" said that ")[1])
    for joint in (" , although ", " , even though "):
        if joint in text:
            return meaning(text.split(joint)[0])
    for joint in (" , but ", " , yet "):
        if joint in text:
            return meaning(text.split(joint)[1])
    if text.startswith(("although ", "while ")):
        return meaning(text.split(" , ")[1])
    if " and " in text:
        first, second = map(meaning, text.split(" and "))
        assert first == second, sentence
        return first
    words = text.split()
    if text.startswith(("it is not true", "nobody can", "i do not believe", "it is false")):
        return -meaning(" ".join(words[words.index("that") + 1 :]))
    (polarity,) = [POLARITY[word] for word in words if word in POLARITY]
    return polarity * (-1) ** sum(word in ("not", "never", "hardly") for word in words)


def test_labels_follow_the_grammar(splits):
    for rows in splits.values():
        assert [(meaning(sentence) + 1) // 2 for sentence in rows["sentence"]] == rows["label"][:]


def test_the_evaluator_of_this_file_reads_sentences_as_a_person_does():
    assert meaning("the plot was hardly bad .") == 1
    assert meaning("although i loved the plot , the film was dull .") == -1
    assert meaning("my brother who hated the film said that the plot was good , but i disagree .") == -1
    assert meaning("it is not true that i did not enjoy the song .") == 1


@pytest.mark.parametrize(("ngrams", "most"), [((1, 1), 0.75), ((1, 2), 0.8)], ids=["words", "words and pairs"])
def test_a_bag_of_words_stays_well_below_what_the_structure_allows(splits, ngrams, most):
    bag = CountVectorizer(ngram_range=ngrams, token_pattern=r"\S+")
    train, validation = splits["train"], splits["validation"]
    model = LogisticRegression(solver="liblinear").fit(bag.fit_transform(train["sentence"]), train["label"])
    assert model.score(bag.transform(validation["sentence"]), validation["label"]) < most


def test_labels_are_balanced_and_sentences_disjoint(splits):
    sentences = [sentence for rows in splits.values() for sentence in rows["sentence"]]
    assert len(set(sentences)) == len(sentences) == 5000
    assert {name: sum(rows["label"]) for name, rows in splits.items()} == {"train": 2000, "validation": 500}


def test_lengths_vary_and_the_vocabulary_is_small(splits):
    lengths = [len(sentence.split()) for sentence in splits["train"]["sentence"]]
    assert min(lengths) >= 4 and max(lengths) <= 30
    assert np.percentile(lengths, 90) >= 3 * np.percentile(lengths, 10)
    words = {word for rows in splits.values() for sentence in rows["sentence"] for word in sentence.split()}
    assert 150 <= len(words) <= 250


def test_columns_are_those_of_sst2(splits):
    for rows in splits.values():
        assert rows.column_names == [*GLUE_TASKS["sst2"].text_columns, "label", "idx"]
        assert rows.features["label"].names == list(GLUE_TASKS["sst2"].label_names)
        assert rows["idx"][:] == list(range(len(rows)))


def test_the_seed_alone_decides():
    first, again, other = (embedded_sentiment(50, 20, seed=seed) for seed in (3, 3, 4))
    assert first["train"][:] == again["train"][:]
    assert not set(first["train"]["sentence"]) & set(other["train"]["sentence"][:10])


def test_validation_does_not_depend_on_the_number_of_training_rows():
    assert embedded_sentiment(10, 20)["validation"][:] == embedded_sentiment(50, 20)["validation"][:]


def test_a_split_needs_both_labels():
    with pytest.raises(ConfigError, match="num_validation is 1; it must be at least 2, one row of each label"):
        embedded_sentiment(10, 1)

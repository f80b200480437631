"""A sentiment data set that needs no download: sentences whose label follows from grammar, not from words alone.

Every label is the polarity of the speaker's own judgement. Negation turns a clause round, denial ("it is not true
that ...") turns it round again, of two contrasted clauses ("..., but ...", "although ..., ...") one decides, and what
other people love, hate or say decides nothing until the speaker agrees or disagrees. Positive and negative words
stand in sentences of both labels, so that a bag of words gets little more than two in three right.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

MAX_WORDS = 30
_NEGATED = 0.25
# Forms, and how often each comes in a hundred.
_SENTENCES = ("statement", "but", "although", "aside", "stance", "report"), (40, 15, 10, 10, 15, 10)
_STATEMENTS = ("clause", "pair", "opener", "denial"), (45, 25, 15, 15)

GOOD = "good great fine superb brilliant charming clever funny moving fresh warm gripping elegant witty rich".split()
BAD = "bad awful poor terrible dull boring clumsy dreary shallow stale cold tedious crude weak silly".split()
LIKED = "loved enjoyed admired liked praised".split()
DISLIKED = "hated disliked despised loathed regretted".split()
LIKE = "love enjoy admire like praise".split()
DISLIKE = "hate dislike despise loathe regret".split()
NOUNS = """film plot story acting music script ending dialogue cast scene camera song book novel play show
performance direction editing title sequel opening villain hero""".split()
PARTS = "first second middle last final whole early later".split()
PEOPLE = """my brother|my sister|my uncle|my friend|the critic|a reviewer|the neighbour|our teacher|the director
|my mother|the audience|a stranger""".replace("\n", "").split("|")
COPULAS = "was seemed felt looked sounded".split()
INTENSIFIERS = "very really truly quite so extremely rather incredibly".split()
TAILS = """from start to finish|in the second half|for most of the evening|on the big screen|this time
|at the end of the day|in every way|to my surprise""".replace("\n", "").split("|")
DENIALS = "it is not true that|nobody can say that|i do not believe that|it is false that".split("|")
OPENERS = "i think that|i must say that|it is true that|in my view".split("|")


def embedded_sentiment(num_train: int = 8000, num_validation: int = 1000, seed: int = 0) -> dict[str, Dataset]:
    """Generate the data set; the same arguments give the same sentences.

    Args:
        num_train, num_validation: rows of each split; half of each is positive.
        seed: of the sentences, and of nothing else.
    Returns:
        "train" and "validation" with the columns of sst2: `sentence` (4 to 30 words, lower case, punctuation apart),
        `label` (0 negative, 1 positive) and `idx`, the row number. No sentence comes twice, in one split or over both.
    Raises:
        ConfigError: a number of rows below 2.
    """
    import datasets

    for name, size in {"num_train": num_train, "num_validation": num_validation}.items():
        if size < 2:
            raise ConfigError(f"{name} is {size}; it must be at least 2, one row of each label")
    label = datasets.ClassLabel(names=["negative", "positive"])
    kinds = {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
    generator = random.Random(seed)
    seen: set[str] = set()
    splits = {}
    # Validation comes first, so that it stays the same whatever the number of training rows.
    for split, size in (("validation", num_validation), ("train", num_train)):
        labels = [row % 2 for row in range(size)]
        generator.shuffle(labels)
        sentences = [_new_sentence(bool(label), generator, seen) for label in labels]
        columns = {"sentence": sentences, "label": labels, "idx": list(range(size))}
        splits[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    return {"train": splits["train"], "validation": splits["validation"]}


def _new_sentence(positive: bool, generator: random.Random, seen: set[str]) -> str:
    while True:
        sentence = _sentence(positive, generator) + " ."
        if sentence not in seen and len(sentence.split()) <= MAX_WORDS:
            seen.add(sentence)
            return sentence


def _sentence(positive: bool, generator: random.Random) -> str:
    """One statement, two in contrast, or someone else's opinion and the speaker's stance on it."""
    [form] = generator.choices(*_SENTENCES)
    if form == "statement":
        return _statement(positive, generator)
    if form == "stance":
        agrees = generator.random() < 0.7
        stance = "and i agree" if agrees else "but i disagree"
        return f"{_person(generator)} said that {_verdict(positive == agrees, generator)} , {stance}"
    # The other clause says the opposite a little more often than not, as contrast has it: its words must not tell.
    other = positive ^ (generator.random() < 0.6)
    own = _statement(positive, generator)
    if form == "but":
        return f"{_clause(other, generator)} , {generator.choice(('but', 'yet'))} {own}"
    if form == "although":
        return f"{generator.choice(('although', 'while'))} {_clause(other, generator)} , {own}"
    if form == "aside":
        return f"{own} , {generator.choice(('although', 'even though'))} {_clause(other, generator)}"
    return f"{_person(generator)} said that {_verdict(other, generator)} , but {own}"


def _statement(positive: bool, generator: random.Random) -> str:
    """The speaker's own judgement: a clause, two that agree, or the denial of one."""
    [form] = generator.choices(*_STATEMENTS)
    if form == "pair":
        return f"{_clause(positive, generator)} and {_clause(positive, generator)}"
    if form == "denial":
        return f"{generator.choice(DENIALS)} {_clause(not positive, generator)}"
    opener = f"{generator.choice(OPENERS)} " if form == "opener" else ""
    return opener + _clause(positive, generator)


def _clause(positive: bool, generator: random.Random) -> str:
    make = _feeling if generator.random() < 0.3 else _verdict
    return make(positive, generator)


def _feeling(positive: bool, generator: random.Random) -> str:
    """`i loved the plot`, or with a negation `i did not hate the plot`."""
    if generator.random() < _NEGATED:
        verb = "did not " + generator.choice(DISLIKE if positive else LIKE)
    else:
        verb = generator.choice(LIKED if positive else DISLIKED)
    return f"i {verb} {_thing(generator)}{_tail(generator)}"


def _verdict(positive: bool, generator: random.Random) -> str:
    """`the plot was very good`, or with a negation `the plot was hardly bad`."""
    negated = generator.random() < _NEGATED
    negation = generator.choice(("not ", "never ", "hardly ")) if negated else ""
    intensity = f"{generator.choice(INTENSIFIERS)} " if generator.random() < 0.35 else ""
    adjective = generator.choice(GOOD if positive ^ negated else BAD)
    return f"{_thing(generator)} {generator.choice(COPULAS)} {negation}{intensity}{adjective}{_tail(generator)}"


def _tail(generator: random.Random) -> str:
    return f" {generator.choice(TAILS)}" if generator.random() < 0.2 else ""


def _thing(generator: random.Random) -> str:
    part = f"{generator.choice(PARTS)} " if generator.random() < 0.2 else ""
    return f"the {part}{generator.choice(NOUNS)}"


def _person(generator: random.Random) -> str:
    """Someone else, whose own likes are no part of the judgement."""
    person = generator.choice(PEOPLE)
    if generator.random() < 0.3:
        return f"{person} who {generator.choice(LIKED + DISLIKED)} {_thing(generator)}"
    return person

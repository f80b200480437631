"""A tag for each word of a sentence: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.columns import Columns
from ..data.words import Word, word_windows, words_of
from ..errors import DataError
from ..evaluation.entities import entities_of, entity_task
from ..evaluation.evaluators import TaskEvaluator
from ..losses.labels import IGNORED_LABEL
from .predicting import outputs
from .tags import declared_tags, going_on, tag_numbers, tags_of
from .task import NO_OPTIONS, Reading, Task
from .text_classification import named_classes

if TYPE_CHECKING:
    from datasets import Dataset

STRIDE = 32  # tokens
Rows = dict[str, list[Any]]


class TokenClassification(Task):
    """`text` is a column of lists of words and `label` one of as many tags: names, or numbers of a ClassLabel.

    The first word piece of each word has its label, and the others none. Sentences that are too long become windows,
    in which each word counts once. Where `text` is a text, as when one predicts, its words and punctuation marks are
    taken apart.

    Options of a `Reading`:
        stride: by how many tokens windows overlap; 32, and at most half of a window.
        pieces: `all` gives every piece of a word its label in training, an I- in place of a B- after the first.
    """

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    primary_metric = "f1"
    options: Mapping[str, type] = MappingProxyType({"stride": int, "pieces": str})

    def class_names(
        self, splits: Mapping[str, Dataset], columns: Columns, options: Mapping[str, Any] = NO_OPTIONS
    ) -> tuple[str, ...]:
        return tags_of(splits, str(columns.label))

    def fields(self, reading: Reading) -> dict[str, Any]:
        return named_classes(reading.names)

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        label = reading.columns.label
        if label is None or label not in rows.column_names:
            return _tokens(rows, reading, None)
        declared = declared_tags(rows, label)

        def numbers(batch: Rows, words: list[list[str]], places: list[int]) -> list[list[int]]:
            of_rows = zip(batch[label], words, places, strict=True)
            return [tag_numbers(tags, len(row), place, reading.names, declared) for tags, row, place in of_rows]

        every_piece = train and reading.options.get("pieces", "first") == "all"
        return _tokens(rows, reading, numbers, going_on(reading.names) if every_piece else None)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> TaskEvaluator:
        return TaskEvaluator(task=entity_task(reading.names), fixed_order=True)

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """`prediction`: a tag for each word; `entities`: type, start, end and text of each; for a text its `words`.

        Start and end are numbers of words, or for a text of characters; the end is the first one after it.
        """
        column = reading.columns.text[0]
        encoded = _tokens(rows, reading, lambda batch, words, places: [range(len(row)) for row in words])
        windows = _said(model, encoded, reading, batch_size)
        for row, of_row in groupby(windows, key=lambda one: one[0]):
            yield _prediction(rows[row][column], [tag for _, tags in of_row for tag in tags])


def _tokens(
    rows: Dataset,
    reading: Reading,
    numbers: Callable[[Rows, list[list[str]], list[int]], Sequence[Sequence[int]]] | None,
    inner: Sequence[int] | None = None,
) -> Dataset:
    """Windows of rows as tokens; `window` is the place of its row and its number in it.

    Args:
        numbers: (rows, their words, their places) -> a label for each word; None for rows without labels.
        inner: label of a word -> that of its pieces after the first; None where they have none.
    """

    def of_rows(batch: Rows, places: list[int]) -> Rows:
        column = reading.columns.text[0]
        if None in batch[column]:
            raise DataError(f"row {places[batch[column].index(None)]} has no words in column {column!r}")
        words = [[word.text for word in _words(one)] for one in batch[column]]
        stride = int(reading.options.get("stride", STRIDE))
        columns = word_windows(words, reading.tokenizer, reading.max_length, stride)
        row, number, of_word, first = (columns.pop(name) for name in ("row", "number", "words", "first"))
        columns["window"] = [[places[one], n] for one, n in zip(row, number, strict=True)]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        if numbers is not None:
            labels = numbers(batch, words, places)
            windows = zip(row, of_word, first, strict=True)
            columns["labels"] = [_labels(labels[one], tokens, begins, inner) for one, tokens, begins in windows]
        return columns

    return rows.map(of_rows, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Tokenizing")


def _labels(
    labels: Sequence[int], words: Sequence[int | None], first: Sequence[bool], inner: Sequence[int] | None
) -> list[int]:
    """The label of each token of a window."""
    made = []
    for word, begins in zip(words, first, strict=True):
        if word is None or not begins and inner is None:
            made.append(IGNORED_LABEL)
        else:
            made.append(labels[word] if begins or inner is None else inner[labels[word]])
    return made


def _said(model: Any, encoded: Dataset, reading: Reading, batch_size: int) -> Iterator[tuple[int, list[str]]]:
    """For each window its row, and the tags of the words that count in it."""
    names = model.config.id2label
    for output, batch in outputs(model, encoded, reading.tokenizer, batch_size):
        sides = (batch["window"][:, 0].tolist(), output.logits.argmax(-1).tolist(), batch["labels"].tolist())
        for row, numbers, words in zip(*sides, strict=True):
            pairs = zip(words, numbers, strict=True)
            yield row, [names[number] for word, number in pairs if word != IGNORED_LABEL]


def _prediction(text: str | Sequence[str], tags: list[str]) -> dict[str, Any]:
    entities, words = [], _words(text)
    for kind, first, end in entities_of(tags):
        if isinstance(text, str):
            where = (words[first].start, words[end - 1].end)
            said = text[slice(*where)]
        else:
            where, said = (first, end), " ".join(text[first:end])
        entities.append({"type": kind, "start": where[0], "end": where[1], "text": said})
    taken_apart = {"words": [word.text for word in words]} if isinstance(text, str) else {}
    return {**taken_apart, "prediction": tags, "entities": entities}


def _words(text: str | Sequence[str]) -> list[Word]:
    return words_of(text) if isinstance(text, str) else [Word(str(word), 0, 0) for word in text]

"""A score for a query and a document read together, so that what answers the query stands first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from ..config.layer_entries import Entries
from ..data.collating import default_collator
from ..data.text import tokenize
from ..errors import DataError
from ..evaluation.by_row import ROW
from ..evaluation.ranking import AT, RankingEvaluator
from ..losses.table import LOSSES
from .predicting import outputs
from .regression import number_of
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

MOST_CANDIDATES = 8  # of a query in training, where nobody says
_OF_CLASSES = {one.name for one in LOSSES if one.softmax and not one.several}
_KEPT = ("teacher", "student", "weight", "name", "stage", "teacher_name")


class Reranking(Task):
    """Columns are a query, its positive and one or more negatives (texts, or lists of them); or a query, a document
    and a `label` that is above 0 where the document answers: rows of one query are then put together.

    Options: `candidates`, how many documents of a query are read in training, the relevant ones first; 8.
    """

    name = "reranking"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = f"ndcg@{AT}"
    options: Mapping[str, type] = MappingProxyType({"candidates": int})
    texts = (2, 32)
    labelled = False

    def fields(self, reading: Reading) -> dict[str, Any]:
        return {"num_labels": 1}

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        """In training a row is a query with all its candidates; in evaluation it is one candidate, with its number."""
        import datasets

        lists = candidates_of(rows, reading)
        most = int(reading.options.get("candidates", MOST_CANDIDATES)) if train else None
        lists = [one.first(most) for one in lists]
        pairs = {
            "text": [one.text for one in lists for _ in one.documents],
            "document": [document for one in lists for document in one.documents],
        }
        flat = tokenize(datasets.Dataset.from_dict(pairs), reading.tokenizer, [*pairs], reading.max_length)
        if not train:
            return flat.add_column(ROW, list(range(len(flat))))
        names = [name for name in flat.column_names if name != "length"]
        columns: dict[str, list[Any]] = {name: [] for name in (*names, "labels", "query", "length")}
        start = 0
        for number, one in enumerate(lists):
            part = flat[start : start + len(one.documents)]
            start += len(one.documents)
            for name in names:
                columns[name].append(part[name])
            columns["labels"].append([int(value > 0) for value in one.relevance])
            columns["query"].append(number)
            columns["length"].append(max(part["length"]))
        return datasets.Dataset.from_dict(columns)

    def collator(self, reading: Reading) -> Callable[[list[Any]], Any]:
        return Candidates(reading.tokenizer)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def fit(self, entries: Entries) -> Entries:
        """The margins between a query's candidates in place of what compares classes with the teacher's."""
        return [
            {**{key: value for key, value in entry.items() if key in _KEPT}, "loss": "margin_mse"}
            if entry.get("teacher") == entry.get("student") == "output.logits" and entry.get("loss") in _OF_CLASSES
            else entry
            for entry in entries
        ]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> RankingEvaluator:
        lists = candidates_of(rows, reading)
        query = [number for number, one in enumerate(lists) for _ in one.documents]
        return RankingEvaluator(query, [value for one in lists for value in one.relevance])

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """`score` of the first column of documents, row by row."""
        pair = [*reading.columns.text[:2]]
        encoded = tokenize(rows.select_columns(pair), reading.tokenizer, pair, reading.max_length)
        for output, _ in outputs(model, encoded, reading.tokenizer, batch_size):
            for score in output.logits[:, 0].float().tolist():
                yield {"score": score}


@dataclass(frozen=True)
class Listed:
    """A query, its documents with the most relevant first, and how relevant each is."""

    text: str
    documents: tuple[str, ...]
    relevance: tuple[float, ...]

    def first(self, most: int | None) -> Listed:
        return Listed(self.text, self.documents[:most], self.relevance[:most])


@dataclass(frozen=True)
class Candidates:
    """Queries into one batch of all their candidates, one below the other, with `query` saying which are whose.

    Rows that are one candidate each become a batch as they are.
    """

    tokenizer: Any

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        if "query" not in rows[0]:
            return default_collator(self.tokenizer, rows[0])(rows)
        sizes = [len(row["labels"]) for row in rows]
        tokens = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        flat = [
            {name: row[name][n] for name in tokens} for row, size in zip(rows, sizes, strict=True) for n in range(size)
        ]
        batch = self.tokenizer.pad(flat, return_tensors="pt")
        batch["labels"] = torch.tensor([label for row in rows for label in row["labels"]])
        batch["query"] = torch.repeat_interleave(torch.tensor([row["query"] for row in rows]), torch.tensor(sizes))
        return batch


def candidates_of(rows: Dataset, reading: Reading) -> list[Listed]:
    """The queries of a data set, in the order in which they first stand there.

    Raises:
        DataError: no label and no negative, a label that is no number, or fewer than two documents for every query.
    """
    label, (query, *documents) = reading.columns.label, reading.columns.text
    if label is not None and label in rows.column_names:
        lists = _put_together(rows, query, documents[0], label)
    elif len(documents) > 1:
        lists = [
            _listed(row[query], [row[name] for name in documents]) for row in rows.select_columns([query, *documents])
        ]
    else:
        raise DataError(
            f"reranking reads a query, a document and a label, or a query, its positive and negatives: found the "
            f"columns {', '.join(reading.columns.text)} and no label"
        )
    if all(len(one.documents) < 2 for one in lists):
        raise DataError(
            f"every query in column {query!r} has one document alone, so that there is nothing to rank: give "
            "negatives, or rows of the same query with other documents"
        )
    return lists


def _put_together(rows: Dataset, query: str, document: str, label: str) -> list[Listed]:
    found: dict[str, list[tuple[float, str]]] = {}
    for place, row in enumerate(rows.select_columns([query, document, label])):
        found.setdefault(row[query], []).append((number_of(row[label], place, label), row[document]))
    lists = []
    for text, pairs in found.items():
        relevance, documents = zip(*sorted(pairs, key=lambda pair: -pair[0]), strict=True)
        lists.append(Listed(text, documents, relevance))
    return lists


def _listed(text: str, columns: list[str | list[str]]) -> Listed:
    documents = [one for column in columns for one in ([column] if isinstance(column, str) else column or [])]
    return Listed(text, tuple(documents), (1.0, *[0.0] * (len(documents) - 1)))

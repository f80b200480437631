"""The part of a passage that answers a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.passages import PadWithPassage, passage_windows, place_of_answer
from ..errors import DataError, shown
from ..evaluation.evaluators import TaskEvaluator
from ..evaluation.span_texts import LONGEST_ANSWER, Span, SpanScores, best_of_row, best_of_windows
from ..losses.labels import IGNORED_LABEL
from .predicting import outputs
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

STRIDE = 128  # tokens
_ENDS = ("start", "end")


class QuestionAnswering(Task):
    """`text` is the column of questions and that of passages; `label` that of answers.

    Answers are as in SQuAD `{"text": [...], "answer_start": [...]}`, of which training takes the first and evaluation
    all; or a text, which is then looked for in the passage. A passage that is too long becomes windows. A window
    without the whole answer is trained to point at [CLS] with both ends, as in BERT's code for SQuAD 1.1 and 2.0, and
    so is a question without an answer; where a tokenizer has no [CLS], it does not count. An answer is a part of the
    passage alone: the likeliest of all windows.

    Options of a `Reading`:
        stride: by how many tokens windows overlap; 128, and at most half of what a window holds of the passage.
        longest_answer: in tokens; 30.
        no_answer: whether a question may have no answer, as in SQuAD 2.0. Left out: in evaluation, whether one has
            none; in prediction, false.

    Source: Devlin et al., BERT, 2019.
    """

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    primary_metric = "f1"
    texts = (2, 2)
    max_length = 384
    options: Mapping[str, type] = MappingProxyType({"stride": int, "longest_answer": int, "no_answer": bool})

    def fields(self, reading: Reading) -> dict[str, Any]:
        return {"num_labels": 2}  # logits of each token: of a start, and of an end

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        question, passage = reading.columns.text
        label = _answered(rows, reading) if train else None

        def of_rows(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
            for name in (question, passage):
                if None in batch[name]:
                    raise DataError(f"row {places[batch[name].index(None)]} has no text in column {name!r}")
            columns = passage_windows(
                batch[question],
                batch[passage],
                reading.tokenizer,
                reading.max_length,
                int(reading.options.get("stride", STRIDE)),
            )
            local, number = columns.pop("row"), columns.pop("number")
            cls, offsets = columns.pop("cls"), columns.pop("offsets")
            if label is not None:
                spans = [_span(*row) for row in zip(batch[label], batch[passage], places, strict=True)]
                ends = [
                    _ends(spans[row], of_window, place)
                    for row, of_window, place in zip(local, offsets, cls, strict=True)
                ]
                columns |= {f"{side}_positions": [pair[i] for pair in ends] for i, side in enumerate(_ENDS)}
            columns["window"] = [[places[row], n] for row, n in zip(local, number, strict=True)]
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
            return columns if train else {**columns, "offsets": offsets}

        return rows.map(of_rows, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Tokenizing")

    def collator(self, reading: Reading) -> Callable[[list[Any]], Any]:
        return PadWithPassage(reading.tokenizer)

    def hard_entries(self) -> Entries:
        return self.fit([{"student": "output.logits", "loss": "cross_entropy"}])

    def fit(self, entries: Entries) -> Entries:
        """An entry on logits is one on those of starts and one on those of ends, at half of its weight each.

        The classes of both are the tokens of the passage, and [CLS] for no answer.
        """
        return [one for entry in entries for one in _of_both_ends(entry)]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> TaskEvaluator:
        label, passages = _answered(rows, reading), rows[reading.columns.text[1]][:]
        answers = None if label is None else [_texts(one) for one in rows[label]]
        none = reading.options.get("no_answer", answers is not None and not all(answers))
        return TaskEvaluator(
            task=SpanScores(passages, answers, bool(none), _longest(reading)).task(), fixed_order=True
        )

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """`prediction`: the answer, "" for none; its `start` and `end` in the passage; its `probability`."""
        encoded, column = self.encode(rows, reading, train=False), reading.columns.text[1]
        none = bool(reading.options.get("no_answer", False))
        spans = _spans(model, encoded, reading, batch_size, self.collator(reading))
        for row, of_row in groupby(spans, key=lambda one: one[0]):
            best = best_of_row([span for _, span in of_row], none)
            text = rows[row][column][best.start : best.end]
            yield {"prediction": text, "start": best.start, "end": best.end, "probability": best.probability}


def _spans(
    model: Any, encoded: Dataset, reading: Reading, batch_size: int, collator: Callable[[list[Any]], Any]
) -> Iterator[tuple[int, Span]]:
    """Row and likeliest span of each window."""
    for output, batch in outputs(model, encoded, reading.tokenizer, batch_size, collator):
        logits = (output.start_logits, output.end_logits)
        found = best_of_windows(*logits, batch["offsets"], batch["passage_mask"], _longest(reading))
        for row, (start, end, *others) in zip(batch["window"][:, 0].tolist(), found.tolist(), strict=True):
            yield row, Span(int(start), int(end), *others)


def _answered(rows: Dataset, reading: Reading) -> str | None:
    """The column of answers; None where there is none, or nothing in it."""
    label = reading.columns.label
    return label if label in rows.column_names and any(one is not None for one in rows[label]) else None


def _longest(reading: Reading) -> int:
    return int(reading.options.get("longest_answer", LONGEST_ANSWER))


def _of_both_ends(entry: dict[str, Any]) -> Entries:
    sides = [side for side in ("teacher", "student") if entry.get(side) == "output.logits"]
    if "student" not in sides or ("teacher" in entry) != ("teacher" in sides):
        return [entry]
    both = []
    for end in _ENDS:
        name = {"name": f"{entry['name']}_{end}"} if "name" in entry else {}
        features = dict.fromkeys(sides, f"output.{end}_logits")
        both.append({**entry, **features, **name, "mask": "passage", "weight": entry.get("weight", 1.0) / 2})
    return both


def _texts(answers: Any) -> list[str]:
    """All right answers; none where there is no answer."""
    if isinstance(answers, Mapping):
        return list(answers["text"])
    return [answers] if answers else []


def _span(answers: Any, passage: str, place: int) -> tuple[int, int] | None:
    """The characters of the first answer, from the first to before the last; None where there is no answer.

    Raises:
        DataError: it is not where it is said to be, or nowhere in the passage.
    """
    texts = _texts(answers)
    if not texts:
        return None
    text = texts[0]
    start = answers["answer_start"][0] if isinstance(answers, Mapping) else passage.find(text)
    if passage[start : start + len(text)] == text and start >= 0:
        return start, start + len(text)
    found = passage.find(text)
    if found < 0:
        raise DataError(f"row {place}: the answer {shown(text)} is not in its passage")
    raise DataError(
        f"row {place}: the answer {shown(text)} begins at character {found} of its passage, not at {start}"
    )


def _ends(span: tuple[int, int] | None, offsets: list[tuple[int, int]], cls: int) -> tuple[int, int]:
    """The tokens where an answer starts and ends; [CLS] where the window does not have it, -100 where that is none."""
    found = place_of_answer(offsets, *span) if span is not None else None
    return found or (cls if cls >= 0 else IGNORED_LABEL,) * 2

"""Scores of predictions, summed batch by batch: of a batch nothing is kept but what was predicted, never its logits.

A `Task` says what one model predicts on a batch, what that adds to the sums over all batches and processes, and what
the scores are of these sums. Which task it is follows from the first outputs and labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.batch_context import of_next
from ..losses.labels import IGNORED_LABEL, are_yes_or_no
from .glue_metrics import pearson

Totals = dict[str, Any]  # numbers, arrays, and lists of arrays: whatever adds up by +


class Targets(NamedTuple):
    """What a batch has to score against.

    Args:
        labels: class numbers, real numbers, or 0 and 1 for each class; of spans a pair (starts, ends); None without.
        mask: (batch, length), the tokens that count; None where logits are one for each row.
        next_token: position i of the logits is for label i + 1.
        inputs: all that the batch has.
        of_words: the classes are the tokens that a model says, so that there is a perplexity.
    """

    labels: Any
    mask: Tensor | None = None
    next_token: bool = False
    inputs: Mapping[str, Any] = MappingProxyType({})
    of_words: bool = False


class Answer(NamedTuple):
    """What a model says of a batch: its predictions, how many classes it has, and what they add to the sums."""

    predictions: Tensor
    classes: int
    sums: Totals


class Task(NamedTuple):
    """How predictions of one kind are scored.

    Args:
        answer: (what the model gave, targets) -> its answer.
        agreement: (student's predictions, teacher's, targets) -> sums.
        scores: sums of answers -> metrics, the one to go by first; empty without labels.
        agreed: sums of agreement -> a number.
    """

    answer: Callable[[Any, Targets], Answer]
    agreement: Callable[[Tensor, Tensor, Targets], Totals]
    scores: Callable[[Totals], dict[str, float]]
    agreed: Callable[[Totals], float]


def task_of(output: Any, targets: Targets, problem_type: str | None = None) -> Task:
    """The task that outputs and labels speak of.

    Args:
        output: a model's logits, or (start logits, end logits).
        problem_type: of the model's config: what tells real numbers from class labels that look alike.
    """
    if isinstance(output, tuple):
        return SPANS
    labels = targets.labels
    one_output = output.shape[-1] == 1
    if labels is None:
        return NUMBERS if one_output else CLASSES
    fits = labels.numel() == output.numel()
    if fits and problem_type != "regression" and are_yes_or_no(labels) and (not one_output or not is_real(labels)):
        return LABELS
    return NUMBERS if fits and (is_real(labels) or one_output) else CLASSES


def is_real(labels: Tensor) -> bool:
    return labels.is_floating_point()


def add(totals: Totals, more: Mapping[str, Any]) -> None:
    """Add sums to sums."""
    for name, value in more.items():
        totals[name] = totals[name] + value if name in totals else value


def added(parts: Iterable[Mapping[str, Any]]) -> Totals:
    totals: Totals = {}
    for part in parts:
        add(totals, part)
    return totals


def share(part: Any, whole: Any) -> float:
    """A part of a whole; no number where there is nothing."""
    return float(part) / float(whole) if whole else math.nan


# --- one class of several --------------------------------------------------------------------------------------------


def _class_answer(logits: Tensor, targets: Targets) -> Answer:
    sums: Totals = {}
    predictions = logits.argmax(-1)
    if targets.labels is not None:
        labels = _predicted_labels(targets)
        counted = labels != IGNORED_LABEL
        sums = {"items": int(counted.sum()), "right": int(((predictions == labels) & counted).sum())}
        if targets.of_words:
            rows = zip(logits, labels.long(), strict=True)  # row by row: logits of all of them are large enough
            sums["surprise"] = float(sum(_surprise(row, of_row) for row, of_row in rows))
    return Answer(predictions.int().cpu(), logits.shape[-1], sums)


def _surprise(logits: Tensor, labels: Tensor) -> float:
    """The sum of -log p of the labels that count."""
    return float(F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum"))


def _predicted_labels(targets: Targets) -> Tensor:
    """The label that each position of the logits is for."""
    labels = targets.labels
    if not targets.next_token or labels.dim() != 2:
        return labels
    return of_next(labels, IGNORED_LABEL)


def _class_agreement(student: Tensor, teacher: Tensor, targets: Targets) -> Totals:
    counted = torch.ones_like(student, dtype=torch.bool)
    if targets.mask is not None:
        counted = targets.mask.cpu()
    if targets.labels is not None and targets.labels.shape == student.shape:
        counted = counted & (_predicted_labels(targets) != IGNORED_LABEL).cpu()
    return {"compared": int(counted.sum()), "alike": int(((student == teacher) & counted).sum())}


def _class_scores(sums: Totals) -> dict[str, float]:
    if not sums:
        return {}
    scores = {"accuracy": share(sums["right"], sums["items"])}
    if "surprise" in sums:
        mean = share(sums["surprise"], sums["items"])
        scores["perplexity"] = math.exp(mean) if mean < 700 else math.inf
    return scores


def _alike(sums: Totals) -> float:
    return share(sums["alike"], sums["compared"])


CLASSES = Task(_class_answer, _class_agreement, _class_scores, _alike)


# --- yes or no, for each of several labels or for one ----------------------------------------------------------------


def _label_answer(logits: Tensor, targets: Targets) -> Answer:
    predictions = (logits > 0).cpu()
    labels = targets.labels.reshape(logits.shape).cpu()
    counted = labels != IGNORED_LABEL
    said, true = (predictions & counted).flatten(0, -2), ((labels == 1) & counted).flatten(0, -2)
    sums: Totals = {name: x.sum(0).numpy() for name, x in (("said", said), ("true", true), ("both", said & true))}
    sums |= {"items": int(counted.sum()), "right": int(((predictions == (labels == 1)) & counted).sum())}
    return Answer(predictions, logits.shape[-1], sums)


def _label_agreement(student: Tensor, teacher: Tensor, targets: Targets) -> Totals:
    return {"compared": student.numel(), "alike": int((student == teacher).sum())}


def _label_scores(sums: Totals) -> dict[str, float]:
    if not sums:
        return {}
    if len(sums["both"]) == 1:
        return {"accuracy": share(sums["right"], sums["items"])}
    either = sums["said"] + sums["true"]
    by_label = [2 * both / any_ if any_ else 0.0 for both, any_ in zip(sums["both"], either, strict=True)]
    micro = share(2 * sums["both"].sum(), either.sum()) if either.sum() else 0.0
    return {"f1_micro": micro, "f1_macro": float(np.mean(by_label))}


LABELS = Task(_label_answer, _label_agreement, _label_scores, _alike)


# --- real numbers ----------------------------------------------------------------------------------------------------


def _number_answer(logits: Tensor, targets: Targets) -> Answer:
    predictions = logits.detach().double().cpu()
    sums: Totals = {}
    if targets.labels is not None:
        sums = {
            "predictions": [predictions.numpy().ravel()],
            "labels": [targets.labels.double().cpu().numpy().ravel()],
        }
    return Answer(predictions, logits.shape[-1], sums)


def _number_agreement(student: Tensor, teacher: Tensor, targets: Targets) -> Totals:
    return {"student": [student.numpy().ravel()], "teacher": [teacher.numpy().ravel()]}


def _number_scores(sums: Totals) -> dict[str, float]:
    if not sums:
        return {}
    return {"pearson": pearson(np.concatenate(sums["predictions"]), np.concatenate(sums["labels"]))}


def _number_agreed(sums: Totals) -> float:
    return pearson(np.concatenate(sums["student"]), np.concatenate(sums["teacher"]))


NUMBERS = Task(_number_answer, _number_agreement, _number_scores, _number_agreed)


# --- spans of a text -------------------------------------------------------------------------------------------------


def best_spans(start: Tensor, end: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, 2): the first and last position of the likeliest span of each row, none of it padding.

    Args:
        start, end: (batch, length) logits.
        mask: (batch, length); None where nothing is padding.
    """
    if mask is not None:
        start, end = (side.masked_fill(~mask.bool(), -math.inf) for side in (start, end))
    best, first = start.cummax(-1)  # of the starts up to each end
    last = (best + end).argmax(-1, keepdim=True)
    return torch.cat([first.gather(-1, last), last], -1)


def _span_answer(output: tuple[Tensor, Tensor], targets: Targets) -> Answer:
    length = output[0].shape[1]
    predictions = best_spans(output[0].float(), output[1].float(), targets.mask).cpu()
    sums: Totals = {}
    if targets.labels is not None:
        starts, ends = (positions.reshape(-1).tolist() for positions in targets.labels)
        known = targets.inputs.get("input_ids")  # by which spans are compared
        ids = [range(length)] * len(starts) if known is None else known.tolist()
        sums = {"items": 0, "exact": 0, "f1": 0.0}
        for (first, last), start, end, row in zip(predictions.tolist(), starts, ends, ids, strict=True):
            if 0 <= start < length and 0 <= end < length:  # else the answer was cut off with the text
                found, right = row[first : last + 1], row[start : end + 1]
                add(sums, {"items": 1, "exact": int(found == right), "f1": _overlap(found, right)})
    return Answer(predictions, length, sums)


def _overlap(found: Sequence[int], right: Sequence[int]) -> float:
    """F1 of two bags of tokens."""
    both = sum((Counter(found) & Counter(right)).values())
    return 2 * both / (len(found) + len(right)) if found or right else 1.0


def _span_agreement(student: Tensor, teacher: Tensor, targets: Targets) -> Totals:
    return {"compared": len(student), "alike": int((student == teacher).all(-1).sum())}


def _span_scores(sums: Totals) -> dict[str, float]:
    if not sums:
        return {}
    return {"f1": share(sums["f1"], sums["items"]), "exact_match": share(sums["exact"], sums["items"])}


SPANS = Task(_span_answer, _span_agreement, _span_scores, _alike)

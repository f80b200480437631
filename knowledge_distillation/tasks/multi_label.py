"""Any number of classes for a text, or for a pair of texts: yes or no to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..data.classes import MOST_CLASSES
from ..data.columns import Columns
from ..data.label_sets import columns_of, labels_in, names_of_file, reader_of, sorted_names, unknown_label
from ..errors import DataError
from .predicting import outputs
from .task import NO_OPTIONS, Reading, Task
from .text_classification import named_classes, texts_as_tokens

if TYPE_CHECKING:
    from datasets import Dataset


class MultiLabel(Task):
    """`label` is a list, or labels joined by a separator, or several columns of 0 and 1 (`a,b,c`); empty is none.

    The entries of every method stay as they are. Each class is a choice of two, of the logits 0 and z: cross-entropy
    with the labels is then binary cross-entropy, the mean over the classes, and soft targets (`kl_divergence`,
    `soft_cross_entropy`) are those of each class by itself, with the temperature dividing z.
    Source: Yang et al., Multi-Label Knowledge Distillation, 2023.

    The best student is the one with the best micro F1, which counts every decision alike: macro F1, which is reported
    beside it, hangs on a few rows of the rarest classes. Both take what is above 0.5.

    Options:
        separator: between the labels of one text; guessed where one alone would do.
        class_names: a file with the name of a class on each line, where the labels are numbers from 0.
    """

    name = "multi-label"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "f1_micro"
    texts = (1, 2)
    options: Mapping[str, type] = MappingProxyType({"separator": str, "class_names": Path})

    def class_names(
        self, splits: Mapping[str, Dataset], columns: Columns, options: Mapping[str, Any] = NO_OPTIONS
    ) -> tuple[str, ...]:
        separator, written = options.get("separator"), str(columns.label)
        of_file = names_of_file(options["class_names"]) if options.get("class_names") else ()
        several = columns_of(splits["train"], written)
        found = {label for labels in labels_in(splits["train"], written, separator) for label in labels}
        names = of_file or (several if len(several) > 1 else sorted_names(found))
        if len(names) < 2:
            only = f"one label only, {names[0]!r}" if names else "no label"
            raise DataError(f"column {written!r} holds {only}: there is nothing to tell apart")
        if len(names) > MOST_CLASSES:
            raise DataError(
                f"column {written!r} holds {len(names):,} different labels, more than {MOST_CLASSES:,}: is it the "
                "label, and are its labels joined otherwise (separator)?"
            )
        for split, rows in splits.items():
            for place, labels in enumerate(labels_in(rows, written, separator)):
                _numbers(labels, f"row {place} of the {split} rows", names, bool(of_file))
        return names

    def fields(self, reading: Reading) -> dict[str, Any]:
        return {**named_classes(reading.names), "problem_type": "multi_label_classification"}

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        return texts_as_tokens(_with_yes_or_no(rows, reading), reading)

    def hard_entries(self) -> Entries:
        return [{"student": "output.logits", "loss": "cross_entropy"}]

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        names = model.config.id2label
        encoded = texts_as_tokens(rows.select_columns([*reading.columns.text]), reading)
        for output, _ in outputs(model, encoded, reading.tokenizer, batch_size):
            for row in output.logits.float().sigmoid().tolist():
                said = {names[number]: chance for number, chance in enumerate(row) if chance > 0.5}
                yield {"prediction": list(said), "probability": list(said.values())}


def _numbers(labels: list[str], where: str, names: tuple[str, ...], numbered: bool) -> set[int]:
    """The numbers of a row's classes, which it has by name or, `numbered`, also by number."""
    numbers = set()
    for label in labels:
        if label in names:
            numbers.add(names.index(label))
        elif numbered and label.isdecimal() and int(label) < len(names):
            numbers.add(int(label))
        else:
            raise unknown_label(label, where, names)
    return numbers


def _with_yes_or_no(rows: Dataset, reading: Reading) -> Dataset:
    """The rows with 0 or 1 for each class as `label`; rows without the columns as they are."""
    import datasets

    written = reading.columns.label
    if written is None or not {written, written.split(",")[0].strip()} & {*rows.column_names}:
        return rows
    columns = columns_of(rows, written)
    read, names = reader_of(rows, written, reading.options.get("separator")), reading.names
    numbered = bool(reading.options.get("class_names"))

    def of_row(row: dict[str, Any], place: int) -> dict[str, list[float]]:
        numbers = _numbers(read(row, place), f"row {place}", names, numbered)
        return {"label": [float(number in numbers) for number in range(len(names))]}

    others = [name for name in dict.fromkeys([*columns, "label"]) if name in rows.column_names]
    kept = {name: one for name, one in rows.features.items() if name not in others}
    features = datasets.Features(kept | {"label": datasets.List(datasets.Value("float32"))})
    return rows.map(of_row, with_indices=True, remove_columns=others, features=features, desc="Labels")

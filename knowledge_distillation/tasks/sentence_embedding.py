"""One vector for a text, so that texts that say the same lie near each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config.layer_entries import Entries
from ..config.pooling import POOLINGS, SENTENCE
from ..data.text import tokenize
from ..errors import ConfigError, DataError, nearest
from ..evaluation.by_row import ROW
from ..evaluation.embeddings import EmbeddingEvaluator, cosines, embedding
from ..features.pooling import pooling_of
from .predicting import outputs
from .regression import number_of
from .task import Reading, Task

if TYPE_CHECKING:
    from datasets import Dataset

FEATURE = f"output.{SENTENCE}"
MOST_COLUMNS = 8
_KEPT = ("weight", "name", "stage", "teacher_name")  # of an entry on logits, where it becomes one on embeddings


class SentenceEmbedding(Task):
    """Training reads the texts of every column, without labels; evaluation pairs of them, with a score in `label`.

    Options: `pooling` and `normalize`, where they are not to be the model's own.
    """

    name = "sentence-embedding"
    auto_class = "AutoModel"
    primary_metric = "spearmanr"
    options: Mapping[str, type] = MappingProxyType({"pooling": str, "normalize": bool})
    texts = (1, MOST_COLUMNS)
    labelled = False

    def fields(self, reading: Reading) -> dict[str, Any]:
        """What a model's config says of its embeddings, as far as the options do; `settle` says the rest."""
        said = {key: reading.options[key] for key in ("pooling", "normalize") if reading.options.get(key) is not None}
        if said.get("pooling", POOLINGS[0]) not in POOLINGS:
            near = nearest(str(said["pooling"]), POOLINGS)
            raise ConfigError(f"pooling is one of {', '.join(POOLINGS)}; found {said['pooling']!r}.{near}")
        return {SENTENCE: said} if said else {}

    def settle(self, model: Any, reading: Reading) -> None:
        """The config says how embeddings are pooled, and how long texts may be: students and their folders keep it."""
        own, _ = pooling_of(model)
        asked = self.fields(reading).get(SENTENCE, {})
        said = {"pooling": own.mode, "normalize": own.normalize, "max_length": reading.max_length, **asked}
        setattr(model.config, SENTENCE, said)

    def encode(self, rows: Dataset, reading: Reading, train: bool) -> Dataset:
        """Each text is a row of its own; of an evaluation in the order of the pairs, with its number.

        Of the columns of text those are read that the rows have: training and evaluation may have others.
        """
        label, columns = reading.columns.label, reading.columns.text
        columns = tuple(name for name in columns if name in rows.column_names) or columns
        if not train and label in rows.column_names and len(columns) != 2:
            raise DataError(
                f"scores are those of pairs: evaluation with {label!r} reads two columns of text, and found "
                f"{', '.join(columns)}"
            )
        tokens = tokenize(_one_by_one(rows, columns), reading.tokenizer, ["text"], reading.max_length)
        return tokens if train else tokens.add_column(ROW, list(range(len(tokens))))

    def hard_entries(self) -> Entries:
        raise ConfigError(
            "sentence-embedding has no labels to learn from: it learns from a teacher, on texts alone. Name a teacher"
        )

    def fit(self, entries: Entries) -> Entries:
        """Embeddings in place of logits, by their cosine; what is compared with labels goes."""
        fitted: Entries = []
        for entry in entries:
            has_teacher = any(entry.get(key) is not None for key in ("teacher", "teacher_layer_name"))
            names = (entry.get("student_layer_name"), entry.get("student_layer_output_name"))
            if entry.get("student") == "output.logits" or names == ("output", "logits"):
                kept = {key: value for key, value in entry.items() if key in _KEPT}
                entry = {"teacher": FEATURE, "student": FEATURE, "loss": "cos", **kept}
            if has_teacher:
                fitted.append(entry)
        return fitted or [{"teacher": FEATURE, "student": FEATURE, "loss": "cos"}]

    def evaluator(self, rows: Dataset, encoded: Dataset, reading: Reading) -> EmbeddingEvaluator:
        label = reading.columns.label
        if label is None or label not in rows.column_names:
            return EmbeddingEvaluator()
        return EmbeddingEvaluator([number_of(value, place, label) for place, value in enumerate(rows[label])])

    def predict(self, model: Any, rows: Dataset, reading: Reading, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """`embedding`, or one for each column of text with its name behind; of two the `similarity`, their cosine."""
        pooling, _ = pooling_of(model)
        names, width = reading.columns.text, len(reading.columns.text)
        texts = tokenize(_one_by_one(rows, names), reading.tokenizer, ["text"], reading.max_length)
        waiting: list[Any] = []
        for output, batch in outputs(model, texts, reading.tokenizer, batch_size):
            waiting.extend(embedding(output, batch, pooling).float().cpu().numpy())
            while len(waiting) >= width:
                row, waiting = waiting[:width], waiting[width:]
                if width == 1:
                    yield {"embedding": row[0].tolist()}
                    continue
                said = {f"embedding_{name}": one.tolist() for name, one in zip(names, row, strict=True)}
                yield said | ({"similarity": float(cosines(row[0][None], row[1][None])[0])} if width == 2 else {})


def _one_by_one(rows: Dataset, columns: tuple[str, ...]) -> Dataset:
    """The texts of all columns below one another, row by row, as `text`."""

    def beside(part: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {"text": [text for row in zip(*(part[name] for name in columns), strict=True) for text in row]}

    rows = rows.select_columns([*columns])
    return rows.map(beside, batched=True, remove_columns=rows.column_names, desc="Texts")

"""An evaluator that lets the models write, and scores the texts beside what `TaskEvaluator` measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .by_row import ROW
from .evaluators import TaskEvaluator
from .generated import written
from .written_metrics import Score


class WritingEvaluator:
    """The metrics of `TaskEvaluator`, and the scores of what student and teacher write for each row.

    Every process writes for its own rows, and all score the texts of all; a row that comes twice counts once. The
    teacher is frozen and writes once.

    Args:
        score: (texts, references) -> metrics.
        references: the right text of each row, by the number that a batch has as `idx`.
        tokenizer: of the models.
        primary_metric: by which the best student is kept.
        **how: as `model.generate` takes it.
    """

    greater_is_better = True

    def __init__(
        self, score: Score, references: Sequence[str], tokenizer: Any, primary_metric: str = "perplexity", **how: Any
    ) -> None:
        self.score, self.references, self.tokenizer, self.how = score, list(references), tokenizer, how
        self.primary_metric = primary_metric
        self._by_tokens = TaskEvaluator(primary_metric=primary_metric, fixed_order=True)
        self._of_teacher: dict[str, float] | None = None

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, dataloader: Iterable[Any], accelerator: Any
    ) -> dict[str, float]:
        by_tokens = self._by_tokens(student, teacher, dataloader, accelerator)
        of_student = self._scores(student, dataloader, accelerator)
        if teacher is not None and self._of_teacher is None:
            getattr(teacher, "hold_still", lambda: None)()
            self._of_teacher = self._scores(teacher, dataloader, accelerator)
        of_teacher = {f"teacher_{name}": value for name, value in (self._of_teacher or {}).items()}
        return {**by_tokens, **of_student, **(of_teacher if teacher is not None else {})}

    def _scores(self, model: Any, dataloader: Iterable[Any], accelerator: Any) -> dict[str, float]:
        from accelerate.utils import gather_object

        texts: list[tuple[int, str]] = []
        for batch in dataloader:
            inputs = {name: batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask")}
            with accelerator.autocast():
                found = written(model, inputs, self.tokenizer, **self.how)
            texts += zip(batch[ROW].tolist(), found, strict=True)
        by_row = dict(gather_object(texts))
        return self.score([by_row[row] for row in by_row], [self.references[row] for row in by_row])

"""The scores of a model, and of what was exported of it, on evaluation rows of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ..data.collating import default_collator
from ..errors import ConfigError
from ..evaluation.evaluators import TaskEvaluator
from ..tasks.task_data import TaskData
from ..tasks.task_rows import read_rows

Score = Callable[[nn.Module], Mapping[str, float]]


def score_on(
    data: Any, model: nn.Module, tokenizer: Any, batch_size: int = 32, **how: Any
) -> tuple[Score, tuple[str, ...]]:
    """What gives a model's metrics on evaluation rows, all on the processor; and what was guessed, in sentences.

    Args:
        data: a file of rows with labels, or what else `load_task_data` reads.
        model: whose task and classes the rows have.
        **how: `text`, `label`, `task` and `names_of_columns`, as of `load_task_data`.

    Raises:
        ConfigError, DataError: the rows cannot be read.
    """
    from accelerate import Accelerator

    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ConfigError("scores are measured of models that read text, with their tokenizer beside them")
    made = read_rows(data, model=model, training=False, **how)
    ready = TaskData.of(made, made.reading(tokenizer))
    given = ready.arguments()
    rows = given["eval_dataset"]
    collator = given["data_collator"] or default_collator(tokenizer, rows[0])
    evaluator = given["evaluator"] or TaskEvaluator(given["compute_metrics"])
    accelerator = Accelerator(cpu=True)

    def batches() -> Iterator[Any]:
        for start in range(0, len(rows), batch_size):
            yield collator([rows[place] for place in range(start, min(start + batch_size, len(rows)))])

    def score(one: nn.Module) -> Mapping[str, float]:
        return evaluator(one, None, batches(), accelerator)

    return score, (*made.notes, f"scores of {len(made.splits['validation']):,} rows")

"""Batches for a teacher and a student with a tokenizer each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..features.inputs import same_inputs
from .collating import default_collator
from .text import STUDENT


def two_token_streams(device: torch.device, batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data adaptor for `TwoTokenizers`: the student gets its own tokens, and labels and the like with the teacher.

    What is as long as the teacher's tokens (its mask, its token types) is the teacher's alone.
    """
    moved, _ = same_inputs(device, batch)
    length = moved["input_ids"].shape
    teacher = {key: value for key, value in moved.items() if not key.startswith(STUDENT)}
    shared = {key: value for key, value in teacher.items() if getattr(value, "shape", None) != length}
    own = {key.removeprefix(STUDENT): value for key, value in moved.items() if key.startswith(STUDENT)}
    return teacher, {**shared, **own}


@dataclass(frozen=True)
class TwoTokenizers:
    """Pads rows that hold two token streams, as `tokenize(…, student_tokenizer=…)` makes them: each as its own."""

    tokenizer: Any
    student_tokenizer: Any

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        shared = [{k: v for k, v in row.items() if not k.startswith(STUDENT)} for row in rows]
        own = [{k.removeprefix(STUDENT): v for k, v in row.items() if k.startswith(STUDENT)} for row in rows]
        if "input_ids" not in own[0]:
            raise DataError(
                f"the rows hold {', '.join(rows[0])} and no {STUDENT}input_ids: tokenize them with a student_tokenizer"
            )
        batch = dict(default_collator(self.tokenizer, shared[0])(shared))
        padded = default_collator(self.student_tokenizer, own[0])(own)
        return batch | {STUDENT + name: column for name, column in padded.items()}

"""What a run says of a student in its README.md: teacher, data, method, settings, scores. No path of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from torch import nn

from ..config.entry import Entry
from ..config.schedules import described as course
from ..config.settings import TrainingSettings
from ..errors import shown
from ..models.model_card import described, model_card, name_of, on_hub
from .run import Run

# Settings that a card has in any case; of the others those that are not the default.
_TELLING = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "seed")
# Those that say where something lies, or how the run was watched.
_UNTOLD = {
    *("teacher_cache", "teacher_cache_limit", "report_to", "disable_tqdm", "overwrite_output_dir", "stages"),
    *("logging_steps", "save_total_limit"),
}
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:|~)?[/\\](?:[^\s,;'\"]*[/\\])?([^\s,;'\"/\\]+)[/\\]?")


def card_of(run: Run, model: nn.Module) -> str:
    """The text of the README.md of a run's student, or of one of its peers."""
    entries = [entry for stage in run.stages for entry in stage.entries]
    names = [name for name in map(name_of, (t.model for t in run.teachers.values())) if name]
    taught = f"distilled from {names[0]}" if names else "distilled" if run.is_taught else "trained on labels"
    scores = _scores(run) if model is run.student else {}
    bases = [one.name_or_path for one in (model, *(t.model for t in run.teachers.values())) if _has_base(one)]
    return model_card(
        model,
        run.processing_class,
        about=f"A {described(model)}, {taught}.",
        sections={
            "Teacher": [f"- {_told(name, teacher.model)}" for name, teacher in run.teachers.items()],
            "Data": [*_data(run)],
            "Method": [f"{place}. {line}" for place, line in enumerate(dict.fromkeys(map(_entry, entries)), start=1)],
            "Settings": [*_table(("setting", "value"), _settings(run.settings))],
            "Scores": [*_table(("metric", "student", "teacher"), _rows(scores)), *_when(run, scores)],
        },
        base_model=next(iter(bases), None),
        tags=["knowledge-distillation"] if run.is_taught else None,
        metrics=[name for name in scores if not name.startswith("teacher_") and name != "agreement"],
    )


def without_paths(text: str) -> str:
    """A text in which every path from the root, or from home, is the last of its parts."""
    return _PATH.sub(lambda found: found[1], text)


def _has_base(model: Any) -> bool:
    return on_hub(str(getattr(model, "name_or_path", "") or ""))


def _told(name: str, model: nn.Module) -> str:
    return ": ".join(filter(None, (name, name_of(model), described(model))))


def _data(run: Run) -> Iterator[str]:
    text = run.data_note.removeprefix("data: ")
    for value in map(str, (run.recipe or {}).values()):  # paths with blanks as well
        if os.path.isabs(value):
            text = text.replace(value, os.path.basename(value.rstrip("/\\")))
    if text:
        yield without_paths(text)
    elif run.num_samples:
        yield f"{run.num_samples:,} rows to train on"


def _entry(entry: Entry) -> str:
    """An entry in one line: what learns from what, by which loss, with what weight."""
    ours, theirs = (", ".join(f"`{one}`" for one in side) for side in (entry.student, entry.teacher))
    theirs = f"the teacher's {theirs}" if theirs else "the labels"
    arguments = ", ".join(f"{key}={without_paths(shown(value, 60))}" for key, value in entry.args.items())
    courses = {key: course(one) for key, one in entry.schedule.items()}
    weight = courses.pop("weight", f"{entry.weight:g}")
    arguments = ", ".join(filter(None, [arguments, *(f"{key}={text}" for key, text in courses.items())]))
    stage = f", in stage {', '.join(entry.stage)}" if entry.stage else ""
    loss = f"{entry.loss_name}({arguments})" if arguments else entry.loss_name
    return f"{ours} learns from {theirs}: {loss}, weight {weight}{stage}"


def _settings(settings: TrainingSettings) -> Iterator[tuple[str, str]]:
    default = TrainingSettings()
    for name in (one.name for one in fields(settings)):
        value = getattr(settings, name)
        if name in _TELLING or (name not in _UNTOLD and value != getattr(default, name)):
            yield f"`{name}`", without_paths(str(value))


def _scores(run: Run) -> dict[str, float]:
    """The metrics of the last evaluation, where it was of the student as it is now."""
    if run.progress.evaluated != run.progress.step:
        return {}
    return {name.removeprefix("eval_"): value for name, value in run.metrics.items() if name.startswith("eval_")}


def _rows(scores: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    for name, value in scores.items():
        if not name.startswith("teacher_"):
            teacher = scores.get(f"teacher_{name}")
            yield name, f"{value:.4f}", "" if teacher is None else f"{teacher:.4f}"


def _when(run: Run, scores: dict[str, float]) -> Iterator[str]:
    if scores:
        yield from ("", f"Measured on the evaluation data after step {run.progress.step:,}.")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield from (f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines)

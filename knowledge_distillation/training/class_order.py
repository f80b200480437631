"""All models of a run have the classes of its data, by name and in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.class_labels import names_in
from ..errors import ConfigError
from ..features.inputs import first_rows, forward_inputs
from ..features.preserve import preserved, resting
from ..models.classes import are_names, class_names, in_common, name_classes, order_of, put_in_order
from .batch import adapt, on_device
from .run import Run


def settle_classes(run: Run) -> None:
    """Put the classes of every model into the order of the data's, or where it names none, of the student's.

    A teacher's copy is changed, never the caller's model; students are changed with their configs. A student whose
    classes have no names takes those of the data.

    Raises:
        ConfigError: two have some classes in common and not all; or a model whose classes cannot change places.
    """
    if run.classes_settled:
        return
    of_data = names_in(run.train_dataloader) or names_in(run.dev_dataloader)
    of_data = of_data if are_names(of_data) else ()
    for name, student in run.students.items():
        if of_data:
            _settle(run, name or "student", student, of_data, "the data")
        elif name:
            _settle(run, name, student, class_names(run.student), "the student")
    whose = "the data" if of_data else "the student"
    wanted = of_data or class_names(run.student)
    for name, teacher in run.teachers.items():
        _settle(run, f"teacher {name}".strip(), teacher.model, wanted, whose, name)
    run.classes_settled = True


def _settle(run: Run, title: str, model: Any, wanted: Sequence[str], whose: str, teacher: str | None = None) -> None:
    names, counts = class_names(model), _is_read(run, teacher)
    if tuple(names) == tuple(wanted) or not hasattr(getattr(model, "config", None), "id2label"):
        return
    if not names and teacher is None:
        if model.config.num_labels == len(wanted):
            name_classes(model, wanted)
        return
    if not names or not wanted:
        known, owner = (wanted, whose) if wanted else (names, f"the {title}")
        unnamed = f"those of the {title} have no names" if wanted else "neither the student nor the data names its own"
        if counts and model.config.num_labels == len(known):
            run.class_notes.append(
                f"warning: the classes of {owner} are {', '.join(known)}, and {unnamed}: classes go by number"
            )
        return
    order = order_of(names, wanted)
    if order == sorted(order or [-1]):
        return  # the same in other letters
    pair = f"the classes of the {title} are {', '.join(names)}, those of {whose} {', '.join(wanted)}"
    if order is not None:
        _reorder(run, model, order, teacher)
        run.class_notes.append(f"{title}: its classes are put in the order of {whose}, by name: {', '.join(wanted)}")
    elif counts and len(names) == len(wanted):
        if in_common(names, wanted):
            raise ConfigError(f"{pair}: they agree in part only. Give all models the same names in id2label, or none")
        run.class_notes.append(f"warning: {pair}: classes go by number")


def _is_read(run: Run, teacher: str | None) -> bool:
    """Whether a loss, or the evaluator, compares a model's classes with others; every student's are."""
    entries = run.loss_model.config.entries
    read = {f.model for entry in entries for f in entry.teacher if f.output == "logits"}
    return teacher is None or teacher in read


def _reorder(run: Run, model: Any, order: Sequence[int], teacher: str | None) -> None:
    data = run.batches.peek() if run.batches is not None else next(iter(run.dev_dataloader))
    students, teachers = on_device(run, adapt(run, data))
    if teacher is None:
        name = next(name for name, student in run.students.items() if student is model)
        inputs = forward_inputs(first_rows(students[name]), model)
    else:
        inputs = run.teachers[teacher].cast(forward_inputs(first_rows(teachers[teacher]), model))

    def forward() -> Any:
        with resting(model), preserved(model):
            return model(**inputs)

    put_in_order(model, order, forward, in_place=teacher is None)

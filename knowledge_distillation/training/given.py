"""What was given beside models and data: it can be called as it will be, and something of the run looks at it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ..config.settings import TrainingSettings
from ..errors import ConfigError, listed, shown

_OF_EVALUATE = ("teacher_model", "student_model", "dev_data", "dev_data_adaptor", "epoch", "step", "loss_value")
_AS_CALLED = {  # each of these numbers of arguments will do
    "evaluator": ("(student, teacher, dataloader, accelerator)", (4,)),
    "compute_metrics": ("(logits, labels)", (1, 2)),
    "data_collator": ("(rows)", (1,)),
    "train_data_adaptor": ("(device, batch)", (2,)),
    "dev_data_adaptor": ("(device, batch)", (2,)),
    "teacher_output_adaptor": ("", ()),
    "student_output_adaptor": ("", ()),
}
_OF_BATCHES = ("per_device_train_batch_size", "group_by_length", "max_tokens_per_batch", "length_bucket")
_OF_CACHE = ("teacher_cache_dtype", "teacher_cache_top_k", "teacher_cache_limit")
_OF_EVALUATIONS = ("eval_steps", "metric_for_best_model", "greater_is_better")
_OF_RATE = ("optim", "optim_args", "learning_rate", "weight_decay")
_OF_SCHEDULE = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio")


def check_calls(**given: Any) -> None:
    """See that what the run calls can be called, with as many arguments as it will be.

    Raises:
        ConfigError: the first that cannot, with how it is called.
    """
    for name, value in given.items():
        if value is None:
            continue
        call, numbers = _AS_CALLED[name]
        if isinstance(value, type):
            raise ConfigError(f"{name} is a class, {value.__name__}: give an object of it, {value.__name__}(…)")
        if name == "evaluator" and hasattr(value, "evaluate"):
            named = f"evaluator.evaluate is called with {', '.join(_OF_EVALUATE)}"
            _check_signature(value.evaluate, named, (), _OF_EVALUATE)
            continue
        if not callable(value):
            or_object = ", or an object with a method evaluate" if name == "evaluator" else ""
            raise ConfigError(f"{name} is a callable{or_object}; found {shown(value)}")
        _check_signature(value, f"{name} is called as {name}{call}", numbers)


def _check_signature(function: Any, said: str, numbers: tuple[int, ...], names: tuple[str, ...] = ()) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C nothing is known
        return
    ways: list[tuple[list[None], dict[str, None]]] = [([None] * number, {}) for number in numbers]
    ways += [([], dict.fromkeys(names))] if names else []
    if ways and not any(_binds(signature, *way) for way in ways):
        raise ConfigError(f"{said}; this one takes {signature}")


def _binds(signature: inspect.Signature, arguments: list[None], named: dict[str, None]) -> bool:
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        return False
    return True


def check_adaptors(loss_model: Any, **adaptors: Any) -> None:
    """See that output adaptors, by their side, are those of the loss model where one is given.

    Raises:
        ConfigError: one would never be called.
    """
    for side, adaptor in adaptors.items() if loss_model is not None else ():
        if adaptor is not None and adaptor is not getattr(loss_model, f"{side}_output_adaptor"):
            raise ConfigError(f"{side}_output_adaptor would not be called: give it to the loss_model")


def check_read(compute_metrics: Any, evaluator: Any, has_dev_data: bool) -> None:
    """See that metrics of one's own are for something.

    Raises:
        ConfigError: they would never be computed.
    """
    if compute_metrics is not None and evaluator is not None:
        raise ConfigError("compute_metrics would not be called: the evaluator is your own, and gives its own metrics")
    if compute_metrics is not None and not has_dev_data:
        raise ConfigError("compute_metrics would not be called: give dev_dataloader or eval_dataset as well")


def notes_of_unread(
    settings: TrainingSettings, own: Mapping[str, bool], output_dir: Any, evaluator: Any
) -> Iterator[str]:
    """In words, what was set and nothing looks at.

    Args:
        own: whether batches, optimizer and schedule are the user's, and a collator that has no rows.
    """
    if own["collator"]:
        yield "warning: not looked at: data_collator, since loaders make their own batches"
    defaults = {f.name: f.default for f in fields(TrainingSettings)}
    for unread, names, why in (
        (own["batches"], _OF_BATCHES, "train_dataloader makes its own batches"),
        (settings.teacher_cache is None, _OF_CACHE, "there is no teacher_cache"),
        (own["optimizer"], _OF_RATE, "the optimizer is your own"),
        (own["optimizer"] or own["schedule"], _OF_SCHEDULE, "the schedule is that of your own"),
        (output_dir is None, ("save_steps",), "there is no output_dir to save checkpoints in"),
        (evaluator is None, _OF_EVALUATIONS, "there is nothing to evaluate"),
    ):
        set_ones = [name for name in names if getattr(settings, name) != defaults[name]] if unread else []
        if set_ones:
            yield f"warning: not looked at: {listed(set_ones)}, since {why}"

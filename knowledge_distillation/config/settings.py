"""The settings of a run, under the names they have in Hugging Face's `TrainingArguments` and in Accelerate."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

from ..errors import ConfigError, nearest

DTYPES = ("bfloat16", "float16", "float32", "int8")

_PRECISIONS = ("auto", "no", "bf16", "fp16")
OPTIMIZERS: Mapping[str, Mapping[str, type]] = {  # name -> its arguments
    "adamw_torch_fused": {},
    "sgd": {"momentum": float, "dampening": float, "nesterov": bool},
}
BALANCES = ("none", "relative_scale", "gradient_norm")
_OF_A_STAGE = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "warmup_ratio", "lr_scheduler_type")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a run. Each can be given to `KnowledgeDistiller` by name, or under `training:` in a recipe.

    Args:
        num_train_epochs: passes over the training data, 1 or more.
        max_steps: optimizer steps after which to stop; -1 for no limit.
        per_device_train_batch_size: rows of a batch on each process (with `train_dataset`).
        per_device_eval_batch_size: the same for evaluation.
        optim: the optimizer: `adamw_torch_fused`, or `sgd`.
        optim_args: of `sgd`: `momentum`, `dampening`, `nesterov`; a mapping, or a text as `TrainingArguments` has it
            ("momentum=0.9,nesterov=True"). None for momentum 0.9.
        learning_rate: peak learning rate of the ready-made optimizer.
        weight_decay: of matrices; biases and norms never decay.
        warmup_ratio: part of the steps over which the learning rate rises, in [0, 1].
        lr_scheduler_type: a name transformers' `get_scheduler` knows; or `multistep`, which multiplies the rate by
            `gamma` at each of `milestones`.
        lr_scheduler_kwargs: what else the schedule takes. Of `multistep` they are `milestones`, parts of the run
            ([0.3, 0.6, 0.8]), and `gamma` (0.2): those of Zagoruyko and Komodakis, Wide Residual Networks, 2016.
        gradient_accumulation_steps: batches of one optimizer step, averaged exactly.
        max_grad_norm: clip the gradient of student and projections together to this norm; 0 does not clip.
        logging_steps: optimizer steps between two lines of the history.
        eval_steps, save_steps: optimizer steps between two evaluations, checkpoints; None after each epoch.
        save_total_limit: checkpoints to keep, 1 or more.
        seed: of data order, dropout and projections.
        mixed_precision: `no`, `bf16`, `fp16`, or `auto`: bf16 where the machine has it.
        teacher_dtype: `float32`, `bfloat16`, `float16`, or `auto`: as `mixed_precision`.
        teacher_cache: folder in which the teacher's mapped features are kept, so that each sample is computed once;
            None keeps none.
        teacher_cache_dtype: `bfloat16`, `float16`, `float32`, `int8`, or `auto`: bf16 for a teacher that computes in
            it, else fp16.
        teacher_cache_top_k: logits of a sample or token to keep, the largest, with what the others had together; None
            keeps all.
        teacher_cache_limit: GB that a cache may take; None for what the disk holds.
        group_by_length: batches of rows of similar length (with `train_dataset`).
        max_tokens_per_batch: rows times padded length of a training batch on each process, at most; the number of rows
            follows from it, and `per_device_train_batch_size` is not used (with `train_dataset`). None: no limit.
        length_bucket: training rows are padded up to the next of a few lengths, multiples of this number that lie
            further apart the longer they are (with `train_dataset`). None: to the longest row of the batch.
        dataloader_num_workers: processes that prepare batches; 0 for none (with `train_dataset`, `eval_dataset`).
        torch_compile: compile the repeated layers of teachers and students.
        metric_for_best_model: metric by which the best student is kept; None for the evaluator's primary metric.
        greater_is_better: None for the evaluator's own.
        stages: mappings with `name` and what differs in that stage of `num_train_epochs`, `max_steps`,
            `learning_rate`, `weight_decay`, `warmup_ratio`, `lr_scheduler_type`. Each stage trains its entries with an
            optimizer and a schedule of its own. None: the stages that the entries name.
        balance: `relative_scale` or `gradient_norm` keep the terms of the loss on one scale while training; `none`.
        balance_steps: optimizer steps between two measurements of gradient norms.
        report_to: trackers of Accelerate, such as `tensorboard`.
        disable_tqdm: no progress bar.
        overwrite_output_dir: replace a run that is in `output_dir`.
    """

    num_train_epochs: int = 3
    max_steps: int = -1
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    optim: str = "adamw_torch_fused"
    optim_args: Mapping[str, Any] | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    logging_steps: int = 20
    eval_steps: int | None = None
    save_steps: int | None = None
    save_total_limit: int = 1
    seed: int = 42
    mixed_precision: str = "auto"
    teacher_dtype: str = "auto"
    teacher_cache: str | None = None
    teacher_cache_dtype: str = "auto"
    teacher_cache_top_k: int | None = None
    teacher_cache_limit: float | None = None
    group_by_length: bool = True
    max_tokens_per_batch: int | None = None
    length_bucket: int | None = None
    dataloader_num_workers: int = 0
    torch_compile: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    stages: tuple[Any, ...] = ()
    balance: str = "none"
    balance_steps: int = 20
    report_to: tuple[str, ...] = ()
    disable_tqdm: bool = False
    overwrite_output_dir: bool = False

    @classmethod
    def parse(cls, given: dict[str, Any]) -> TrainingSettings:
        """Check names, types and ranges; every problem in one ConfigError."""
        known = {f.name: f for f in fields(cls)}
        problems = [f"unknown setting {k!r}.{nearest(k, known)}" for k in given if k not in known]
        values = {}
        for name, value in given.items():
            if name in known:
                try:
                    values[name] = _convert(name, value, known[name].default)
                except (TypeError, ValueError, OverflowError):
                    problems.append(f"{name} is of type {_wanted(name, known[name].default)}; found {value!r}")
        settings = cls(**values)
        problems += settings._out_of_range() + settings._wrong_stages()
        if problems:
            raise ConfigError("settings: " + "; ".join(problems))
        return settings

    def _out_of_range(self) -> list[str]:
        positive: tuple[str, ...] = ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
        positive += ("gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps", "save_total_limit")
        positive += ("balance_steps", "teacher_cache_top_k", "max_tokens_per_batch", "length_bucket")
        problems = [f"{n} is 1 or more; found {getattr(self, n)}" for n in positive if (getattr(self, n) or 1) < 1]
        problems += [f"{n} is 1 or more; found 0" for n in positive if getattr(self, n) == 0]
        not_negative = ("learning_rate", "weight_decay", "max_grad_norm", "seed", "dataloader_num_workers")
        if self.seed >= 1 << 32:
            problems.append(f"seed is below 2**32; found {self.seed}")
        problems += [f"{n} is 0 or more; found {getattr(self, n)}" for n in not_negative if getattr(self, n) < 0]
        if self.teacher_cache_limit is not None and self.teacher_cache_limit <= 0:
            problems.append(f"teacher_cache_limit is above 0, in GB; found {self.teacher_cache_limit}")
        if not 0 <= self.warmup_ratio <= 1:
            problems.append(f"warmup_ratio is in [0, 1]; found {self.warmup_ratio}")
        if self.max_tokens_per_batch and not self.group_by_length:
            problems.append("max_tokens_per_batch fills batches with rows of similar length: leave group_by_length on")
        choices: dict[str, tuple[str, ...]] = {
            "mixed_precision": _PRECISIONS,
            "teacher_dtype": ("auto", "float32", "bfloat16", "float16"),
            "teacher_cache_dtype": ("auto", *DTYPES),
            "optim": tuple(OPTIMIZERS),
        }
        choices["balance"] = BALANCES
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                problems.append(
                    f"{name} is one of {', '.join(allowed)}; found {value!r}.{nearest(str(value), allowed)}"
                )
        return problems + self._wrong_arguments()

    def _wrong_arguments(self) -> list[str]:
        """What is wrong with the arguments of the optimizer."""
        known = OPTIMIZERS.get(self.optim, {})
        problems = []
        for key, value in (self.optim_args or {}).items():
            if key not in known:
                takes = f" It takes: {', '.join(known) or 'none'}"
                problems.append(f"optim {self.optim} takes no argument {key!r}.{nearest(str(key), known)}{takes}")
            elif type(value) is not known[key] and not (known[key] is float and type(value) is int):
                problems.append(f"{key} of optim {self.optim} is of type {known[key].__name__}; found {value!r}")
        return problems

    def _wrong_stages(self) -> list[str]:
        problems: list[str] = []
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, dict) or not isinstance(stage.get("name"), (str, int)):
                problems.append(f"stages[{number}] is a mapping with a name; found {stage!r}")
                continue
            own = {key: value for key, value in stage.items() if key != "name"}
            unknown = [key for key in own if key not in _OF_A_STAGE]
            if unknown:
                near = nearest(str(unknown[0]), _OF_A_STAGE)
                problems.append(f"stages[{number}]: {unknown[0]!r} is no setting of a stage.{near}")
                continue
            try:
                converted = TrainingSettings.parse(own)
            except ConfigError as error:
                problems.append(f"stages[{number}]: {str(error).removeprefix('settings: ')}")
                continue
            stage.update({key: getattr(converted, key) for key in own})
        names = [str(stage["name"]) for stage in self.stages if isinstance(stage, dict) and "name" in stage]
        return problems + [f"stage {name!r} is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"report_to": list(self.report_to), "stages": list(self.stages)}


def _convert(name: str, value: Any, default: Any) -> Any:
    if name == "report_to":
        return (value,) if isinstance(value, str) else tuple(value or ())
    if name == "stages":
        if isinstance(value, (str, dict)):
            raise TypeError
        return tuple(dict(stage) if isinstance(stage, Mapping) else stage for stage in value or ())
    if name in ("optim_args", "lr_scheduler_kwargs"):
        return _mapping(value)
    if value is None and (default is None or name in ("max_grad_norm",)):
        return 0.0 if name == "max_grad_norm" else None
    if name == "metric_for_best_model":
        return str(value)
    if name == "teacher_cache":
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            raise TypeError
        return str(value)
    if name == "teacher_cache_limit":
        default = 0.0
    if name == "greater_is_better" or isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(default, int) or default is None:
        if isinstance(value, bool) or float(value) != int(float(value)):
            raise TypeError
        return int(float(value))
    if isinstance(default, float):
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise TypeError
        return float(value)
    if not isinstance(value, str):
        raise TypeError
    return value


def _mapping(value: Any) -> dict[str, Any] | None:
    """A mapping, or a text such as `momentum=0.9,nesterov=True`."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.replace(" ", "").split(",") if part]
        if not all(sign for _, sign, _ in pairs):
            raise TypeError
        return {key: yaml.safe_load(text) for key, _, text in pairs}
    if value is not None and not isinstance(value, Mapping):
        raise TypeError
    return None if value is None else dict(value)


def _wanted(name: str, default: Any) -> str:
    if default is not None:
        return type(default).__name__
    told = {"greater_is_better": "bool", "metric_for_best_model": "str", "teacher_cache": "path"}
    told["teacher_cache_limit"] = "float"
    told |= {"optim_args": "mapping", "lr_scheduler_kwargs": "mapping"}
    return told.get(name, "int") + " or None"

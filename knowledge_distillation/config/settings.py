"""The settings of a run, under the names they have in Hugging Face's `TrainingArguments` and in Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from ..errors import ConfigError, shown
from .validation import (
    Count,
    Flag,
    Fraction,
    NotNegative,
    PathText,
    Positive,
    Text,
    Whole,
    WholeNotNegative,
    read,
    unknown_keys,
)
from .written import oddity, parse_yaml

CacheType = Literal["bfloat16", "float16", "float32", "int8"]
OPTIMIZERS: Mapping[str, Mapping[str, type]] = {  # name -> its arguments
    "adamw_torch_fused": {},
    "sgd": {"momentum": float, "dampening": float, "nesterov": bool},
}
_OFF = ("no", "off", "false", "none")
_OF_A_STAGE = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "warmup_ratio", "lr_scheduler_type")


def _arguments(value: Any, info: ValidationInfo) -> Any:
    """A text such as `momentum=0.9,nesterov=True` as a mapping; everything else as it is."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.replace(" ", "").split(",") if part]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError
    return {key: parse_yaml(text, f"{info.field_name}: {key}") for key, _, text in pairs}


Arguments = Annotated[Mapping[str, Any], BeforeValidator(_arguments), Field(description="a mapping")]


def _check_optimizer_arguments(arguments: Mapping[str, Any] | None, info: ValidationInfo) -> Any:
    if arguments and "optim" in info.data:
        optim = info.data["optim"]
        types = OPTIMIZERS[optim]
        problems = unknown_keys(arguments, types, f"optim {optim} takes no argument {{!r}}", "It takes")
        for key, value in arguments.items():
            kind = types.get(key, type(value))
            if type(value) is not kind and not (kind is float and type(value) is int):
                problems.append(f"{key} of optim {optim} is of type {kind.__name__}; found {shown(value)}")
        if problems:
            raise ValueError(*problems)
    return arguments


def _check_tokens_per_batch(tokens: int | None, info: ValidationInfo) -> int | None:
    if tokens and not info.data.get("group_by_length", True):
        raise ValueError("max_tokens_per_batch fills batches with rows of similar length: leave group_by_length on")
    return tokens


def _names(names: Any) -> Any:
    """One name or several as a list; `none`, as `TrainingArguments` has it, is none of them."""
    names = [names] if isinstance(names, str) else names or ()
    one = names[0] if isinstance(names, (list, tuple)) and len(names) == 1 else None
    return () if isinstance(one, str) and one.lower() in _OFF else names


def _off(word: str) -> BeforeValidator:
    """What YAML, and Python, may write for a choice that says no."""
    return BeforeValidator(
        lambda value: word if isinstance(value, (str, bool)) and str(value).lower() in _OFF else value
    )


def _stages(stages: Any) -> tuple[Any, ...]:
    """Mappings of a name and the settings of a stage, each checked."""
    if stages is not None and not isinstance(stages, (list, tuple)):
        raise ValueError
    checked, problems = [], []
    for number, stage in enumerate(stages or ()):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("name"), (str, int)):
            problems.append(f"stages[{number}] is a mapping with a name; found {shown(stage)}")
            continue
        changes = {key: value for key, value in stage.items() if key != "name"}
        wrong = unknown_keys(changes, _OF_A_STAGE, "{!r} is no setting of a stage")
        settings, more = read(TrainingSettings, {key: value for key, value in changes.items() if key in _OF_A_STAGE})
        problems += [f"stages[{number}]: {text}" for text in wrong + more]
        checked.append(
            {
                key: getattr(settings, key) if key in changes and key in _OF_A_STAGE else value
                for key, value in stage.items()
            }
        )
    names = [str(stage["name"]) for stage in checked]
    problems += [f"stage {name!r} is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ValueError(*problems)
    return tuple(checked)


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
        mixed_precision: `no`, `bf16`, `fp16`, or `auto`: bf16 where it is measured to be faster on this machine.
        teacher_dtype: `float32`, `bfloat16`, `float16`, or `auto`: as `mixed_precision`, and measured where that is.
        student_dtype: `float32` trains, and saves, a student that comes in half precision in float32, where no update
            is lost; `own` leaves its weights as they are.
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
        metric_for_best_model: metric by which the best student is kept, with or without `eval_` in front; None for the
            evaluator's primary metric.
        greater_is_better: None for the evaluator's own.
        stages: mappings with `name` and what differs in that stage of `num_train_epochs`, `max_steps`,
            `learning_rate`, `weight_decay`, `warmup_ratio`, `lr_scheduler_type`. Each stage trains its entries with an
            optimizer and a schedule of its own. None: the stages that the entries name.
        balance: `relative_scale` or `gradient_norm` keep the terms of the loss on one scale while training; `none`.
        balance_steps: optimizer steps between two measurements of gradient norms.
        shift_labels: whether position i of the logits is for label i + 1, as in causal language models; None
            to measure it.
        report_to: trackers of Accelerate, such as `tensorboard`; `none` for none.
        disable_tqdm: no progress bar.
        overwrite_output_dir: replace a run that is in `output_dir`.
    """

    num_train_epochs: Count = 3
    max_steps: Whole = -1
    per_device_train_batch_size: Count = 32
    per_device_eval_batch_size: Count = 64
    optim: Literal["adamw_torch_fused", "sgd"] = "adamw_torch_fused"
    optim_args: Annotated[Arguments | None, AfterValidator(_check_optimizer_arguments)] = None
    learning_rate: NotNegative = 5e-5
    weight_decay: NotNegative = 0.01
    warmup_ratio: Fraction = 0.1
    lr_scheduler_type: Text = "linear"
    lr_scheduler_kwargs: Arguments | None = None
    gradient_accumulation_steps: Count = 1
    max_grad_norm: Annotated[NotNegative, BeforeValidator(lambda norm: 0.0 if norm is None else norm)] = 1.0
    logging_steps: Count = 20
    eval_steps: Count | None = None
    save_steps: Count | None = None
    save_total_limit: Count = 1
    seed: Annotated[WholeNotNegative, Field(lt=2**32, description="a whole number of 0 or more, below 2**32")] = 42
    mixed_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], _off("no")] = "auto"
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    student_dtype: Literal["float32", "own"] = "float32"
    teacher_cache: PathText | None = None
    teacher_cache_dtype: Literal["auto", CacheType] = "auto"
    teacher_cache_top_k: Count | None = None
    teacher_cache_limit: Annotated[Positive, Field(description="a number of GB above 0")] | None = None
    group_by_length: Flag = True
    max_tokens_per_batch: Annotated[Count | None, AfterValidator(_check_tokens_per_batch)] = None
    length_bucket: Count | None = None
    dataloader_num_workers: WholeNotNegative = 0
    metric_for_best_model: Annotated[Text, BeforeValidator(str)] | None = None
    greater_is_better: Flag | None = None
    stages: Annotated[tuple[Any, ...], BeforeValidator(_stages), Field(description="a list of mappings")] = ()
    balance: Annotated[Literal["none", "relative_scale", "gradient_norm"], _off("none")] = "none"
    balance_steps: Count = 20
    shift_labels: Flag | None = None
    report_to: Annotated[tuple[str, ...], BeforeValidator(_names), Field(description="a name or a list of them")] = ()
    disable_tqdm: Flag = False
    overwrite_output_dir: Flag = False

    @classmethod
    def parse(cls, written: Mapping[str, Any]) -> TrainingSettings:
        """Check names, types and ranges; every problem in one ConfigError."""
        odd = [problem for key, value in written.items() if (problem := oddity(value, str(key)))]
        if odd:
            raise ConfigError("settings: " + "; ".join(odd))
        settings, wrong = read(cls, written)
        problems = unknown_keys(written, [f.name for f in fields(cls)], "unknown setting {!r}", "") + wrong
        if problems or settings is None:
            raise ConfigError("settings: " + "; ".join(problems))
        return settings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"report_to": list(self.report_to), "stages": list(self.stages)}

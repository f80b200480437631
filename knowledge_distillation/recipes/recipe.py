"""A whole run as one YAML file: teacher, student, data, distill_config, training. No code comes out of YAML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from .. import tasks
from ..config.entry import DistillConfig
from ..config.parse import parse_config
from ..config.settings import TrainingSettings
from ..config.validation import Count, Number, PathText
from ..data.augmentation import Augmentation
from ..data.glue import GLUE_TASKS, GlueTask, find_task
from ..data.images import DIGITS, FOLDER, IMAGE_TASKS, ImageTask
from ..errors import ConfigError, nearest, shown
from ..presets import by_name as preset_table
from ..presets.mapping import STRATEGIES, check_mapping

EMBEDDED = "embedded"
OF_PICTURES = "image-classification"  # the kind of task of a folder of pictures
METHOD = "layers"  # of a recipe that says neither a method nor a distill_config
METHOD_OF_IMAGES = "hinton"  # the same of an image task: any two models have logits
OF_METHODS = ("alpha", "temperature", "mapping")
MAPPINGS = ("training", "finetune", "method_args", "task_args")


_KINDS = [*tasks.names(), OF_PICTURES]  # of tasks, of rows of one's own


def _check_task(task: str) -> str:
    data_sets = [EMBEDDED, *GLUE_TASKS, *(task.folder for task in GLUE_TASKS.values()), *IMAGE_TASKS]
    known = [*data_sets, *_KINDS]
    if task not in known:
        raise ValueError(f"task {task!r} is unknown.{nearest(task, known)} Known: {', '.join(known)}")
    return task


def _check_stages(stages: list[Any]) -> list[Any]:
    problems = []
    for number, stage in enumerate(stages):
        entries = stage.get("distill_config") if isinstance(stage, Mapping) else None
        if not isinstance(stage, Mapping) or not isinstance(stage.get("name"), (str, int)):
            problems.append(f"stages[{number}] is a mapping with a name; found {shown(stage)}")
        elif entries is not None and not isinstance(entries, list):
            problems.append(f"stages[{number}]: distill_config is a list; found {shown(entries)}")
        elif any(isinstance(entry, Mapping) and "stage" in entry for entry in entries or []):
            problems.append(f"stages[{number}]: its entries belong to stage {stage['name']!r} and name no other")
    if problems:
        raise ValueError(*problems)
    return stages


Text = Annotated[PathText, Field(description="a text")]
Texts = Annotated[PathText | list[str], Field(description="a column, or a list of two")]
Size = Annotated[Count, Field(le=1_000_000, description="a whole number from 1 to 1,000,000")]
Settings = Annotated[dict[str, Any], Field(description="a mapping of settings")]
Entries = Annotated[list[Any], Field(description="a list of entries")]
Stages = Annotated[list[Any], AfterValidator(_check_stages), Field(description="a list of stages")]


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        teacher: a directory or hub name; or a mapping that describes a model to build from scratch, with
            `model_type`, the fields of its config, `zero_residual_branches: true` where it is deep, and `weights`: a
            file of its tensors. None where no entry needs one (image tasks).
        student: the same; or `{layers: [4, 8, 12]}` to cut it out of the teacher (`{layers: {encoder: [...], decoder:
            [...]}}` where it has several stacks), or `{layers: [...], of: NAME}` out of another model. With
            `embeddings: teacher` in the mapping its embedding begins as the teacher's.
        data: rows of one's own: a file, a folder, or a name of the hub.
        eval: the same, for evaluation; None holds a fixed part of `data` out.
        text, label: their columns; None where there is one way only.
        columns: names of all columns of a table without a header, in their order (`text,labels,id`).
        task_args: what the task of `data` is told beside, by name.
        task: what `data` is, a name of `knowledge_distillation.tasks.names()`; None to tell it from model and data.
            Without `data` a GLUE task, an image task, or `embedded`: the data set that comes with the package, as does
            None.
        data_dir: folder in GLUE's own TSV layout; None: `GLUE_DATA_DIR`, else the hub. Of an image task, a folder of
            pictures; None: `IMAGE_DATA_DIR`, else the hub.
        image_size: of an image task, pixels a side; None for the teacher's, else the task's own.
        augment: of an image task: true, false, or a mapping of `padding` and `flip`; None for the task's own.
        max_train_samples, max_eval_samples: a fixed random part of the data.
        max_length: tokens after which text is cut; None for the task's own, 128 as a rule.
        tokenizer: None: the teacher's, or one trained on the task's text where the teacher is built from scratch.
        student_tokenizer: of a student that reads other tokens than the teacher: a directory or hub name, or `words`
            for the words of the task's text; None: the teacher's.
        vocab_size: of a tokenizer that is trained.
        method: a preset, in place of `distill_config`.
        alpha, temperature: arguments of the method; None for its own.
        method_args: its other arguments by name.
        mapping: which teacher layer teaches which student layer, for methods that ask: `uniform`, `last`, `skip`,
            `search` (by similarity on a few batches), or `[teacher layer, student layer]` pairs.
        distill_config: the entries.
        stages: mappings with `name`, what differs in that stage of the settings in `training`, and `distill_config`:
            the entries of that stage alone.
        finetune: settings of `distill finetune`, over those of `training`.
        training: the fields of `TrainingSettings`, as they are written; parsed they are `settings`.
        output_dir: where the run goes.
    """

    teacher: Any = None
    student: Any = None
    task: Annotated[Text, AfterValidator(_check_task)] | None = None
    data: Text | None = None
    eval: Text | None = None
    text: Texts | None = None
    label: Text | None = None
    columns: Texts | None = None
    task_args: Annotated[dict[str, Any], Field(description="a mapping of arguments")] = field(default_factory=dict)
    data_dir: Text | None = None
    max_train_samples: Count | None = None
    max_eval_samples: Count | None = None
    image_size: Size | None = None
    augment: Any = None
    max_length: Size | None = None
    tokenizer: Text | None = None
    student_tokenizer: Text | None = None
    vocab_size: Size = 8000
    method: Text | None = None
    alpha: Number | None = None
    temperature: Number | None = None
    method_args: Annotated[dict[str, Any], Field(description="a mapping of arguments")] = field(default_factory=dict)
    mapping: Any = None
    distill_config: Entries | None = None
    stages: Stages | None = None
    finetune: Settings = field(default_factory=dict)
    training: Settings = field(default_factory=dict)
    output_dir: Text | None = None

    @cached_property
    def settings(self) -> TrainingSettings:
        """The settings of `training`, with what the stages say."""
        if self.stages and self.training.get("stages"):
            raise ConfigError("stages are given twice: beside training and inside it")
        stages = [
            {key: value for key, value in stage.items() if key != "distill_config"} for stage in self.stages or ()
        ]
        return TrainingSettings.parse({**self._training, **({"stages": stages} if stages else {})})

    @cached_property
    def finetune_settings(self) -> TrainingSettings:
        """The settings of `distill finetune`, which has no stages."""
        return TrainingSettings.parse({**self._training, "stages": (), **self.finetune})

    @property
    def _training(self) -> dict[str, Any]:
        metric = self.primary_metric
        return {**({} if metric is None else {"metric_for_best_model": metric}), **self.training}

    @cached_property
    def config(self) -> DistillConfig | None:
        """The entries that the recipe writes out, parsed; None where it writes none."""
        entries = self.own_entries()
        return None if entries is None else parse_config(entries)

    def own_entries(self) -> list[Any] | None:
        """The entries the recipe writes out, those of its stages included; None where it writes none."""
        inside = [
            {**entry, "stage": stage["name"]} if isinstance(entry, Mapping) else entry
            for stage in self.stages or []
            for entry in stage.get("distill_config") or []
        ]
        return None if self.distill_config is None and not inside else [*(self.distill_config or []), *inside]

    @property
    def method_name(self) -> str:
        """The method, of a recipe without a `distill_config`."""
        return self.method or (METHOD if self.image_task is None else METHOD_OF_IMAGES)

    def method_options(self) -> dict[str, Any]:
        """The arguments of the method, under its own names."""
        options = {key: getattr(self, key) for key in OF_METHODS}
        return {**{key: value for key, value in options.items() if value is not None}, **self.method_args}

    def identity(self, finetune: bool) -> dict[str, Any]:
        """The data and the models that it describes, without places on disk: what no continuation of a run changes."""
        data = ("max_train_samples", "max_eval_samples", "image_size", "augment")
        columns = {key: getattr(self, key) for key in ("text", "label", "columns", "task_args") if getattr(self, key)}
        models = {side: getattr(self, side) for side in (("teacher",) if finetune else ("teacher", "student"))}
        described = {side: model for side, model in models.items() if isinstance(model, Mapping)}
        texts = {"task": self.task or EMBEDDED, "max_length": self.max_length or 128, **columns}
        return texts | {key: getattr(self, key) for key in data} | described

    @property
    def glue_task(self) -> GlueTask | None:
        """The task where it is one of GLUE's, or that of the sentences that come with the package."""
        if self.data is not None or self.image_task is not None or self.task in tasks.names():
            return None
        return find_task("sst2" if self.task in (None, EMBEDDED) else str(self.task))

    @property
    def image_task(self) -> ImageTask | None:
        """The task where it is one of pictures."""
        return IMAGE_TASKS.get(FOLDER if self.task == OF_PICTURES else str(self.task))

    @property
    def data_source(self) -> str:
        """The task, and where its rows are read, in words."""
        if self.data is not None:
            return f"{self.task} from {self.data}"
        if self.task in (None, EMBEDDED, DIGITS):
            return f"{self.task or EMBEDDED}, which comes with its own rows"
        variable = "GLUE_DATA_DIR" if self.image_task is None else "IMAGE_DATA_DIR"
        return f"{self.task} from {self.data_dir or os.environ.get(variable) or 'the hub'}"

    @property
    def augmented(self) -> bool:
        """Whether the pictures of an image task are changed at random."""
        task = self.image_task
        return task is not None and Augmentation.parse(self.augment, task.augmentation(1)) is not None

    @property
    def primary_metric(self) -> str | None:
        """By which the best student is kept; None while the task of one's own data is still to be told."""
        if self.image_task is not None:
            return "accuracy"
        if self.glue_task is not None:
            return self.glue_task.primary_metric
        return None if self.task is None else tasks.find_task(self.task).primary_metric

    def problems(self, of_keys: Sequence[str] = ()) -> list[str]:
        """What is wrong with the recipe: with single keys, and beyond them."""
        problems: list[str] = []

        def attempt(check: Callable[[], Any], of: str = "") -> None:
            try:
                check()
            except ConfigError as error:
                problems.append(of + str(error).removeprefix("settings: "))

        attempt(lambda: self.settings, "training: ")
        # What is wrong with `training` is said once.
        attempt(lambda: TrainingSettings.parse(self.finetune) if problems else self.finetune_settings, "finetune: ")
        attempt(self._check_method)
        if not of_keys:  # among them may be the task
            attempt(self._check_images)
            attempt(self._check_data)
        return [*of_keys, *problems]

    def _check_method(self) -> None:
        preset_table.check_name(self.method_name)
        if self.own_entries() is None:
            options = self.method_options()
            preset_table.check_options(self.method_name, options)
            if "mapping" in options:
                check_mapping(options["mapping"], [*STRATEGIES, "search"])
        elif self.method is not None:
            raise ConfigError("give either method or distill_config; null takes one out")
        else:
            unread = [key for key in ("method_args", *OF_METHODS) if getattr(self, key) not in (None, {})]
            if unread:
                raise ConfigError(f"{unread[0]} belongs to a method, and this recipe has a distill_config")

    def _check_data(self) -> None:
        """A folder, or a column, that nobody would read; and a kind of task without rows."""
        if self.data is not None:
            if self.task is not None and self.task not in _KINDS:
                raise ConfigError(
                    f"data is {self.data!r}, and task {self.task!r} has rows of its own. Tasks of one's own data: "
                    f"{', '.join(_KINDS)}"
                )
            if self.data_dir is not None:
                raise ConfigError("data and data_dir are given: data for rows of one's own, data_dir for a known task")
            return
        unread = [key for key in ("eval", "text", "label", "columns", "task_args") if getattr(self, key)]
        if unread:
            raise ConfigError(f"{unread[0]} belongs to rows of one's own: say where they lie, as data")
        if self.task in _KINDS:
            raise ConfigError(f"task {self.task!r} is one of one's own data: say where it lies, as data")
        if self.data_dir is None or self.task not in (None, EMBEDDED, DIGITS):
            return
        what = f"task {self.task or EMBEDDED!r} comes with its own data and reads no folder"
        raise ConfigError(
            f"data_dir is {self.data_dir!r}, and {what}: name the task whose files lie there (--task sst2 reads "
            "SST-2/, --task image_folder pictures by class); a file of your own is given as data"
        )

    def _check_images(self) -> None:
        Augmentation.parse(self.augment, None)
        pictures, text = ("image_size", "augment"), ("tokenizer", "student_tokenizer")
        foreign = [key for key in (pictures if self.image_task is None else text) if getattr(self, key) is not None]
        if foreign:
            kind = "an image task" if self.image_task is None else "text"
            raise ConfigError(f"{foreign[0]} belongs to {kind}, and task is {self.task or EMBEDDED!r}")
        if self.augmented and self.training.get("teacher_cache"):
            raise ConfigError(
                "teacher_cache keeps features of pictures as they are, and augment changes them each time: set "
                "augment: false, or leave teacher_cache out"
            )

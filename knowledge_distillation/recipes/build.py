"""What a recipe says, as objects: data, tokenizer, models, and a KnowledgeDistiller for each of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.entry import DistillConfig
from ..config.parse import parse_config
from ..data.embedded import embedded_sentiment
from ..data.glue import load_glue
from ..data.image_folder import holds_pictures
from ..data.image_format import saved_format
from ..data.images import load_images
from ..errors import ConfigError, shown
from ..presets import by_name as preset_table
from ..presets.layer_search import Proposal, search
from ..tasks.glue import GlueTexts
from ..tasks.task import Task
from ..tasks.task_data import TaskData
from ..tasks.task_rows import TaskRows, read_rows
from .build_models import Head, build_model, from_pretrained
from .recipe import EMBEDDED, OF_PICTURES, Recipe

NO_TEACHER = "recipe: teacher is missing: a directory, a hub name, or a mapping to build one"
HARD_OF_IMAGES = [{"student": "output.logits", "loss": "cross_entropy"}]
MOST_LAYERS = 1_000  # of a student that is cut out
WORDS = "words"  # a student's tokenizer of the task's words


@dataclass
class LoadedRecipe:
    """What a recipe says, as objects: data, tokenizer (of an image task its `ImageFormat`), models."""

    recipe: Recipe
    data: dict[str, Any]
    tokenizer: Any
    teacher: Any
    seed: int
    why: str = ""  # what a search for a layer mapping found
    student_tokenizer: Any = None  # where it is not the teacher's
    task_data: TaskData | None = None  # of texts

    @classmethod
    def of(cls, recipe: Recipe, splits: Sequence[str] = ("train", "validation")) -> LoadedRecipe:
        """Load the teacher, its tokenizer, and the splits of the data, tokenized.

        Raises:
            ConfigError, DataError: something the recipe names is not there or does not fit.
        """
        seed = recipe.settings.seed
        if recipe.data is not None and recipe.task is None and holds_pictures(recipe.data):
            recipe = replace(recipe, task=OF_PICTURES)
        if recipe.image_task is not None:
            pictures = load_data(recipe)
            loaded = cls(recipe, {name: pictures[name] for name in splits}, pictures["train"].form, None, seed)
            loaded.teacher = None if recipe.teacher is None else loaded.model(recipe.teacher)
            return loaded
        if recipe.teacher is None:
            raise ConfigError(NO_TEACHER)
        rows = task_rows(recipe, training="train" in splits)
        recipe = recipe if recipe.data is None else replace(recipe, task=rows.task.name)  # as it was found to be
        tokenizer = load_tokenizer(recipe, rows)
        reading = rows.reading(tokenizer, recipe.max_length, load_student_tokenizer(recipe, rows))
        loaded = cls(recipe, {}, tokenizer, None, seed, student_tokenizer=reading.student_tokenizer)
        loaded.task_data = TaskData(rows, reading, {})
        loaded.teacher = loaded.model(recipe.teacher)
        rows = replace(rows, splits={name: rows.splits[name] for name in splits})
        loaded.task_data = TaskData.of(rows, reading)
        loaded.data = dict(loaded.task_data.encoded)
        return loaded

    @property
    def task(self) -> Task | None:
        """The kind of task; None of pictures."""
        return None if self.task_data is None else self.task_data.task

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed of one's own data."""
        return () if self.task_data is None else self.task_data.rows.notes

    def model(self, model: Any, side: str = "teacher", seed: int | None = None, tokenizer: Any = None) -> Any:
        """A model with the head of the task.

        Args:
            model: its name, or a mapping that describes it.
            tokenizer: that it reads; None for the teacher's.
        """
        made = build_model(model, self._head(tokenizer or self.tokenizer), self.seed if seed is None else seed, side)
        if self.task_data is not None:
            self.task_data.task.settle(made, self.task_data.reading)
        return made

    def _head(self, tokenizer: Any) -> Head:
        if self.task_data is None:
            return Head("AutoModelForImageClassification", tokenizer.fields(), str(self.recipe.task))
        task, pair = self.task_data.task, len(self.task_data.reading.columns.text) == 2
        tokens = {"pad_token_id": tokenizer.pad_token_id, "sep_token_id": tokenizer.sep_token_id}
        fields = {"vocab_size": len(tokenizer), "sentence_pairs": pair, **self.task_data.fields, **tokens}
        return Head(task.auto_class, fields, task.name if self.recipe.task else EMBEDDED)

    def student(self, seed: int | None = None) -> Any:
        """A fresh student: built from the recipe each time it is asked for."""
        from ..models.cut import student_from_teacher
        from ..models.embeddings import begin_with_teacher

        model, tokenizer = self.recipe.student, self.student_tokenizer
        seed = self.seed if seed is None else seed
        if model is None:
            raise ConfigError("recipe: student is missing: {layers: [...]}, a directory, a hub name, or a mapping")
        if isinstance(model, Mapping) and "layers" in model:
            extra = [key for key in model if key not in ("layers", "of")]
            if extra:
                found = shown(extra)
                raise ConfigError(f"recipe: a student cut out of a model has the keys layers and of; found {found}")
            layers = model["layers"]
            lists = [*layers.values()] if isinstance(layers, Mapping) else [layers]
            if any(not isinstance(one, (list, str, int, float)) for one in lists) or MOST_LAYERS < max(
                len(one) for one in [[], *lists] if isinstance(one, list)
            ):
                raise ConfigError(
                    f"recipe: student: layers is a list of at most {MOST_LAYERS:,} numbers, or a mapping of such; "
                    f"found {shown(layers)}"
                )
            if tokenizer is not None:
                raise ConfigError("recipe: a student cut out of a model reads its tokens: leave student_tokenizer out")
            of = model.get("of")
            source = self.teacher if of is None else self.model(of, "student: of", seed)
            return student_from_teacher(source, layers)
        if not isinstance(model, Mapping) or "embeddings" not in model:
            return self.model(model, "student", seed, tokenizer)
        if model["embeddings"] != "teacher":
            raise ConfigError(f"recipe: embeddings of a student can be 'teacher'; found {shown(model['embeddings'])}")
        model = {key: value for key, value in model.items() if key != "embeddings"}
        student = self.model(model, "student", seed, tokenizer)
        begin_with_teacher(student, self.teacher, self.tokenizer, tokenizer)
        return student

    def config(self, student: Any) -> DistillConfig:
        """The recipe's `distill_config`, or what its method expands to."""
        recipe = self.recipe
        if recipe.config is not None:
            return recipe.config
        options = recipe.method_options()
        if options.get("mapping") == "search":
            proposal = self.search_mapping(student)
            self.why, options["mapping"] = proposal.why, proposal.pairs
        entries = preset_table.expand(recipe.method_name, self.teacher, student, **options)
        return parse_config(entries if self.task is None else self.task.fit(entries))

    def hard_entries(self) -> list[dict[str, Any]]:
        """The student against the labels alone."""
        return HARD_OF_IMAGES if self.task is None else self.task.hard_entries()

    def search_mapping(self, student: Any, batches: int = 4) -> Proposal:
        """A layer mapping by similarity, on a few batches of the training data."""
        from torch.utils.data import DataLoader
        from transformers import DataCollatorWithPadding

        if self.student_tokenizer is not None:
            raise ConfigError("recipe: mapping search compares models on the same tokens: leave student_tokenizer out")
        if self.recipe.image_task is not None:
            raise ConfigError("mapping: search reads text, and this is an image task; give uniform, last or pairs")
        rows = self.data["train"].shuffle(seed=self.seed)
        inputs = [name for name in self.tokenizer.model_input_names if name in rows.column_names]
        rows = rows.select_columns(inputs).select(range(min(batches * 32, len(rows))))
        loader: Any = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(self.tokenizer))
        return search(self.teacher, student, loader)

    def distiller(
        self,
        student: Any,
        config: DistillConfig | None,
        output_dir: str | Path | None,
        finetune: bool = False,
        **settings: Any,
    ) -> Any:
        """A KnowledgeDistiller for one of the runs a recipe gives rise to.

        Args:
            config: None for labels alone, which is one stage.
            finetune: under the settings of `finetune`; `student` is the teacher to be.
            **settings: in place of the recipe's own.
        """
        from ..data.two_tokenizers import TwoTokenizers, two_token_streams
        from ..training.distiller import KnowledgeDistiller

        recipe = self.recipe
        needs_teacher = config is not None and config.needs_teacher
        if student is None or (needs_teacher and self.teacher is None):
            raise ConfigError(NO_TEACHER)
        args = recipe.finetune_settings if finetune else recipe.settings
        args = replace(args, stages=args.stages if config else (), **settings)
        data, student_tokenizer = self.data, None if finetune else self.student_tokenizer
        if student_tokenizer is None and self.task_data is not None:
            data = {name: without_student_columns(rows) for name, rows in data.items()}
        given = {} if self.task_data is None else self.task_data.arguments()
        given |= {"train_dataset": data.get("train"), "eval_dataset": data["validation"]}
        given["processing_class"] = student_tokenizer or self.tokenizer
        if student_tokenizer is not None:
            given["data_collator"] = TwoTokenizers(self.tokenizer, student_tokenizer)
            given["train_data_adaptor"] = two_token_streams
        run = KnowledgeDistiller(
            self.teacher if needs_teacher else None,
            student,
            self.hard_entries() if config is None else config,
            output_dir=output_dir,
            args=args,
            **given,
        )
        run.recipe = recipe.identity(finetune)
        run.data_note = f"data: {recipe.data_source}, " + ", ".join(
            f"{len(rows):,} rows of {split}" for split, rows in data.items() if split in ("train", "validation")
        )
        return run


def task_rows(recipe: Recipe, training: bool = True) -> TaskRows:
    """The rows of a recipe's texts: those of its data, or of the task that it names."""
    if recipe.glue_task is not None:
        task, raw = GlueTexts(recipe.glue_task), load_data(recipe)
        return TaskRows(task, raw, task.columns, recipe.glue_task.label_names or ())
    given = recipe.teacher if isinstance(recipe.teacher, str) else None
    return read_rows(
        recipe.data,
        recipe.eval,
        task=recipe.task,
        text=recipe.text,
        label=recipe.label,
        names_of_columns=recipe.columns,
        model=None if given is None else from_pretrained("AutoConfig", given, "teacher"),
        options=recipe.task_args,
        training=training,
        max_train_samples=recipe.max_train_samples,
        max_eval_samples=recipe.max_eval_samples,
    )


def without_student_columns(rows: Any) -> Any:
    """Rows without the columns that only a student reads."""
    from ..data.text import STUDENT

    return rows.remove_columns([name for name in rows.column_names if name.startswith(STUDENT)])


def load_data(recipe: Recipe) -> dict[str, Any]:
    """The task's raw rows, `train` and `validation`; of an image task ready for a model."""
    if recipe.image_task is not None:
        # A teacher sees pictures as it saw them before; without one a student does.
        saved = saved_format(recipe.student if recipe.teacher is None else recipe.teacher)
        return load_images(
            recipe.image_task.name,
            recipe.data_dir or recipe.data,
            image_size=recipe.image_size or saved.get("size"),
            augment=recipe.augment,
            max_train_samples=recipe.max_train_samples,
            max_eval_samples=recipe.max_eval_samples,
            mean=saved.get("mean"),
            std=saved.get("std"),
        )
    if recipe.task not in (None, EMBEDDED):
        return load_glue(str(recipe.task), recipe.data_dir, recipe.max_train_samples, recipe.max_eval_samples)
    data = embedded_sentiment()
    limits = {"train": recipe.max_train_samples, "validation": recipe.max_eval_samples}
    return {name: rows.select(range(min(limits.get(name) or len(rows), len(rows)))) for name, rows in data.items()}


def load_tokenizer(recipe: Recipe, rows: TaskRows) -> Any:
    """The named tokenizer, the teacher's, or one trained on the task's own text."""
    from ..data.text import train_tokenizer

    sources = {"tokenizer": recipe.tokenizer, "teacher's tokenizer": recipe.teacher}
    for what, name in {**sources, "student's tokenizer": recipe.student}.items():
        if isinstance(name, str):
            return from_pretrained("AutoTokenizer", name, what)
    return train_tokenizer(rows.texts(), vocab_size=recipe.vocab_size)


def load_student_tokenizer(recipe: Recipe, rows: TaskRows) -> Any:
    """The student's own tokenizer, `words` for one of the words of the task's text; None where it is the teacher's."""
    from ..data.text import train_word_tokenizer

    if recipe.student_tokenizer is None:
        return None
    if recipe.student_tokenizer != WORDS:
        return from_pretrained("AutoTokenizer", recipe.student_tokenizer, "student_tokenizer")
    return train_word_tokenizer(rows.texts(), vocab_size=recipe.vocab_size)

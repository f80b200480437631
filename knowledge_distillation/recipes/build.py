"""What a recipe says, as objects: data, tokenizer, models, and a KnowledgeDistiller for each of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.entry import DistillConfig
from ..config.parse import parse_config
from ..data.embedded import embedded_sentiment
from ..data.glue import load_glue
from ..data.image_format import saved_format
from ..data.images import load_images
from ..errors import ConfigError, shown
from ..presets import by_name as preset_table
from ..presets.layer_search import Proposal, search
from .build_models import build_model, from_pretrained
from .recipe import EMBEDDED, Recipe

NO_TEACHER = "recipe: teacher is missing: a directory, a hub name, or a mapping to build one"
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

    @classmethod
    def of(cls, recipe: Recipe, splits: Sequence[str] = ("train", "validation")) -> LoadedRecipe:
        """Load the teacher, its tokenizer, and the splits of the data, tokenized.

        Raises:
            ConfigError, DataError: something the recipe names is not there or does not fit.
        """
        from ..data.text import tokenize

        seed = recipe.settings.seed
        if recipe.image_task is not None:
            pictures = load_data(recipe)
            form = pictures["train"].form
            teacher = None if recipe.teacher is None else build_model(recipe.teacher, recipe, form, seed)
            return cls(recipe, {name: pictures[name] for name in splits}, form, teacher, seed)
        if recipe.teacher is None:
            raise ConfigError(NO_TEACHER)
        raw = load_data(recipe)
        tokenizer = load_tokenizer(recipe, raw)
        teacher = build_model(recipe.teacher, recipe, tokenizer, seed)
        student_tokenizer = load_student_tokenizer(recipe, raw)
        columns, length = recipe.glue_task.text_columns, recipe.max_length
        data = {name: tokenize(raw[name], tokenizer, columns, length, student_tokenizer) for name in splits}
        return cls(recipe, data, tokenizer, teacher, seed, student_tokenizer=student_tokenizer)

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
            source = self.teacher if of is None else build_model(of, self.recipe, self.tokenizer, seed, "student: of")
            return student_from_teacher(source, layers)
        if not isinstance(model, Mapping) or "embeddings" not in model:
            return build_model(model, self.recipe, tokenizer or self.tokenizer, seed, "student")
        if model["embeddings"] != "teacher":
            raise ConfigError(f"recipe: embeddings of a student can be 'teacher'; found {shown(model['embeddings'])}")
        model = {key: value for key, value in model.items() if key != "embeddings"}
        student = build_model(model, self.recipe, tokenizer or self.tokenizer, seed, "student")
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
        return parse_config(preset_table.expand(recipe.method_name, self.teacher, student, **options))

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
        from ..evaluation.glue_metrics import compute_metrics_for
        from ..training.distiller import KnowledgeDistiller

        recipe, compute_metrics = self.recipe, None
        needs_teacher = config is not None and config.needs_teacher
        if student is None or (needs_teacher and self.teacher is None):
            raise ConfigError(NO_TEACHER)
        if recipe.image_task is None:
            task = recipe.glue_task
            compute_metrics = compute_metrics_for(task.name, task.metrics, task.num_labels)
        args = recipe.finetune_settings if finetune else recipe.settings
        args = replace(args, stages=args.stages if config else (), **settings)
        data, student_tokenizer = self.data, None if finetune else self.student_tokenizer
        if student_tokenizer is None and recipe.image_task is None:
            data = {name: without_student_columns(rows) for name, rows in data.items()}
        run = KnowledgeDistiller(
            self.teacher if needs_teacher else None,
            student,
            recipe.hard_entries() if config is None else config,
            train_dataset=data.get("train"),
            eval_dataset=data["validation"],
            processing_class=student_tokenizer or self.tokenizer,
            data_collator=student_tokenizer and TwoTokenizers(self.tokenizer, student_tokenizer),
            train_data_adaptor=student_tokenizer and two_token_streams,
            compute_metrics=compute_metrics,
            output_dir=output_dir,
            args=args,
        )
        run.recipe = recipe.identity(finetune)
        run.data_note = f"data: {recipe.data_source}, " + ", ".join(
            f"{len(rows):,} rows of {split}" for split, rows in data.items() if split in ("train", "validation")
        )
        return run


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
            recipe.task,
            recipe.data_dir,
            image_size=recipe.image_size or saved.get("size"),
            augment=recipe.augment,
            max_train_samples=recipe.max_train_samples,
            max_eval_samples=recipe.max_eval_samples,
            mean=saved.get("mean"),
            std=saved.get("std"),
        )
    if recipe.task != EMBEDDED:
        return load_glue(recipe.task, recipe.data_dir, recipe.max_train_samples, recipe.max_eval_samples)
    data = embedded_sentiment()
    limits = {"train": recipe.max_train_samples, "validation": recipe.max_eval_samples}
    return {name: rows.select(range(min(limits.get(name) or len(rows), len(rows)))) for name, rows in data.items()}


def load_tokenizer(recipe: Recipe, raw: Mapping[str, Any]) -> Any:
    """The named tokenizer, the teacher's, or one trained on the task's own text."""
    from ..data.text import train_tokenizer

    sources = {"tokenizer": recipe.tokenizer, "teacher's tokenizer": recipe.teacher}
    for what, name in {**sources, "student's tokenizer": recipe.student}.items():
        if isinstance(name, str):
            return from_pretrained("AutoTokenizer", name, what)
    return train_tokenizer(_texts(recipe, raw), vocab_size=recipe.vocab_size)


def load_student_tokenizer(recipe: Recipe, raw: Mapping[str, Any]) -> Any:
    """The student's own tokenizer, `words` for one of the words of the task's text; None where it is the teacher's."""
    from ..data.text import train_word_tokenizer

    if recipe.student_tokenizer is None:
        return None
    if recipe.student_tokenizer != WORDS:
        return from_pretrained("AutoTokenizer", recipe.student_tokenizer, "student_tokenizer")
    return train_word_tokenizer(_texts(recipe, raw), vocab_size=recipe.vocab_size)


def _texts(recipe: Recipe, raw: Mapping[str, Any]) -> Iterator[str]:
    return (text for column in recipe.glue_task.text_columns for text in raw["train"][column])

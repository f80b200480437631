"""What a recipe says, as objects: data, tokenizer, models, and a KnowledgeDistiller for each of its runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import models
from ..config.entry import DistillConfig
from ..config.parse import parse_config
from ..data.embedded import embedded_sentiment
from ..data.glue import load_glue
from ..data.image_format import ImageFormat, is_local, saved_format
from ..data.images import load_images
from ..errors import ConfigError, nearest
from ..models.weights import load_weights
from ..presets import table
from ..presets.layer_search import Proposal, search
from .recipe import EMBEDDED, Recipe

logger = logging.getLogger(__name__)

# Fields for configs that have the one named beside them, and not for others.
_OF_SOME_FAMILIES = {name: name for name in ("image_size", "num_channels", "sentence_pairs")}
_OF_SOME_FAMILIES["sep_token_id"] = "sentence_pairs"

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
            raise _no_teacher()
        raw = load_data(recipe)
        tokenizer = load_tokenizer(recipe, raw)
        teacher = build_model(recipe.teacher, recipe, tokenizer, seed)
        other = load_student_tokenizer(recipe, raw)
        columns, length = recipe.glue_task.text_columns, recipe.max_length
        data = {name: tokenize(raw[name], tokenizer, columns, length, other) for name in splits}
        return cls(recipe, data, tokenizer, teacher, seed, student_tokenizer=other)

    def student(self, seed: int | None = None) -> Any:
        """A fresh student: built from the recipe each time it is asked for."""
        from ..models.cut import student_from_teacher
        from ..models.embeddings import begin_with_teacher

        wanted, own = self.recipe.student, self.student_tokenizer
        seed = self.seed if seed is None else seed
        if wanted is None:
            raise ConfigError("recipe: student is missing: {layers: [...]}, a directory, a hub name, or a mapping")
        if isinstance(wanted, Mapping) and "layers" in wanted:
            extra = sorted(set(wanted) - {"layers", "of"})
            if extra:
                raise ConfigError(f"recipe: a student cut out of a model has the keys layers and of; found {extra}")
            if own is not None:
                raise ConfigError("recipe: a student cut out of a model reads its tokens: leave student_tokenizer out")
            source = build_model(wanted["of"], self.recipe, self.tokenizer, seed) if "of" in wanted else self.teacher
            return student_from_teacher(source, wanted["layers"])
        if not isinstance(wanted, Mapping) or "embeddings" not in wanted:
            return build_model(wanted, self.recipe, own or self.tokenizer, seed)
        if wanted["embeddings"] != "teacher":
            raise ConfigError(f"recipe: embeddings of a student can be 'teacher'; found {wanted['embeddings']!r}")
        described = {key: value for key, value in wanted.items() if key != "embeddings"}
        student = build_model(described, self.recipe, own or self.tokenizer, seed)
        begin_with_teacher(student, self.teacher, self.tokenizer, own)
        return student

    def config(self, student: Any) -> DistillConfig:
        """The recipe's `distill_config`, or what its method expands to."""
        recipe = self.recipe
        if recipe.config is not None:
            return recipe.config
        options = recipe.method_options()
        if options.get("mapping") == "search":
            proposal = self.searched(student)
            self.why, options["mapping"] = proposal.why, proposal.pairs
        return parse_config(table.expand(recipe.method_name, self.teacher, student, **options))

    def searched(self, student: Any, batches: int = 4) -> Proposal:
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
            raise _no_teacher()
        if recipe.image_task is None:
            task = recipe.glue_task
            compute_metrics = compute_metrics_for(task.name, task.metrics, task.num_labels)
        args = recipe.finetune_settings if finetune else recipe.settings
        args = replace(args, stages=args.stages if config else (), **settings)
        data, reader = self.data, None if finetune else self.student_tokenizer
        if reader is None and recipe.image_task is None:
            data = {name: of_teacher(rows) for name, rows in data.items()}
        run = KnowledgeDistiller(
            self.teacher if needs_teacher else None,
            student,
            recipe.hard_entries() if config is None else config,
            train_dataset=data.get("train"),
            eval_dataset=data["validation"],
            processing_class=reader or self.tokenizer,
            data_collator=None if reader is None else TwoTokenizers(self.tokenizer, reader),
            train_data_adaptor=None if reader is None else two_token_streams,
            compute_metrics=compute_metrics,
            output_dir=output_dir,
            args=args,
        )
        run.run.recipe = recipe.made_of(finetune)
        return run


def of_teacher(rows: Any) -> Any:
    """Rows without the columns that only a student reads."""
    from ..data.text import STUDENT

    return rows.remove_columns([name for name in rows.column_names if name.startswith(STUDENT)])


def load_data(recipe: Recipe) -> dict[str, Any]:
    """The task's raw rows, `train` and `validation`; of an image task ready for a model."""
    if recipe.image_task is not None:
        # A teacher sees pictures as it saw them before; without one a student does.
        own = saved_format(recipe.student if recipe.teacher is None else recipe.teacher)
        return load_images(
            recipe.task,
            recipe.data_dir,
            image_size=recipe.image_size or own.get("size"),
            augment=recipe.augment,
            max_train_samples=recipe.max_train_samples,
            max_eval_samples=recipe.max_eval_samples,
            mean=own.get("mean"),
            std=own.get("std"),
        )
    if recipe.task != EMBEDDED:
        return load_glue(recipe.task, recipe.data_dir, recipe.max_train_samples, recipe.max_eval_samples)
    data = embedded_sentiment()
    limits = {"train": recipe.max_train_samples, "validation": recipe.max_eval_samples}
    return {name: rows.select(range(min(limits.get(name) or len(rows), len(rows)))) for name, rows in data.items()}


def load_tokenizer(recipe: Recipe, raw: Mapping[str, Any]) -> Any:
    """The named tokenizer, the teacher's, or one trained on the task's own text."""
    from ..data.text import train_tokenizer

    name = recipe.tokenizer or (recipe.teacher if isinstance(recipe.teacher, str) else None)
    if name is None and isinstance(recipe.student, str):
        name = recipe.student
    if name is not None:
        return _pretrained("AutoTokenizer", name, "tokenizer")
    return train_tokenizer(_texts(recipe, raw), vocab_size=recipe.vocab_size)


def load_student_tokenizer(recipe: Recipe, raw: Mapping[str, Any]) -> Any:
    """The student's own tokenizer, `words` for one of the words of the task's text; None where it is the teacher's."""
    from ..data.text import train_word_tokenizer

    if recipe.student_tokenizer is None:
        return None
    if recipe.student_tokenizer != WORDS:
        return _pretrained("AutoTokenizer", recipe.student_tokenizer, "tokenizer")
    return train_word_tokenizer(_texts(recipe, raw), vocab_size=recipe.vocab_size)


def _texts(recipe: Recipe, raw: Mapping[str, Any]) -> Iterator[str]:
    return (text for column in recipe.glue_task.text_columns for text in raw["train"][column])


def build_model(wanted: Any, recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    """A model with the task's head: loaded by name, or built from scratch out of a mapping.

    Args:
        tokenizer: of an image task its `ImageFormat`.
    """
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig, set_seed

    models.register()
    auto, sizes = _head(recipe, tokenizer)
    set_seed(seed)
    if isinstance(wanted, str):
        classes = {key: sizes[key] for key in ("num_labels", "id2label", "label2id") if key in sizes}
        return _pretrained(auto, wanted, f"model for {recipe.task}", **classes)
    if not isinstance(wanted, Mapping) or "model_type" not in wanted:
        raise ConfigError(f"recipe: a model is a name, or a mapping with model_type; found {wanted!r}")
    described = dict(wanted)
    kind, zero = described.pop("model_type"), bool(described.pop("zero_residual_branches", False))
    weights = described.pop("weights", None)
    if weights is not None and not isinstance(weights, str):
        raise ConfigError(f"recipe: weights of a model is the path of a file; found {weights!r}")
    try:
        config = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ConfigError(
            f"recipe: model_type {kind!r} is not one transformers knows.{nearest(str(kind), CONFIG_MAPPING)}"
        ) from error
    unknown = [key for key in described if not hasattr(config, key)]
    if unknown:
        texts = [f"{key!r}.{nearest(key, config.to_dict())}" for key in unknown]
        raise ConfigError(f"recipe: a {kind} config has no field {' '.join(texts)}")
    sizes = {key: value for key, value in sizes.items() if hasattr(config, _OF_SOME_FAMILIES.get(key, "model_type"))}
    try:
        model = getattr(transformers, auto).from_config(AutoConfig.for_model(kind, **{**sizes, **described}))
    except Exception as error:  # a config checks itself, each family with errors of its own
        raise ConfigError(f"recipe: cannot build a {kind} for {recipe.task}: {_brief(error)}") from error
    if zero:
        zero_residual_branches(model)
    if weights is not None:
        load_weights(model, weights)
    return model


def _head(recipe: Recipe, tokenizer: Any) -> tuple[str, dict[str, Any]]:
    """The Auto class of a task's models, and the fields of their configs that data and task say."""
    if isinstance(tokenizer, ImageFormat):
        return "AutoModelForImageClassification", tokenizer.fields()
    task = recipe.glue_task
    tokens = {"pad_token_id": tokenizer.pad_token_id, "sep_token_id": tokenizer.sep_token_id}
    sizes = {"num_labels": task.num_labels, "sentence_pairs": len(task.text_columns) == 2}
    return "AutoModelForSequenceClassification", {"vocab_size": len(tokenizer), **sizes, **tokens}


def _no_teacher() -> ConfigError:
    return ConfigError("recipe: teacher is missing: a directory, a hub name, or a mapping to build one")


def zero_residual_branches(model: Any) -> None:
    """Let every layer begin as the identity: the last linear map of each residual branch is set to zero.

    Without it a deep post-norm encoder that starts from nothing often does not train at all.
    Source: after Zhang, Dauphin and Ma, Fixup Initialization, 2019.
    """
    found = [module for path, module in model.named_modules() if path.endswith("output.dense")]
    if not found:
        raise ConfigError(
            f"recipe: zero_residual_branches needs layers built as BERT's; {type(model).__name__} has none"
        )
    for module in found:
        module.weight.data.zero_()


def _pretrained(auto: str, name: str, what: str, **arguments: Any) -> Any:
    import transformers

    models.register()
    looks_local = is_local(name)
    path = Path(name).expanduser()
    needed = "tokenizer_config.json" if auto == "AutoTokenizer" else "config.json"
    if looks_local and not (path / needed).exists():
        found = (
            "no such directory"
            if not path.is_dir()
            else f"it holds {', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'}"
        )
        inner = path / "student"
        hint = f". Nearest: {inner}" if (inner / needed).exists() else ""
        raise ConfigError(
            f"recipe: {name!r}: {found}" if not path.is_dir() else f"recipe: no {what} in {name!r}: {found}{hint}"
        )
    where = str(path) if looks_local else name
    try:
        if "num_labels" in arguments:
            _check_labels(transformers.AutoConfig.from_pretrained(where), name, what, **arguments)
        return getattr(transformers, auto).from_pretrained(where, **arguments)
    except ConfigError:
        raise
    except Exception as error:  # a file that is cut short has errors of its own in every format
        raise ConfigError(f"recipe: cannot load {what} {name!r}: {_brief(error)}") from error


def _check_labels(
    config: Any, name: str, what: str, num_labels: int, id2label: Mapping[int, str] | None = None, **_: Any
) -> None:
    """A saved classification head has to have the task's classes, those of the same names in the same order."""
    heads = ("ForSequenceClassification", "ForImageClassification")
    if not any(str(one).endswith(heads) for one in config.architectures or ()):
        return
    if config.num_labels != num_labels:
        raise ConfigError(
            f"recipe: cannot load {what} {name!r}: it has {config.num_labels} classes, and the task {num_labels}"
        )
    mine, theirs = ([names[i] for i in sorted(names)] for names in (id2label or {}, config.id2label))
    if mine == theirs or not (_are_names(mine) and _are_names(theirs)):
        return
    first = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    other = f"its class {first} is {theirs[first]!r}, and that of the data {mine[first]!r}"
    if sorted(mine) == sorted(theirs):
        raise ConfigError(f"recipe: cannot load {what} {name!r}: {other}: the same classes in another order")
    logger.warning("%s %r: %s. Classes go by number", what, name, other)


def _are_names(classes: Sequence[str]) -> bool:
    """Whether classes are called something, and not LABEL_0, LABEL_1 or 0, 1."""
    return bool(classes) and not all(re.fullmatch(r"(LABEL_)?\d+", one) for one in classes)


def _brief(error: Exception) -> str:
    """The first 300 characters of an error's text, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."

"""A whole run as one YAML file: teacher, student, data, distill_config, training. No code comes out of YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from . import presets
from .config import parse_config
from .data.embedded import embedded_sentiment
from .data.glue import GLUE_TASKS, GlueTask, find_task, load_glue
from .errors import ConfigError, nearest
from .mapping import STRATEGIES, Proposal, check_mapping, search
from .settings import TrainingSettings

EMBEDDED = "embedded"
METHOD = "layers"  # of a recipe that says neither a method nor a distill_config
HARD = [{"student": "output.logits", "loss": "cross_entropy"}]
HARD_REGRESSION = [{"student": "output.logits", "loss": "mse"}]
_TEXTS = ("task", "data_dir", "tokenizer", "method", "output_dir")
_COUNTS = ("max_train_samples", "max_eval_samples", "max_length", "vocab_size")
_NUMBERS = ("alpha", "temperature")
_MAPPINGS = ("training", "finetune", "method_args")


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        teacher: a directory or hub name; or a mapping that describes a model to build from scratch, with
            `model_type`, the fields of its config, and `zero_residual_branches: true` where it is deep.
        student: the same; or `{layers: [4, 8, 12]}` to cut it out of the teacher, or `{layers: [...], of: NAME}` out
            of another model.
        task: a GLUE task, or `embedded` for the data set that comes with the package.
        data_dir: folder in GLUE's own TSV layout; None: `GLUE_DATA_DIR`, else the hub.
        max_train_samples, max_eval_samples: a fixed random part of the data.
        max_length: tokens after which text is cut.
        tokenizer: None: the teacher's, or one trained on the task's text where the teacher is built from scratch.
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
        training: the fields of `TrainingSettings`.
        output_dir: where the run goes.
    """

    teacher: Any = None
    student: Any = None
    task: str = EMBEDDED
    data_dir: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_length: int = 128
    tokenizer: str | None = None
    vocab_size: int = 8000
    method: str | None = None
    alpha: float | None = None
    temperature: float | None = None
    method_args: dict[str, Any] = field(default_factory=dict)
    mapping: Any = None
    distill_config: list[Any] | None = None
    stages: list[Any] | None = None
    finetune: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    output_dir: str | None = None

    def check(self) -> Recipe:
        problems = self._of_wrong_type()
        if problems:
            raise ConfigError("recipe: " + "; ".join(problems))
        for key, settings in (("training", self.settings()), ("finetune", self.finetune)):
            try:
                TrainingSettings.parse(dict(settings))
            except ConfigError as error:
                problems.append(f"{key}: {str(error).removeprefix('settings: ')}")
        known = [EMBEDDED, *GLUE_TASKS, *(task.folder for task in GLUE_TASKS.values())]
        if self.task not in known:
            problems.append(f"task {self.task!r} is unknown.{nearest(self.task, known)} Known: {', '.join(known)}")
        try:
            self._check_method()
        except ConfigError as error:
            problems.append(str(error))
        if self.stages and self.training.get("stages"):
            problems.append("stages are given twice: beside training and inside it")
        if problems:
            raise ConfigError("recipe: " + "; ".join(problems))
        return self

    def _check_method(self) -> None:
        presets.check_name(self.method or METHOD)
        if self.own_entries() is None:
            options = self.method_options()
            presets.check_options(self.method or METHOD, options)
            if "mapping" in options:
                check_mapping(options["mapping"], [*STRATEGIES, "search"])
        elif self.method is not None:
            raise ConfigError("give either method or distill_config")
        elif self.method_args or self.mapping is not None:
            key = "method_args" if self.method_args else "mapping"
            raise ConfigError(f"{key} belongs to a method, and this recipe has a distill_config")

    def method_options(self) -> dict[str, Any]:
        """The arguments of the method, under its own names."""
        given = {"alpha": self.alpha, "temperature": self.temperature, "mapping": self.mapping}
        return {**{key: value for key, value in given.items() if value is not None}, **self.method_args}

    def _of_wrong_type(self) -> list[str]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        default = {f.name for f in fields(self) if f.default is None}
        given = {key: value for key, value in values.items() if value is not None or key not in default}
        problems = [
            f"{key} is a text; found {given[key]!r}"
            for key in _TEXTS
            if key in given and not isinstance(given[key], (str, Path))
        ]
        problems += [
            f"{key} is a whole number of 1 or more; found {given[key]!r}"
            for key in _COUNTS
            if key in given and (isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < 1)
        ]
        problems += [
            f"{key} is a number; found {given[key]!r}"
            for key in _NUMBERS
            if key in given and (isinstance(given[key], bool) or not isinstance(given[key], (int, float)))
        ]
        lists = {key: given[key] for key in ("distill_config", "stages") if key in given}
        problems += [
            f"{key} is a list of {'stages' if key == 'stages' else 'entries'}; found {type(value).__name__}"
            for key, value in lists.items()
            if not isinstance(value, list)
        ]
        if isinstance(given.get("stages"), list):
            problems += _wrong_stages(given["stages"])
        return problems + [
            f"{key} is a mapping of {'arguments' if key == 'method_args' else 'settings'}; found {given[key]!r}"
            for key in _MAPPINGS
            if not isinstance(given[key], Mapping)
        ]

    def own_entries(self) -> list[Any] | None:
        """The entries the recipe writes out, those of its stages included; None where it writes none."""
        inside = [
            {**entry, "stage": stage["name"]} if isinstance(entry, Mapping) else entry
            for stage in self.stages or []
            for entry in stage.get("distill_config") or []
        ]
        return None if self.distill_config is None and not inside else [*(self.distill_config or []), *inside]

    def settings(self) -> dict[str, Any]:
        """The settings of `training`, with what the stages say."""
        if not self.stages:
            return dict(self.training)
        stages = [{key: value for key, value in stage.items() if key != "distill_config"} for stage in self.stages]
        return {**self.training, "stages": stages}

    @property
    def glue_task(self) -> GlueTask:
        return find_task("sst2" if self.task == EMBEDDED else self.task)

    def hard_entries(self) -> list[dict[str, Any]]:
        return HARD_REGRESSION if self.glue_task.is_regression else HARD


def _wrong_stages(stages: list[Any]) -> list[str]:
    problems = []
    for number, stage in enumerate(stages):
        entries = stage.get("distill_config") if isinstance(stage, Mapping) else None
        if not isinstance(stage, Mapping) or not isinstance(stage.get("name"), (str, int)):
            problems.append(f"stages[{number}] is a mapping with a name; found {stage!r}")
        elif entries is not None and not isinstance(entries, list):
            problems.append(f"stages[{number}]: distill_config is a list; found {entries!r}")
        elif any(isinstance(entry, Mapping) and "stage" in entry for entry in entries or []):
            problems.append(f"stages[{number}]: its entries belong to stage {stage['name']!r} and name no other")
    return problems


def load_recipe(
    path: str | Path | None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, its `base:` first, then `key=value` overrides, then values given on the command line.

    Args:
        overrides: `training.learning_rate=1e-4`; values are YAML.
        given: field -> value; None values are left out.

    Raises:
        ConfigError: the file is missing or no valid YAML, or a key is unknown (with the nearest name).
    """
    content = _read(Path(path)) if path is not None else {}
    for override in overrides:
        _override(content, override)
    for key, value in (given or {}).items():
        if value is not None:
            _set(content, key.split("."), value)
    known = [f.name for f in fields(Recipe)]
    unknown = [key for key in content if key not in known]
    if unknown:
        texts = [f"unknown key {key!r}.{nearest(str(key), known)}" for key in unknown]
        raise ConfigError(f"recipe: {'; '.join(texts)} Keys: {', '.join(known)}")
    return Recipe(**content).check()


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise ConfigError(f"recipe {path} does not exist")
    if path.resolve() in above:
        raise ConfigError(f"recipe {path} is its own base: {' -> '.join(p.name for p in (*above, path))}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} is a mapping; found {type(content).__name__}")
    content = _unshared(content)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"recipe {path}: base is the path of a recipe; found {base!r}")
    return _merged(_read(path.parent / base, (*above, path.resolve())), content)


def _unshared(content: Any) -> Any:
    """A copy in which a YAML anchor and its aliases are values of their own, so that an override meets one of them."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict) and key in _MAPPINGS
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(content: dict[str, Any], text: str) -> None:
    import yaml

    key, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set takes key=value, as in training.learning_rate=1e-4; found {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML") from error
    _set(content, key.split("."), parsed)


def _set(content: Any, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys):
        if isinstance(content, dict) and depth and key.isdigit():
            raise ConfigError(f"--set {'.'.join(keys)}: the recipe has no list {'.'.join(keys[:depth])}")
        parent, place = ".".join(keys[:depth]), key  # type: tuple[str, Any]
        if isinstance(content, list):
            if not key.isdigit() or int(key) >= len(content):
                raise ConfigError(
                    f"--set {'.'.join(keys)}: {parent} is a list of {len(content)} items, counted from 0; "
                    f"found {key!r}"
                )
            place = int(key)
        elif not isinstance(content, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: {parent} is {content!r}, not a mapping")
        if depth == len(keys) - 1:
            content[place] = value
        else:
            if isinstance(content, dict) and content.get(place) is None:
                content[place] = {}
            content = content[place]


# --- recipe -> objects ---------------------------------------------------------------------------------------------


@dataclass
class Ingredients:
    """What a recipe says, as objects: data, tokenizer, models."""

    recipe: Recipe
    data: dict[str, Any]
    tokenizer: Any
    teacher: Any
    seed: int
    why: str = ""  # what a search for a layer mapping found

    @classmethod
    def of(cls, recipe: Recipe, splits: Sequence[str] = ("train", "validation")) -> Ingredients:
        """Load the teacher, its tokenizer, and the splits of the data, tokenized.

        Raises:
            ConfigError, DataError: something the recipe names is not there or does not fit.
        """
        if recipe.teacher is None:
            raise ConfigError("recipe: teacher is missing: a directory, a hub name, or a mapping to build one")
        seed = TrainingSettings.parse(dict(recipe.training)).seed
        raw = load_data(recipe)
        tokenizer = load_tokenizer(recipe, raw)
        teacher = build_model(recipe.teacher, recipe, tokenizer, seed)
        ready = cls(recipe, raw, tokenizer, teacher, seed)
        ready.data = {name: ready.tokenized(rows) for name, rows in raw.items() if name in splits}
        return ready

    def tokenized(self, rows: Any) -> Any:
        from .data.text import tokenize

        return tokenize(rows, self.tokenizer, self.recipe.glue_task.text_columns, self.recipe.max_length)

    def student(self, seed: int | None = None) -> Any:
        """A fresh student: built from the recipe each time it is asked for."""
        from .students import student_from_teacher

        wanted = self.recipe.student
        seed = self.seed if seed is None else seed
        if wanted is None:
            raise ConfigError("recipe: student is missing: {layers: [...]}, a directory, a hub name, or a mapping")
        if isinstance(wanted, Mapping) and "layers" in wanted:
            extra = sorted(set(wanted) - {"layers", "of"})
            if extra:
                raise ConfigError(f"recipe: a student cut out of a model has the keys layers and of; found {extra}")
            source = build_model(wanted["of"], self.recipe, self.tokenizer, seed) if "of" in wanted else self.teacher
            return student_from_teacher(source, wanted["layers"])
        return build_model(wanted, self.recipe, self.tokenizer, seed)

    def entries(self, student: Any) -> list[Any]:
        """The recipe's `distill_config`, or what its method expands to."""
        recipe = self.recipe
        written = recipe.own_entries()
        if written is not None:
            return written
        options = recipe.method_options()
        if options.get("mapping") == "search":
            found = self.searched(student)
            self.why, options["mapping"] = found.why, found.pairs
        return presets.expand(recipe.method or METHOD, self.teacher, student, **options)

    def searched(self, student: Any, batches: int = 4) -> Proposal:
        """A layer mapping by similarity, on a few batches of the training data."""
        from torch.utils.data import DataLoader
        from transformers import DataCollatorWithPadding

        rows = self.data["train"].shuffle(seed=self.seed)
        inputs = [name for name in self.tokenizer.model_input_names if name in rows.column_names]
        rows = rows.select_columns(inputs).select(range(min(batches * 32, len(rows))))
        loader: Any = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(self.tokenizer))
        return search(self.teacher, student, loader)

    def distiller(
        self, student: Any, entries: list[Any], output_dir: str | Path | None, finetune: bool = False, **settings: Any
    ) -> Any:
        """A KnowledgeDistiller for one of the runs a recipe gives rise to."""
        from .distiller import KnowledgeDistiller
        from .metrics import compute_metrics_for

        task = self.recipe.glue_task
        staged = not finetune and entries != self.recipe.hard_entries()  # a baseline is one stage as well
        own = self.recipe.settings() if staged else {**self.recipe.training, "stages": ()}
        training = {**own, **(self.recipe.finetune if finetune else {}), **settings}
        training.setdefault("metric_for_best_model", task.primary_metric)
        return KnowledgeDistiller(
            None if finetune or not parse_config(entries).needs_teacher else self.teacher,
            student,
            entries,
            train_dataset=self.data.get("train"),
            eval_dataset=self.data["validation"],
            processing_class=self.tokenizer,
            compute_metrics=compute_metrics_for(task),
            output_dir=output_dir,
            **training,
        )


def load_data(recipe: Recipe) -> dict[str, Any]:
    """The task's raw rows, `train` and `validation`."""
    if recipe.task != EMBEDDED:
        return load_glue(recipe.task, recipe.data_dir, recipe.max_train_samples, recipe.max_eval_samples)
    data = embedded_sentiment()
    limits = {"train": recipe.max_train_samples, "validation": recipe.max_eval_samples}
    return {name: rows.select(range(min(limits.get(name) or len(rows), len(rows)))) for name, rows in data.items()}


def load_tokenizer(recipe: Recipe, raw: Mapping[str, Any]) -> Any:
    """The named tokenizer, the teacher's, or one trained on the task's own text."""
    from .data.text import train_tokenizer

    name = recipe.tokenizer or (recipe.teacher if isinstance(recipe.teacher, str) else None)
    if name is None and isinstance(recipe.student, str):
        name = recipe.student
    if name is not None:
        return _pretrained("AutoTokenizer", name, "tokenizer")
    texts = (text for column in recipe.glue_task.text_columns for text in raw["train"][column])
    return train_tokenizer(texts, vocab_size=recipe.vocab_size)


def build_model(wanted: Any, recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    """A model with the task's head: loaded by name, or built from scratch out of a mapping."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification, set_seed

    task = recipe.glue_task
    set_seed(seed)
    if isinstance(wanted, str):
        return _pretrained(
            "AutoModelForSequenceClassification", wanted, f"model for {task.name}", num_labels=task.num_labels
        )
    if not isinstance(wanted, Mapping) or "model_type" not in wanted:
        raise ConfigError(f"recipe: a model is a name, or a mapping with model_type; found {wanted!r}")
    described = dict(wanted)
    kind, zero = described.pop("model_type"), bool(described.pop("zero_residual_branches", False))
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
    sizes = {"vocab_size": len(tokenizer), "num_labels": task.num_labels, "pad_token_id": tokenizer.pad_token_id}
    try:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**sizes, **described}))
    except Exception as error:  # a config checks itself, each family with errors of its own
        raise ConfigError(f"recipe: cannot build a {kind} for {task.name}: {_brief(error)}") from error
    if zero:
        zero_residual_branches(model)
    return model


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

    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()
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
            _check_labels(transformers.AutoConfig.from_pretrained(where), name, what, arguments["num_labels"])
        return getattr(transformers, auto).from_pretrained(where, **arguments)
    except ConfigError:
        raise
    except Exception as error:  # a file that is cut short has errors of its own in every format
        raise ConfigError(f"recipe: cannot load {what} {name!r}: {_brief(error)}") from error


def _check_labels(config: Any, name: str, what: str, labels: int) -> None:
    """A saved classification head has to have the task's classes."""
    has_head = any(str(one).endswith("ForSequenceClassification") for one in config.architectures or ())
    if has_head and config.num_labels != labels:
        raise ConfigError(
            f"recipe: cannot load {what} {name!r}: it has {config.num_labels} classes, and the task {labels}"
        )


def _brief(error: Exception) -> str:
    """The first 300 characters of an error's text, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."

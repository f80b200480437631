"""A grid over a recipe: which keys vary, over which values, and what of the recipe each of them names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..config.entry import DistillConfig
from ..config.written import parse_yaml, shortened
from ..errors import ConfigError, nearest, shown
from ..losses.arguments import signature_of
from ..losses.table import get_loss
from ..presets import by_name as preset_table
from .load import TEXTS, load_recipe, named_by
from .recipe import Recipe

if TYPE_CHECKING:
    from ..training.distiller import KnowledgeDistiller
    from .build import LoadedRecipe

SHORT = ("alpha", "weight", "temperature")
# What a run may say without its data, tokenizer and teacher becoming others.
_OF_A_RUN = (
    *("student", "method", "alpha", "temperature", "method_args", "mapping", "distill_config", "stages"),
    *("training", "finetune", "output_dir"),
)
# Settings that decide how a teacher's outputs are computed and stored.
_OF_A_CACHE = ("mixed_precision", "teacher_dtype", "teacher_cache_dtype", "teacher_cache_top_k")
_NO_AXIS = {
    "output_dir": "the sweep gives each run a directory",
    "finetune": "a sweep distils, and does not read these settings",
    "training.seed": "give seeds as --seeds 1,2,3",
    "training.teacher_cache": "all runs share one cache",
    "training.overwrite_output_dir": "the runs of a sweep are gone on with",
}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: a value for every key of the grid, and a seed."""

    values: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """What its directory is called: `weight=0.2,temperature=4,seed=1`."""
        text = ",".join(f"{key}={value}" for key, value in {**self.values, "seed": self.seed}.items())
        name = re.sub(r"[^\w.=,+-]+", "_", text)
        return name if len(name) < 150 else f"{name[:120]}-{xxhash.xxh3_64_hexdigest(text.encode())}"


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`weight=0.2,0.4` -> {"weight": [0.2, 0.4]}; values are YAML.

    Raises:
        ConfigError: no values, a key or a value twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"--grid takes key=value,value as in temperature=2,4,8; found {shown(text)}")
        grid_values = parse_yaml(f"[{values}]", f"--grid {shortened(text)}: the list of values", TEXTS, named_by(key))
        if key in grid:
            raise ConfigError(f"--grid {key} is given twice: put all its values into one")
        grid[key] = grid_values
    check_grid(grid)
    return grid


def parse_seeds(text: str | None, recipe: Recipe) -> list[int]:
    """`1,2,3` -> [1, 2, 3]; None for the recipe's own seed."""
    if text is None:
        return [recipe.settings.seed]
    if not re.fullmatch(r"\d+(,\d+)*", text.replace(" ", "")):
        raise ConfigError(f"--seeds takes whole numbers, as in 1,2,3; found {shown(text)}")
    return [int(number) for number in text.split(",")]


def check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    if not grid:
        raise ConfigError("a sweep needs a grid: --grid temperature=2,4,8")
    for key, values in grid.items():
        if not values:
            raise ConfigError(f"--grid {key} has no value")
        repeats = [value for number, value in enumerate(values) if value in list(values)[:number]]
        if repeats:
            raise ConfigError(f"--grid {key} has {repeats[0]!r} twice")


def points(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Point]:
    """Every run: each combination of values with each seed, all combinations with the first seed first.

    Raises:
        ConfigError: an empty grid, a value or a seed twice.
    """
    check_grid(grid)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are different whole numbers, one or more; found {list(seeds)}")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [Point(values, seed) for seed in seeds for values in combinations]


class RecipeRuns:
    """The runs of a sweep over a recipe; data and teacher are loaded once for all that agree in them.

    Called as `(values, seed, output_dir, teacher_cache)` it makes the distiller of one run.

    Args:
        path, overrides, values: as for `load_recipe`.

    Raises:
        ConfigError: as `load_recipe`.
    """

    def __init__(
        self, path: str | Path | None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
    ) -> None:
        self._source = path, overrides, dict(values or {})
        self.base = load_recipe(*self._source)
        self._loaded: LoadedRecipe | None = None
        self._evaluators: dict[str, Any] = {}  # one that remembers what the teacher says of the evaluation data

    def __call__(
        self, values: Mapping[str, Any], seed: int, output_dir: Path | None, teacher_cache: str | None
    ) -> KnowledgeDistiller:
        recipe = self.recipe(values, seed)
        loaded = self._load(recipe)
        student = loaded.student()
        config = loaded.config(student)
        folder = None if recipe.augmented else teacher_cache  # what the teacher says of changed pictures never recurs
        cache = recipe.settings.teacher_cache or (folder and _cache_of(folder, recipe, config))
        distiller = loaded.distiller(student, config, output_dir, teacher_cache=cache)
        settings = distiller.settings
        alike = [settings.per_device_eval_batch_size, settings.group_by_length, settings.teacher_dtype]
        key = repr([_shared(recipe), alike, settings.mixed_precision])
        distiller.evaluator = self._evaluators.setdefault(key, distiller.evaluator)
        return distiller

    def recipe(self, values: Mapping[str, Any], seed: int | None = None) -> Recipe:
        """The recipe of one run.

        Raises:
            ConfigError: a key or a value that does not fit.
        """
        path, overrides, common = self._source
        changes = {name: v for key, value in values.items() for name, v in resolved(self.base, key, value).items()}
        if seed is not None:
            changes["training.seed"] = seed
        try:
            recipe = load_recipe(path, overrides, {**common, **changes})
        except ConfigError as error:
            raise ConfigError(str(error).replace("--set ", "--grid ")) from error
        if recipe.config is not None:
            recipe.config.check()
        return recipe

    def check(self, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> bool:
        """Read the recipe of every run, and bind one run for every value of the grid. Nothing is trained or written.

        Returns:
            Whether the greater score is the better.

        Raises:
            ConfigError: a key that is unknown or names nothing, or a value that does not fit.
        """
        for run in points(grid, seeds):
            self.recipe(run.values, run.seed)
        for number in range(max(map(len, grid.values()))):
            values = {key: values[min(number, len(values) - 1)] for key, values in grid.items()}
            distiller = self(values, seeds[0], None, None)
            distiller.plan()
            distiller.close()
        return is_greater_better(distiller)

    @property
    def identity(self) -> str:
        """What the runs have in common, as text."""
        return repr({f.name: getattr(self.base, f.name) for f in fields(self.base) if f.name != "output_dir"})

    def _load(self, recipe: Recipe) -> LoadedRecipe:
        from .build import LoadedRecipe

        if self._loaded is None or _shared(self._loaded.recipe) != _shared(recipe):
            training = {**recipe.training, "seed": self.base.settings.seed}  # one teacher, whatever the seed
            self._loaded = LoadedRecipe.of(replace(recipe, training=training))
        return replace(self._loaded, recipe=recipe, seed=recipe.settings.seed)


def is_greater_better(distiller: KnowledgeDistiller) -> bool:
    """By which end the runs of a sweep are ranked.

    Raises:
        ConfigError: the run has no metric to be ranked by.
    """
    evaluator, settings = distiller.evaluator, distiller.settings
    if distiller.dev_dataloader is None or not callable(evaluator):
        raise ConfigError(
            "a sweep ranks its runs by a metric: give evaluation data, and an evaluator that is a callable"
        )
    greater = settings.greater_is_better
    return bool(getattr(evaluator, "greater_is_better", True) if greater is None else greater)


def _shared(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides data, tokenizer and teacher."""
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in _OF_A_RUN}


def _cache_of(folder: str, recipe: Recipe, config: DistillConfig) -> str:
    """The part of a sweep's cache that holds what this config reads of this recipe's teacher."""
    features = sorted({str(feature) for entry in config.entries for feature in entry.teacher})
    settings = {key: getattr(recipe.settings, key) for key in _OF_A_CACHE}
    return str(Path(folder, xxhash.xxh3_64_hexdigest(repr([features, _shared(recipe) | settings]).encode())))


# --- what a key names ------------------------------------------------------------------------------------------------


def resolved(recipe: Recipe, key: str, value: Any) -> dict[str, Any]:
    """The keys of the recipe that a key of the grid sets, with their values.

    `alpha`, `weight` and `temperature` are arguments of the recipe's method; beside a distill_config they are of its
    one entry that has a teacher and reads logits, and `alpha` gives the one entry of labels the weight 1 - alpha.

    Raises:
        ConfigError: the key is unknown, says nothing here, or could mean several things.
    """
    keys = [f.name for f in fields(Recipe)]
    first = key.partition(".")[0]
    if key not in SHORT:
        if first not in keys:
            raise ConfigError(
                f"--grid {key}: a recipe has no key {first!r}.{nearest(first, [*keys, *SHORT])} Keys: "
                f"{', '.join(keys)}; and for short {', '.join(SHORT)}"
            )
        why = _NO_AXIS.get(key) or _NO_AXIS.get(first)
        if why:
            raise ConfigError(f"--grid {key}: {why}")
        return {key: value}
    if recipe.config is None:
        return _of_method(recipe, key, value)
    return _of_entries(recipe, recipe.config, key, value)


def _of_method(recipe: Recipe, key: str, value: Any) -> dict[str, Any]:
    method = recipe.method_name
    takes = preset_table.options_of(method)
    if key not in takes and not (key == "weight" and "alpha" in takes):
        raise ConfigError(f"--grid {key}: method {method} takes no {key}. It takes: {', '.join(takes) or 'nothing'}")
    if key == "weight":
        return {"method_args.weight": value} if key in takes else {"alpha": value}
    return {key: value}


def _of_entries(recipe: Recipe, config: DistillConfig, key: str, value: Any) -> dict[str, Any]:
    paths = _paths(recipe)
    entries = config.check().entries
    soft = {entry.index: entry for entry in entries if entry.teacher and entry.student[0].output == "logits"}
    path = _only(key, [paths[index] for index in soft], "with a teacher on logits")
    if key == "weight":
        return {f"{path}.weight": value}
    if key == "alpha":
        hard = dict.fromkeys(paths[entry.index] for entry in entries if entry.hard)
        return {f"{path}.weight": value, f"{_only(key, list(hard), 'of labels')}.weight": 1 - value}
    (index, entry), *_ = soft.items()
    loss = get_loss(entry.loss) if isinstance(entry.loss, str) else entry.loss
    if "temperature" not in signature_of(loss).call:
        raise ConfigError(f"--grid temperature: loss {entry.loss_name} of {path} takes no temperature")
    inside = "loss.args" if isinstance((recipe.own_entries() or [])[index].get("loss"), Mapping) else "args"
    return {f"{path}.{inside}.temperature": value}


def _only(key: str, paths: Sequence[str], what: str) -> str:
    """The path of the one entry that a short name speaks of."""
    if len(paths) != 1:
        hint = f". Name one: {', '.join(f'{path}.weight' for path in paths)}" if paths else ""
        raise ConfigError(f"--grid {key}: it speaks of the one entry {what}, and there are {len(paths)}{hint}")
    return paths[0]


def _paths(recipe: Recipe) -> list[str]:
    """Where entries are written: numbers count the recipe's own entries first, then those of its stages."""
    own = [f"distill_config.{number}" for number in range(len(recipe.distill_config or []))]
    return own + [
        f"stages.{number}.distill_config.{inner}"
        for number, stage in enumerate(recipe.stages or [])
        for inner in range(len(stage.get("distill_config") or []))
    ]

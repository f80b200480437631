"""Configs and recipes with something wrong in them end in one clear error of this package, and soon.

python tests/test_fuzz.py [configs] [recipes] [first seed] prints what became of so many of each.
"""

from __future__ import annotations

import collections
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mutations import FROM_PYTHON, WRITTEN, Mutated, as_yaml, mangled, mutated
from runs import TINY_BERT, batches, bert, distiller, glue_folder
from training_script import CONFIG

from knowledge_distillation import DistillationError
from knowledge_distillation.cli.commands import _distillation
from knowledge_distillation.recipes.load import load_recipe

LIMIT = 5.0  # seconds of processor time for one input
_OF_FILES = ("not valid YAML", "nested too deep", "is larger than")  # these name the file
LONGEST = 20_000  # characters of an error that somebody may read
CONFIGS: list[list[dict[str, Any]]] = [
    CONFIG,
    [
        {
            "type": "ts_distill",
            "teacher_layer_name": "bert_layer{2,4}",
            "teacher_layer_output_name": "hidden_states",
            "student_layer_name": "bert_layer{1,2}",
            "student_layer_output_name": "hidden_states",
            "loss": {"loss_function": "mse", "args": {}},
            "weight": 1.0,
            "projection": {"type": "mlp", "hidden_size": 8, "shared": "both"},
            "schedule": {"weight": {"type": "cosine", "start": 0.1, "end": 1.0, "begin": 0.1, "finish": 0.9}},
        },
        {
            "type": "hard_distill",
            "student_layer_name": "output",
            "student_layer_output_name": "logits",
            "loss": {"loss_function": "cross_entropy", "args": {"label_smoothing": 0.1}},
            "name": "labels",
            "reduction": "mean",
        },
    ],
    [
        {
            "teacher": ["layer{1..4}.hidden_states"],
            "student": ["layer{1,2}.hidden_states"],
            "loss": "bert_emd",
        },
        {
            "teacher": "layer4.hidden_states",
            "student": "layer2.hidden_states",
            "loss": "pkd",
            "teacher_projection": {"type": "linear", "width": 16, "trainable": False},
            "learning_rate": 0.001,
        },
        {
            "teacher": "output.logits",
            "student": "output.logits",
            "loss": "dkd",
            "args": {"alpha": 1.0, "beta": 2.0, "temperature": 4.0},
            "schedule": {"temperature": {"type": "step", "values": [4.0, 2.0], "at": [0.5]}},
            "stage": "late",
        },
        {"teacher": "output.logits", "student": "output.logits", "loss": "mse", "teacher_name": "self", "stage": [1]},
    ],
]


def recipes(folder: Path) -> list[dict[str, Any]]:
    """Recipes that use every key, on 24 sentences in `folder`."""
    data = {"task": "sst2", "data_dir": str(folder / "glue"), "max_length": 16}
    student = {**TINY_BERT, "num_hidden_layers": 1}
    plain = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "mixed_precision": "no", "disable_tqdm": True}
    return [
        {
            **data,
            "teacher": dict(TINY_BERT),
            "student": student,
            "distill_config": [
                {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"},
                {"student": "output.logits", "loss": "cross_entropy", "weight": 0.5},
            ],
            "training": {
                **plain,
                "learning_rate": 1e-3,
                "weight_decay": 0.01,
                "warmup_ratio": 0.1,
                "lr_scheduler_type": "multistep",
                "lr_scheduler_kwargs": {"milestones": [0.5], "gamma": 0.1},
                "optim": "sgd",
                "optim_args": "momentum=0.9",
                "seed": 1,
                "max_tokens_per_batch": 64,
                "length_bucket": 8,
                "metric_for_best_model": "accuracy",
                "report_to": [],
            },
            "finetune": {"num_train_epochs": 2},
            "output_dir": str(folder / "out"),
        },
        {
            **data,
            "teacher": {**TINY_BERT, "zero_residual_branches": True},
            "student": {"layers": [2]},
            "method": "tinybert",
            "method_args": {},
            "mapping": "uniform",
            "max_train_samples": 16,
            "max_eval_samples": 8,
            "vocab_size": 100,
            "training": {**plain, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "eval_steps": 2},
        },
        {
            **data,
            "teacher": dict(TINY_BERT),
            "student": {**student, "embeddings": "teacher"},
            "stages": [
                {
                    "name": "hidden",
                    "num_train_epochs": 1,
                    "distill_config": [
                        {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
                    ],
                },
                {
                    "name": "logits",
                    "learning_rate": 1e-4,
                    "distill_config": [
                        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}
                    ],
                },
            ],
            "training": {**plain, "balance": "relative_scale", "balance_steps": 2, "teacher_dtype": "float32"},
        },
        {
            **data,
            "teacher": dict(TINY_BERT),
            "student": {"model_type": "bilstm", "embedding_size": 8, "hidden_size": 8, "classifier_size": 8},
            "student_tokenizer": "words",
            "method": "hinton",
            "alpha": 0.5,
            "temperature": 2.0,
            "training": {**plain, "teacher_cache": str(folder / "cache"), "teacher_cache_dtype": "float16"},
        },
    ]


class TookTooLong(BaseException):
    """No error of any code's own: nothing catches it."""


@contextmanager
def limited() -> Iterator[None]:
    """No more than the limit of processor time."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Outcome(collections.namedtuple("Outcome", "kind text seconds")):
    """What became of one input: it `fits`, is `refused` by an error of this
    package, `raises` another, is `slow`, or its error is `unreadable`."""


def outcome(work: Callable[[], None]) -> Outcome:
    began = time.process_time()
    try:
        with limited():
            work()
        kind, text = "fits", ""
    except DistillationError as error:
        text = str(error)
        printable = text.isascii() or text.encode("utf-8", "replace").decode() == text
        kind = "refused" if printable and len(text) < LONGEST else "unreadable"
    except TookTooLong:
        kind, text = "slow", "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
    except Exception:
        kind, text = "raises", traceback.format_exc()
    seconds = time.process_time() - began
    return Outcome("slow" if seconds > LIMIT else kind, text, seconds)


class Configs:
    """Mutated configs, bound to two tiny models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher, self.student = bert(), bert(2, width=24, heads=2, seed=1)
        self.data = batches()

    def made(self, seed: int) -> tuple[Any, str]:
        """A config of Python or the path of a file; and what the error has to name."""
        chance = random.Random(seed)
        seeds = CONFIGS[seed % len(CONFIGS)]
        if seed % 4 == 3:
            path = self.folder / "config.yaml"
            path.write_bytes(mangled(as_yaml(seeds), chance))
            return path, ""
        config = mutated(seeds, chance, WRITTEN + FROM_PYTHON if seed % 4 else WRITTEN)
        if seed % 4 == 0:
            path = self.folder / "config.yaml"
            path.write_text(as_yaml(config.value), encoding="utf-8", errors="surrogatepass")
            return path, _entry(config)
        return config.value, _entry(config)

    def __call__(self, seed: int) -> Outcome:
        config, name = self.made(seed)

        def work() -> None:
            run = distiller(config, self.teacher, self.student, train_dataloader=self.data)
            try:
                run.plan()
            finally:
                run.close()

        became = outcome(work)
        if became.kind == "refused" and not any(text in became.text for text in (name, *_OF_FILES)):
            return became._replace(kind="unnamed", text=f"{name} is not in: {became.text}")
        return became


def _entry(config: Mutated) -> str:
    """How the error names the one entry in which something was changed."""
    numbers = {place[0] for place in config.places if place}
    inside = isinstance(config.value, list) and all(len(place) > 1 for place in config.places)
    return f"[{numbers.pop()}]" if inside and len(numbers) == 1 else ""


class Recipes:
    """Mutated recipes, made into data, models and a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        glue_folder(folder / "glue")
        self.seeds = recipes(folder)

    def made(self, seed: int) -> tuple[list[str], list[str]]:
        """A recipe in a file, and what `--set` overrides; and what the error may name, one of these."""
        chance = random.Random(seed)
        content = self.seeds[seed % len(self.seeds)]
        path = self.folder / "recipe.yaml"
        overrides, names = [], [""]
        match seed // len(self.seeds) % 4:
            case 0 | 1:
                recipe = mutated(content, chance)
                path.write_text(as_yaml(recipe.value), encoding="utf-8", errors="surrogatepass")
                if all(recipe.places) and len(recipe.places) == 1:
                    names = _named_by(recipe.places[0])
            case 2:
                path.write_bytes(mangled(as_yaml(content), chance))
            case 3:
                path.write_text(as_yaml(content), encoding="utf-8")
                overrides = [_override(content, chance) for _ in range(chance.choice((1, 1, 2)))]
        return overrides, names

    def __call__(self, seed: int) -> Outcome:
        overrides, names = self.made(seed)

        def work() -> None:
            _, _, run = _distillation(load_recipe(self.folder / "recipe.yaml", overrides))
            try:
                run.plan()
            finally:
                run.close()

        became = outcome(work)
        if became.kind == "refused" and not any(name in became.text for name in [*names, *_OF_FILES]):
            return became._replace(kind="unnamed", text=f"none of {names} is in: {became.text}")
        return became


def _named_by(place: tuple[Any, ...]) -> list[str]:
    """How an error may name what stands at a place of a recipe: by a key on the way, a stage by its name as well."""
    names = [repr(key).strip("'") for key in place if not isinstance(key, int)]
    return [*names, "stage"] if "stages" in place else names


def _override(content: dict[str, Any], chance: random.Random) -> str:
    from mutations import _KEYS, _YAML, places

    keys = [str(key) for key in chance.choice(list(places(content)))]
    if chance.random() < 0.4:
        keys.insert(chance.randrange(len(keys) + 1), str(chance.choice(_KEYS)))
    value = chance.choice([*map(str, WRITTEN[:-3]), *_YAML, yaml.safe_dump(chance.choice(WRITTEN[:30]))])
    return ".".join(keys) + chance.choice(("=", "=", "=", "=", "", "==")) + value


def counted(inputs: Callable[[int], Outcome], seeds: range) -> tuple[collections.Counter[str], dict[int, Outcome]]:
    """How many inputs came to each end, and those that came to a bad one."""
    ends: collections.Counter[str] = collections.Counter()
    bad: dict[int, Outcome] = {}
    for seed in seeds:
        became = inputs(seed)
        ends[became.kind] += 1
        if became.kind not in ("fits", "refused"):
            bad[seed] = became
    return ends, bad


@pytest.mark.parametrize("number", [pytest.param(10_000, marks=pytest.mark.slow), 75])
@pytest.mark.parametrize("kind", [Configs, Recipes])
def test_none_ends_in_a_traceback_and_none_takes_long(kind: type, number: int, tmp_path: Path) -> None:
    ends, bad = counted(kind(tmp_path), range(number))
    assert not bad, f"{dict(ends)}; seed {min(bad)}: {bad[min(bad)].text}"
    assert ends["refused"] > number / 4 and ends["fits"] > number / 50  # and they were worth trying


def main(configs: int = 10_000, recipes: int = 10_000, first: int = 0) -> None:
    for kind, number in ((Configs, configs), (Recipes, recipes)):
        with tempfile.TemporaryDirectory() as folder:
            ends, bad = counted(kind(Path(folder)), range(first, first + number))
        print(kind.__name__, dict(ends))
        groups: dict[str, list[int]] = collections.defaultdict(list)
        for seed, became in bad.items():
            lines = became.text.strip().splitlines() or [""]
            where = next((line for line in reversed(lines) if "knowledge_distillation/" in line), "")
            groups[f"{became.kind} {lines[-1][:150]} {where.strip()[-100:]}"].append(seed)
        for text, seeds in sorted(groups.items(), key=lambda pair: -len(pair[1])):
            print(f"  {len(seeds):5} {text}   seeds {seeds[:4]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Image tasks from a recipe: every method trains, every command works, runs resume exactly, errors are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data.test_images import by_class, packed
from runs import distill, same, weights
from tolerance import assert_near
from transformers import AutoModelForImageClassification

from knowledge_distillation import Callback, ConfigError
from knowledge_distillation.config.parse import parse_config
from knowledge_distillation.config.settings import TrainingSettings
from knowledge_distillation.models import WideResNetConfig, WideResNetForImageClassification
from knowledge_distillation.models.weights import load_weights
from knowledge_distillation.presets import expand
from knowledge_distillation.recipes.build import LoadedRecipe
from knowledge_distillation.recipes.load import load_recipe
from knowledge_distillation.recipes.sweep_grid import RecipeRuns
from knowledge_distillation.training import optimizers

EXAMPLES = Path(__file__).parents[2] / "examples"
WIDE = {"model_type": "wide_resnet", "depth": 10, "widen_factor": 2}
NARROW = {**WIDE, "widen_factor": 1}
METHODS = (
    *("hinton", "at", "sp", "margin_relu", "fitnet", "factor_transfer", "activation_boundary", "rkd", "crd"),
    *("channel_wise", "byot", "similarity_preserving"),
)


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Digits by two tiny WRNs; a change of None leaves the key out."""
    content = {
        "task": "digits",
        "teacher": WIDE,
        "student": NARROW,
        "max_train_samples": 16,
        "max_eval_samples": 10,
        "training": {"max_steps": 2, "per_device_train_batch_size": 8, "mixed_precision": "no", "logging_steps": 1},
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, **changes)))
    return path


def ready(folder: Path, **changes: Any) -> LoadedRecipe:
    return LoadedRecipe.of(load_recipe(written(folder, **changes)))


def trained(made: LoadedRecipe, student: Any = None) -> tuple[Any, dict[str, float]]:
    student = made.student() if student is None else student
    run = made.distiller(student, made.config(student), None, disable_tqdm=True)
    return student, run.train()


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


# --- the methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_narrow_wrn(tmp_path, method):
    made = ready(tmp_path, method=method)
    student, teacher = made.student(), weights(made.teacher)
    before = weights(student)
    run = made.distiller(student, made.config(student), None, disable_tqdm=True)
    means = run.train()
    assert all(0 < means[name] < float("inf") for name in run.loss_model.bound) and run.progress.step == 2
    assert same(weights(made.teacher), teacher) and not same(weights(student), before)
    assert (run.teacher is None) == (method == "byot")


PAIRS = {
    "shufflenet": ({"model_type": "shufflenet_v2", "width_multiplier": 0.5, "stem": "cifar"}, WIDE),
    "resnet": (
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 2],
            "layer_type": "basic",
        },
        WIDE,
    ),
    "convnext": (
        {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "patch_size": 1},
        {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 1},
    ),
    "vit": (
        {
            "model_type": "vit",
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "patch_size": 4,
        },
        {
            "model_type": "vit",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "patch_size": 4,
        },
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_other_families_by_the_same_names(tmp_path, pair):
    teacher, student = PAIRS[pair]
    size = 16
    made = ready(tmp_path, teacher=teacher, student=student, image_size=size, max_train_samples=8)
    assert made.teacher.config.num_labels == 10 and made.teacher.config.num_channels == 1
    assert getattr(made.teacher.config, "image_size", size) == size
    small = made.student()
    entries = [
        entry
        for method in ("at", "sp", "fitnet", "factor_transfer", "activation_boundary", "channel_wise", "crd")
        for entry in expand(method, made.teacher, small)[:-1]
        if entry["student"] != "output.logits"
    ]
    run = made.distiller(small, parse_config(entries), None, disable_tqdm=True, max_steps=1)
    means = run.train()
    assert len(run.loss_model.bound) >= 9
    assert all(0 <= means[name] < float("inf") for name in run.loss_model.bound)


def test_margin_relu_takes_the_margins_of_the_teachers_batch_norms(tmp_path):
    made = ready(tmp_path, method="margin_relu")
    with torch.no_grad():
        for n in (1, 2, 3):
            getattr(made.teacher, f"stage{n}").norm.bias.copy_(torch.linspace(-1, 1, 32 * 2 ** (n - 1)))
    student = made.student()
    run = made.distiller(student, made.config(student), None, disable_tqdm=True)
    run.plan()
    margins = [module.margins for module in run.loss_model.losses.values()]
    assert [len(one) for one in margins] == [32, 64, 128]
    assert all(one[0] < one[-1] < 0 for one in margins)  # a lower mean, a lower margin
    run.close()


def test_methods_that_need_a_relu_or_a_teacher(tmp_path):
    vit = PAIRS["vit"]
    made = ready(tmp_path, teacher=vit[0], student=vit[1], image_size=16, method="margin_relu")
    with pytest.raises(ConfigError, match="stages of ViTConfig and ViTConfig do not end in a BatchNorm and a ReLU"):
        made.config(made.student())
    made = ready(tmp_path, teacher=None, method="sp")
    with pytest.raises(ConfigError, match="this method needs a teacher and a student"):
        made.config(made.student())
    made = ready(tmp_path, teacher=None)
    with pytest.raises(ConfigError, match="recipe: teacher is missing: a directory"):
        trained(made)
    made = ready(tmp_path, mapping="search", method="tinybert")
    with pytest.raises(ConfigError, match="mapping: search reads text, and this is an image task"):
        made.config(made.student())


# --- what a recipe says ----------------------------------------------------------------------------------------------


def test_labels_alone_need_no_teacher(tmp_path):
    for plain in ({"distill_config": [{"student": "output.logits", "loss": "cross_entropy"}]}, {"alpha": 0}):
        student, means = trained(ready(tmp_path, teacher=None, **plain))
        assert means["best_accuracy"] >= 0 and "eval_teacher_accuracy" not in means


def test_pictures_and_classes_reach_the_models(tmp_path):
    by_class(tmp_path / "data" / "train", {"cat": 4, "dog": 4, "owl": 4}, (20, 24))
    by_class(tmp_path / "data" / "val", {"cat": 1, "dog": 1, "owl": 1}, (20, 24))
    made = ready(tmp_path, task="image_folder", data_dir=str(tmp_path / "data"), image_size=16)
    config = made.student().config
    assert (config.num_labels, config.image_size, config.num_channels) == (3, 16, 3)
    assert config.id2label == {0: "cat", 1: "dog", 2: "owl"} and config.label2id["owl"] == 2
    batch = next(iter(made.distiller(made.student(), None, None).dev_dataloader))
    assert batch["pixel_values"].shape == (3, 3, 16, 16) and sorted(batch["labels"].tolist()) == [0, 1, 2]


def test_evaluation_data_is_not_augmented_and_training_data_is(tmp_path):
    packed(tmp_path / "cifar10_jpeg.npz", {"train": [0, 1, 2, 3] * 4, "test": [0, 1]})
    made = ready(tmp_path, task="cifar10", data_dir=str(tmp_path))
    run = made.distiller(made.student(), None, None)

    def drawn(loader: Any) -> list[dict[str, Any]]:
        return [next(iter(loader)) for _ in range(2)]

    once, again = drawn(run.dev_dataloader)
    assert torch.equal(once["pixel_values"], again["pixel_values"])
    once, again = drawn(run.train_dataloader)
    assert torch.equal(once["labels"], again["labels"]) and not torch.equal(
        once["pixel_values"], again["pixel_values"]
    )


class Killed(Callback):
    """Ends the run in the third step, after two checkpoints."""

    def on_step_end(self, run: Any) -> None:
        if run.progress.step == 3:
            raise KeyboardInterrupt


def test_a_broken_off_run_ends_in_the_same_weights(tmp_path):
    """With augmentation, batches in the middle of an epoch, and a loss that has weights of its own."""
    packed(tmp_path / "cifar10_jpeg.npz", {"train": [0, 1, 2, 3] * 6, "test": [0, 1]})
    made = ready(tmp_path, task="cifar10", data_dir=str(tmp_path), method="factor_transfer")
    settings = {"disable_tqdm": True, "save_steps": 1, "num_train_epochs": 3, "max_steps": 5}
    ended = {}
    for name in ("whole", "broken"):
        student = made.student()
        if name == "broken":
            run = made.distiller(student, made.config(student), tmp_path / name, **settings)
            run.callbacks.append(Killed())
            with pytest.raises(KeyboardInterrupt):
                run.train()
            student = made.student()
        run = made.distiller(student, made.config(student), tmp_path / name, **settings)
        run.train(resume_from_checkpoint=name == "broken")
        ended[name] = weights(student)
    assert same(ended["whole"], ended["broken"])


def test_a_teacher_cache_serves_pictures_that_do_not_change(tmp_path):
    cached = {
        **recipe(tmp_path)["training"],
        "teacher_cache": str(tmp_path / "cache"),
        "num_train_epochs": 2,
        "max_steps": 4,
    }
    made = ready(tmp_path, method="at", training=cached)
    calls = []
    made.teacher.register_forward_hook(lambda *_: calls.append(1))
    student = made.student()
    run = made.distiller(student, made.config(student), None, disable_tqdm=True)
    run.plan()
    calls.clear()
    run.train()
    assert len(calls) <= 2 + 2  # two batches of the first epoch, and the evaluation
    with pytest.raises(ConfigError, match="teacher_cache keeps features of pictures as they are, and augment changes"):
        load_recipe(written(tmp_path, training=cached, augment=True))
    with pytest.raises(ConfigError, match="teacher_cache keeps features"):
        load_recipe(written(tmp_path, training=cached, task="cifar10"))
    assert not load_recipe(written(tmp_path, training=cached, task="cifar10", augment=False)).augmented


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "cifra10"}, "task 'cifra10' is unknown. Nearest: cifar10."),
        ({"image_size": 0}, "image_size is a whole number from 1 to 1,000,000; found 0"),
        ({"augment": "strong"}, "augment is true, false or a mapping"),
        ({"task": "sst2", "image_size": 32}, "image_size belongs to an image task, and task is 'sst2'"),
        ({"tokenizer": "bert"}, "tokenizer belongs to text, and task is 'digits'"),
        ({"student_tokenizer": "words"}, "student_tokenizer belongs to text, and task is 'digits'"),
        ({"method": "margin_rlu"}, "method 'margin_rlu' is unknown. Nearest: margin_relu."),
        ({"method": "sp", "method_args": {"wieght": 1}}, "method sp takes no 'wieght'. Nearest: weight."),
    ],
)
def test_recipes_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ConfigError) as raised:
        load_recipe(written(tmp_path, **changes))
    assert message in str(raised.value)


def test_models_that_do_not_fit(tmp_path):
    for wanted, message in (
        ({**WIDE, "widen_facter": 2}, "has no field 'widen_facter'. Nearest: widen_factor."),
        ({**WIDE, "depth": 11}, "cannot build a wide_resnet for digits: the depth of a wide_resnet is 10, 16"),
        ({"model_type": "wide_resnt"}, "model_type 'wide_resnt' is not one transformers knows. Nearest: wide_resnet."),
        ({**WIDE, "weights": 3}, "weights of a model is the path of a file; found 3"),
    ):
        with pytest.raises(ConfigError) as raised:
            ready(tmp_path, teacher=wanted)
        assert message in str(raised.value)
    wrong = WideResNetForImageClassification(WideResNetConfig(depth=10, num_channels=1, num_labels=7))
    wrong.save_pretrained(tmp_path / "seven")
    with pytest.raises(ConfigError, match="it has 7 classes, and the task 10"):
        ready(tmp_path, teacher=str(tmp_path / "seven"))
    with pytest.raises(ConfigError, match="the teacher, a WideResNetForImageClassification, has no word embedding"):
        ready(tmp_path, student={**NARROW, "embeddings": "teacher"}).student()


@pytest.mark.case("D2")
def test_classes_in_another_order_are_not_taken_for_those_of_the_data(tmp_path, caplog):
    data, form = by_class(tmp_path / "data", {"cat": 4, "dog": 4}, (8, 8)), {"depth": 10, "num_labels": 2}
    names = {
        "same": ["cat", "dog"],
        "turned": ["dog", "cat"],
        "plain": ["LABEL_0", "LABEL_1"],
        "foreign": ["n01", "n02"],
    }
    for folder, classes in names.items():
        config = WideResNetConfig(**form, id2label=dict(enumerate(classes)))
        WideResNetForImageClassification(config).save_pretrained(tmp_path / folder)
    content = {"task": "image_folder", "data_dir": str(data), "max_train_samples": None, "max_eval_samples": None}
    named = {"same": ["cat", "dog"], "plain": names["plain"], "foreign": ["cat", "dog"], "turned": ["dog", "cat"]}
    for folder, classes in named.items():
        caplog.clear()
        loaded = ready(tmp_path, **content, teacher=str(tmp_path / folder))
        assert list(loaded.teacher.config.id2label.values()) == classes
        said = "its class 0 is 'n01', and that of the data 'cat'. Classes go by number"
        assert [said in record.message for record in caplog.records] == [True] * (folder == "foreign")
        student = loaded.student()
        run = loaded.distiller(student, loaded.config(student), None)
        notes = run.plan().notes
        assert list(student.config.id2label.values()) == ["cat", "dog"]
        turned = "teacher: its classes are put in the order of the data, by name: cat, dog"
        assert (turned in notes) == (folder == "turned")
        unnamed = "warning: the classes of the data are cat, dog, and those of the teacher have no names: classes go"
        assert any(note.startswith(unnamed) for note in notes) == (folder == "plain")
        batch = next(iter(run.dev_dataloader))["pixel_values"]
        order = [1, 0] if folder == "turned" else [0, 1]
        assert_near(run.teacher(batch).logits, loaded.teacher.eval()(batch).logits[:, order].detach())


# --- weights out of a plain file -------------------------------------------------------------------------------------


def wrn(seed: int = 0, **fields: Any) -> WideResNetForImageClassification:
    torch.manual_seed(seed)
    return WideResNetForImageClassification(WideResNetConfig(depth=10, widen_factor=1, num_labels=10, **fields))


@pytest.mark.parametrize("form", ["plain", "inside", "wrapped", "safetensors"])
def test_weights_of_a_described_teacher(tmp_path, form):
    from safetensors.torch import save_file

    saved = wrn(seed=5, num_channels=1)
    state, path = saved.state_dict(), tmp_path / "teacher.pt"
    if form == "safetensors":
        path = tmp_path / "teacher.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"plain": state, "inside": {"epoch": 3, "state_dict": state}, "wrapped": wrapped}[form], path)
    made = ready(tmp_path, teacher={**NARROW, "weights": str(path)})
    assert same(weights(made.teacher), weights(saved))


class Trap:
    def __reduce__(self) -> Any:
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (None, "there is no such file"),
        (b"rubbish", "cannot be read|holds more than tensors"),
        ({"weights": Trap()}, "holds more than tensors, which is not read: save model.state_dict"),
        ({"epoch": 3}, "expected tensors by name, as model.state_dict.. gives them; found a mapping of epoch"),
        ({0: torch.zeros(2)}, "expected tensors by name, as model.state_dict.. gives them; found a mapping of 0"),
        ("other depth", r"do not fit WideResNetForImageClassification. unexpected: stage1.blocks.1.norm1.weight"),
        ("renamed", r"missing: stem.weight Nearest: stm.weight.; unexpected: stm.weight"),
        ("wider", r"of another shape: stage1.blocks.0.conv1.weight \(32, 16, 3, 3\), of the model \(16, 16, 3, 3\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, monkeypatch, saved, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "teacher.pt"
    if saved == "renamed":
        saved = {name.replace("stem", "stm"): tensor for name, tensor in wrn().state_dict().items()}
    elif isinstance(saved, str):
        fields = {"other depth": {"depth": 16}, "wider": {"widen_factor": 2}}[saved]
        saved = WideResNetForImageClassification(
            WideResNetConfig(**{"depth": 10, "widen_factor": 1, "num_labels": 10, **fields})
        ).state_dict()
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    elif saved is not None:
        torch.save(saved, path)
    with pytest.raises(ConfigError, match=message):
        load_weights(wrn(), path)
    assert not (tmp_path / "trapped").exists()


# --- optimizer and schedule ------------------------------------------------------------------------------------------


def test_sgd_steps_as_torch_does():
    module = torch.nn.Linear(3, 2)
    parsed = TrainingSettings.parse(
        {"optim": "sgd", "optim_args": "momentum=0.8, nesterov=True", "learning_rate": 0.1, "weight_decay": 0.01}
    )
    optimizer = optimizers.make_optimizer(parsed, module)
    assert isinstance(optimizer, torch.optim.SGD)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    groups = [{"params": [twin.weight], "weight_decay": 0.01}, {"params": [twin.bias]}]
    reference = torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
    for _ in range(3):
        for model, one in ((module, optimizer), (twin, reference)):
            one.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            one.step()
    assert torch.allclose(module.weight, twin.weight) and torch.allclose(module.bias, twin.bias)
    assert optimizers.make_optimizer(TrainingSettings(optim="sgd"), module).defaults["momentum"] == 0.9


def test_the_rate_falls_at_milestones():
    given = {"lr_scheduler_type": "multistep", "warmup_ratio": 0.1, "learning_rate": 1.0}
    given["lr_scheduler_kwargs"] = {"milestones": [0.5, 0.8], "gamma": 0.1}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = optimizers.make_scheduler(TrainingSettings.parse(given), optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, *[1.0] * 8, *[0.1] * 6, *[0.01] * 4])
    plain = optimizers.make_scheduler(TrainingSettings.parse({"lr_scheduler_type": "multistep"}), optimizer, 10)
    assert plain is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim": "sdg"}, "optim is one of adamw_torch_fused, sgd; found 'sdg'. Nearest: sgd."),
        (
            {"optim": "sgd", "optim_args": {"momentun": 0.9}},
            "optim sgd takes no argument 'momentun'. Nearest: momentum.",
        ),
        ({"optim_args": {"momentum": 0.9}}, "optim adamw_torch_fused takes no argument 'momentum'. It takes: none"),
        ({"optim": "sgd", "optim_args": {"nesterov": 1}}, "nesterov of optim sgd is of type bool; found 1"),
        ({"optim_args": 3}, "optim_args is a mapping; found 3"),
        ({"optim_args": "momentum"}, "optim_args is a mapping; found 'momentum'"),
    ],
)
def test_settings_of_the_optimizer_that_do_not_fit(given, message):
    with pytest.raises(ConfigError) as raised:
        TrainingSettings.parse(given)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"lr_scheduler_type": "multistep", "lr_scheduler_kwargs": {"milestones": [3]}},
            "milestones are parts of the run",
        ),
        ({"lr_scheduler_type": "multistep", "lr_scheduler_kwargs": {"gamma": 0}}, r"gamma is in \(0, 1\]; found 0"),
        (
            {"lr_scheduler_type": "multistep", "lr_scheduler_kwargs": {"steps": [3]}},
            "unexpected keyword argument 'steps'",
        ),
        ({"lr_scheduler_type": "multistp"}, "Nearest: multistep."),
    ],
)
def test_schedules_that_do_not_fit(given, message):
    with pytest.raises(ConfigError, match=message):
        optimizers.check_scheduler(TrainingSettings.parse(given))


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match="optim sgd: Nesterov momentum requires"):
        given = {"optim": "sgd", "optim_args": {"momentum": 0, "nesterov": True}}
        optimizers.make_optimizer(TrainingSettings.parse(given), torch.nn.Linear(1, 1))


# --- the commands ----------------------------------------------------------------------------------------------------


def succeeded(result: Any) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def small(**more: str) -> list[str]:
    sets = {
        "training.max_steps": "2",
        "training.per_device_train_batch_size": "4",
        "training.logging_steps": "1",
        **more,
    }
    return [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


def test_the_recipe_of_cifar10_by_command(tmp_path):
    data = tmp_path / "data"
    packed(data / "cifar10_jpeg.npz", {"train": list(range(10)) * 2, "test": [0, 1, 2]})
    tiny = small(
        **{"teacher.depth": "10", "teacher.widen_factor": "1", "student.depth": "10", "student.widen_factor": "1"}
    )
    path, teacher = EXAMPLES / "cifar10.yaml", tmp_path / "teacher"
    succeeded(distill("finetune", path, *tiny, "--data-dir", data, "-o", teacher))
    assert (teacher / "student" / "preprocessor_config.json").is_file()
    given = (path, *tiny[:-8], *tiny[-4:], "--data-dir", data, "--teacher", teacher / "student")
    said = succeeded(distill("check", *given, "--method", "margin_relu"))
    assert "stage3.activation.input" in said
    said = succeeded(distill("run", *given, "-o", tmp_path / "kd", "--baseline"))
    assert "student without" in said and "kl_divergence" in said
    assert [line["step"] for line in history(tmp_path / "kd") if "loss" in line] == [1, 2]
    rates = [line["learning_rate"] for line in history(tmp_path / "kd") if "loss" in line]
    assert rates == pytest.approx([0.02, 0.0008])  # after all milestones
    said = succeeded(distill("run", *given, "--method", "at", "-o", tmp_path / "at"))
    assert "layer3.hidden_states" in said and "attention_tran" in said
    said = succeeded(distill("evaluate", tmp_path / "at" / "student", "--task", "cifar10", "--data-dir", data))
    assert "cifar10: 3 rows" in said and "accuracy: " in said
    both = ("--task", "cifar10", "--data-dir", data, "--teacher", teacher / "student")
    assert "agreement: 1.0000" in succeeded(distill("evaluate", teacher / "student", *both))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "at" / "student")
    assert loaded.config.id2label[3] == "kind3"


def test_the_recipe_of_a_folder_by_command(tmp_path):
    data = by_class(tmp_path / "data", {"cat": 8, "dog": 8}, (40, 36))
    tiny = {"image_size": "32", "teacher.hidden_sizes": "[8,8,8,8]", "teacher.embedding_size": "8"}
    path, teacher = EXAMPLES / "image_folder.yaml", tmp_path / "teacher"
    succeeded(distill("finetune", path, *small(**tiny), "--data-dir", data, "-o", teacher))
    given = (path, *small(image_size="32"), "--data-dir", data, "--teacher", teacher / "student")
    succeeded(distill("run", *given, "-o", tmp_path / "run"))
    assert history(tmp_path / "run")[-1]["eval_accuracy"] >= 0
    soft, hard = parse_config(load_recipe(path).own_entries() or expand("hinton", alpha=0.5, temperature=20.0)).entries
    assert (soft.weight, soft.args["temperature"], hard.weight) == (0.5, 20.0, 0.5)
    (data / "cat" / "3.png").write_bytes(b"torn")
    result = distill("run", *given, "-o", tmp_path / "other")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "DataError" in result.stderr and "3.png cannot be read as a picture" in result.stderr
    assert not (tmp_path / "other").exists()


def test_the_recipe_of_digits_by_command(tmp_path):
    path, teacher, out = EXAMPLES / "digits.yaml", tmp_path / "teacher", tmp_path / "sweep"
    succeeded(distill("finetune", path, "--set", "training.max_steps=2", "-o", teacher))
    given = ("--teacher", teacher / "student", "--set", "max_train_samples=20", "--set", "training.num_train_epochs=1")
    said = succeeded(distill("sweep", path, *given, "--grid", "alpha=0.2,0.8", "--grid", "temperature=2,8", "-o", out))
    assert "alpha down, temperature across" in said
    assert [json.loads(file.read_text())["samples"] for file in out.glob("cache/**/complete.json")] == [20]


def test_the_cache_is_filled_by_command(tmp_path):
    path = written(tmp_path, method="at")
    said = succeeded(distill("cache", path, "--teacher-cache", tmp_path / "cache"))
    assert "16 samples" in said


def test_runs_of_a_sweep_share_a_cache_where_it_serves(tmp_path):
    runs = RecipeRuns(written(tmp_path))

    def cache(**values: Any) -> str | None:
        return runs(values, 1, None, str(tmp_path / "cache")).settings.teacher_cache

    assert cache(augment=True) is None
    assert cache() == cache(temperature=3.0) != cache(**{"training.teacher_dtype": "bfloat16"})


def test_a_teacher_sees_pictures_as_it_saw_them_before(tmp_path):
    made = ready(tmp_path, max_train_samples=30)
    run = made.distiller(made.teacher, None, tmp_path / "t", finetune=True, disable_tqdm=True)
    run.train()
    again = ready(tmp_path, teacher=str(tmp_path / "t" / "student"), image_size=None, max_train_samples=20)
    assert again.tokenizer.mean == made.tokenizer.mean != ready(tmp_path, max_train_samples=20).tokenizer.mean
    alone = ready(tmp_path, teacher=None, student=str(tmp_path / "t" / "student"), max_train_samples=20)
    assert alone.tokenizer.mean == made.tokenizer.mean
    assert isinstance(again.model(WIDE), WideResNetForImageClassification)

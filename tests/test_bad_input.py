"""Bad input gets one clear error before the first step, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import hooks_left_on
from runs import (
    HARD,
    HIDDEN,
    SOFT,
    TINY_BERT,
    VOCABULARY,
    batches,
    bert,
    contents,
    distill,
    distiller,
    same,
    weights,
    written,
)
from training_script import rows

from knowledge_distillation import (
    Callback,
    CheckpointError,
    ConfigError,
    DataError,
    DistillationError,
    EarlyStopping,
    student_from_teacher,
)
from knowledge_distillation.data.text import train_tokenizer
from knowledge_distillation.evaluation.evaluators import TaskEvaluator
from knowledge_distillation.storage.checkpoint import checkpoints

SAME_WIDTH = {"teacher": "bert_layer4.hidden_states", "student": "bert_layer2.hidden_states", "loss": "mse"}
LOGITS = {"teacher": "output.logits", "student": "output.logits"}


def entry(**changes: Any) -> list[dict[str, Any]]:
    """One good entry with something else in it; None leaves a key out."""
    return [{key: value for key, value in {**SAME_WIDTH, **changes}.items() if value is not None}]


def frozen() -> torch.nn.Module:
    return bert(2).requires_grad_(False)


def cuts_the_gradient(student, teacher):
    return (student.detach() - teacher).square().mean(-1)


def fails(output):
    raise RuntimeError("no such thing in this output")


def gives_last_layer(output):
    return {"last": {"hidden": output.hidden_states[-1], "logits": output.logits}}


def with_ids(highest: int) -> list[dict[str, torch.Tensor]]:
    made = batches(1)
    made[0]["input_ids"][0, 0] = highest
    return made


def with_labels(labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{**batches(1)[0], "labels": labels}]


def tokenizer_of(vocab_size: int):
    return train_tokenizer([f"word{i} other{i * 7} thing{i * 11}" for i in range(80)], vocab_size)


# What is wrong -> what is given, the kind of error, and what the message says: asked, found, and what would do.
CASES: dict[str, tuple[Callable[[], dict[str, Any]], type[DistillationError], list[str]]] = {
    # names
    "layer": (
        lambda: {"config": entry(teacher="bert_layer13.hidden_states")},
        ConfigError,
        ["[0] bert_layer13.hidden_states: the teacher has 4 layers. Nearest: bert_layer4.hidden_states."],
    ),
    "output of a layer": (
        lambda: {"config": entry(student="layer1.hiden_states")},
        ConfigError,
        ["[0] layer1.hiden_states: this layer of the student offers", "Nearest: hidden_states."],
    ),
    "module path": (
        lambda: {"config": entry(student="bert.encoder.layer.1.output.dens.output")},
        ConfigError,
        ["the student has no such feature. Nearest: bert.encoder.layer.1.output.dense.output."],
    ),
    "item of a module's output": (
        lambda: {"config": entry(student="bert.encoder.layer.1.output.dense.output[7]")},
        ConfigError,
        ["[0] bert.encoder.layer.1.output.dense.output[7]:"],
    ),
    "loss": (
        lambda: {"config": entry(loss="mean_square_error")},
        ConfigError,
        ["[0] unknown loss 'mean_square_error'", "Known: ", "kl_divergence", "mse"],
    ),
    "loss spelled wrong": (
        lambda: {"config": [{**LOGITS, "loss": "kl_divergance"}]},
        ConfigError,
        ["[0] unknown loss 'kl_divergance'. Nearest: kl_divergence."],
    ),
    "loss that does not apply": (
        lambda: {"config": entry(loss="attention_mse")},
        ConfigError,
        ["[0] loss attention_mse does not apply to a feature of kind tokens. These do: ", "hidden_mse"],
    ),
    "argument of a loss": (
        lambda: {"config": [{**LOGITS, "loss": "kl_divergence", "args": {"temprature": 2}}]},
        ConfigError,
        ["[0] loss kl_divergence takes no argument 'temprature'. Nearest: temperature.", "It takes: temperature=1.0"],
    ),
    "type of an argument": (
        lambda: {"config": [{**LOGITS, "loss": "kl_divergence", "args": {"temperature": "hot"}}]},
        ConfigError,
        ["[0] loss kl_divergence: temperature is above 0; found 'hot'"],
    ),
    "key": (
        lambda: {"config": entry(wieght=2)},
        ConfigError,
        ["[0] unknown key 'wieght'. Nearest: weight."],
    ),
    "missing student": (lambda: {"config": entry(student=None)}, ConfigError, ["[0] missing key 'student'"]),
    "missing loss": (lambda: {"config": entry(loss=None)}, ConfigError, ["[0] missing key 'loss'"]),
    "half of a long name": (
        lambda: {"config": [{"student_layer_name": "output", "loss": "cross_entropy"}]},
        ConfigError,
        ["[0] missing key 'student_layer_output_name'"],
    ),
    "braces of two lengths": (
        lambda: {"config": entry(teacher="layer{1,2,3}.hidden_states", student="layer{1,2}.hidden_states")},
        ConfigError,
        ["[0] braces pair up one to one: 3 teacher features, 2 student features"],
    ),
    "empty config": (lambda: {"config": []}, ConfigError, ["distill_config is empty"]),
    "config that is no list": (lambda: {"config": {"loss": "mse"}}, ConfigError, ["a list of entries; found dict"]),
    "missing config file": (lambda: {"config": "no/such.yaml"}, ConfigError, ["no/such.yaml does not exist"]),
    # shapes
    "12 heads to 4": (
        lambda: {
            "teacher": bert(2, width=24, heads=12),
            "student": bert(2, width=24, heads=4),
            "config": entry(teacher="layer2.attention", student="layer1.attention"),
        },
        ConfigError,
        ["[0] layer1.attention", "the student has 4 heads, the teacher 12", "or map hidden_states"],
    ),
    "widths with projection off": (
        lambda: {"teacher": bert(width=24), "student": bert(2), "config": entry(projection="none")},
        ConfigError,
        ["[0] widths differ, bert_layer2.hidden_states (4, 6, 16) and bert_layer4.hidden_states (4, 6, 24)"]
        + ["projection is off. Set projection: auto"],
    ),
    "kinds": (
        lambda: {"config": entry(student="output.logits")},
        ConfigError,
        ["[0] output.logits (4, 2) and bert_layer4.hidden_states (4, 6, 16)"],
    ),
    "classes": (
        lambda: {"teacher": bert(num_labels=3), "student": bert(2, num_labels=2)},
        ConfigError,
        ["[0] output.logits", "the student has 2 classes, the teacher 3", "give both models the same labels"],
    ),
    # what the gradient does not reach
    "frozen student": (
        lambda: {"student": frozen()},
        ConfigError,
        ["[0] output.logits: no gradient can reach the student from here: its parameters are frozen"],
    ),
    "loss that cuts the gradient": (
        lambda: {"config": entry(loss=cuts_the_gradient)},
        ConfigError,
        ["[0] loss cuts_the_gradient cuts the gradient"],
    ),
    "argument out of range": (
        lambda: {"config": [{**LOGITS, "loss": "kl_divergence", "args": {"temperature": 0}}]},
        ConfigError,
        ["[0] loss kl_divergence: temperature is above 0; found 0"],
    ),
    "loss that fails": (
        lambda: {"config": entry(loss=lambda student, teacher: student @ teacher)},
        ConfigError,
        ["[0] loss <lambda> failed: RuntimeError"],
    ),
    "loss that gives no tensor": (
        lambda: {"config": entry(loss=lambda student, teacher: 1.0)},
        ConfigError,
        ["[0] loss <lambda> returned float; a tensor is needed"],
    ),
    "loss that is not finite": (
        lambda: {"config": entry(loss=lambda student, teacher: (student - teacher).mean(-1) / 0)},
        ConfigError,
        ["[0] loss <lambda> is "],
    ),
    # models
    "no teacher": (
        lambda: {"config": SOFT + HARD + HIDDEN, "teacher": None},
        ConfigError,
        ["2 problems in distill_config", "[0] compares with a teacher, and there is no teacher_model", "[2] compares"],
    ),
    "teacher that is a name": (
        lambda: {"teacher": torch.nn.Linear, "student": bert(2)},
        ConfigError,
        ["teacher_model is a torch module; found <class"],
    ),
    "student that is a name": (
        lambda: {"student": "bert-base-uncased"},
        ConfigError,
        ["student_model is a torch module; found 'bert-base-uncased': load it first"],
    ),
    "output adaptor that fails": (
        lambda: {"student_output_adaptor": fails},
        ConfigError,
        ["the student's output adaptor failed: RuntimeError: no such thing in this output"],
    ),
    "output adaptor without a feature": (
        lambda: {"teacher_output_adaptor": gives_last_layer, "config": entry(teacher="last.hiden")},
        ConfigError,
        ["last.hiden: the teacher's output adaptor gives no such feature. Nearest: last.hidden."],
    ),
    "output adaptor of another shape": (
        lambda: {"student_output_adaptor": lambda output: [output.logits]},
        ConfigError,
        ['an output adaptor returns {"layer": {"output": tensor}}'],
    ),
    # data
    "empty list": (
        lambda: {"train_dataloader": []},
        DataError,
        ["the training data is empty: it has no batch"],
    ),
    "empty data set": (lambda: {"train_dataset": []}, DataError, ["the training data set is empty"]),
    "empty evaluation list": (
        lambda: {"dev_dataloader": []},
        DataError,
        ["the evaluation data is empty: it has no batch"],
    ),
    "empty evaluation data set": (lambda: {"eval_dataset": []}, DataError, ["the evaluation data set is empty"]),
    "no data": (
        lambda: {"train_dataloader": None},
        ConfigError,
        ["train_dataloader or train_dataset is missing"],
    ),
    "data twice": (
        lambda: {"train_dataloader": batches(), "train_dataset": rows()},
        ConfigError,
        ["give either train_dataloader or train_dataset"],
    ),
    "data that is no iterable": (
        lambda: {"train_dataloader": 5},
        DataError,
        ["the training data is no iterable of batches"],
    ),
    "rows that are no sequence": (
        lambda: {"train_dataset": iter(rows())},
        DataError,
        ["the training data set is a list_iterator", "given as train_dataloader"],
    ),
    "rows of many lengths and no tokenizer": (
        lambda: {"train_dataset": rows()},
        DataError,
        ["rows cannot become one batch", "processing_class is their tokenizer, or by a data_collator"],
    ),
    "batches of text": (
        lambda: {"train_dataloader": ["a film", "a plot"]},
        DataError,
        ["a batch is a str; a dict or a tuple of tensors is needed"],
    ),
    "batches of nothing": (lambda: {"train_dataloader": [None]}, DataError, ["a batch is a NoneType"]),
    "batches without an input": (
        lambda: {"train_dataloader": [{"text": ["a film"], "labels": torch.zeros(1)}]},
        DataError,
        ["the teacher takes nothing of what the batch has (text, labels). It takes: input_ids, attention_mask"],
    ),
    "batches of lists": (
        lambda: {"train_dataloader": [{"input_ids": [[1, 2], [3, 4]]}]},
        DataError,
        ["the teacher fails on the first batch (input_ids list): AttributeError"],
    ),
    "text longer than the positions": (
        lambda: {"train_dataloader": [{"input_ids": torch.ones(1, 40, dtype=torch.long)}]},
        DataError,
        ["the teacher fails on the first batch (input_ids 1×40):"],
    ),
    "too many inputs": (
        lambda: {"train_dataloader": [tuple(torch.ones(2, 3) for _ in range(12))]},
        DataError,
        ["the data adaptor returned 12 inputs for the student, whose forward takes"],
    ),
    "data adaptor of one": (
        lambda: {"train_data_adaptor": lambda device, batch: batch},
        DataError,
        ["the data adaptor returned a dict; (teacher_inputs, student_inputs) is needed"],
    ),
    "data adaptor of three": (
        lambda: {"train_data_adaptor": lambda device, batch: (batch, batch, batch)},
        DataError,
        ["the data adaptor returned a tuple of 3"],
    ),
    # labels
    "no labels": (
        lambda: {"config": SOFT + HARD, "train_dataloader": batches(labels=False)},
        ConfigError,
        ["[1] loss cross_entropy compares output.logits with labels, and the batch has no 'labels'"],
    ),
    "labels beyond the classes": (
        lambda: {"config": HARD, "train_dataloader": with_labels(torch.tensor([0, 1, 2, 5]))},
        ConfigError,
        ["[0] labels run from 0 to 5, and output.logits has 2 classes"],
    ),
    "real labels for classes": (
        lambda: {"config": HARD, "train_dataloader": with_labels(torch.rand(4))},
        ConfigError,
        ["[0] loss cross_entropy takes class numbers as labels; these are real numbers: use mse"],
    ),
    "labels of another shape": (
        lambda: {"config": HARD, "train_dataloader": with_labels(torch.zeros(4, 6, dtype=torch.long))},
        ConfigError,
        ["[0] output.logits (4, 2) does not fit labels (4, 6)"],
    ),
    # vocabulary
    "ids beyond the embedding": (
        lambda: {"train_dataloader": with_ids(99), "config": HARD, "teacher": None, "student": bert(2)},
        ConfigError,
        ["input_ids hold id 99, and the student's vocabulary has 40 entries", "use the student's own tokenizer"],
    ),
    "ids beyond the teacher's embedding": (
        lambda: {"train_dataloader": with_ids(50), "student": bert(2, vocab_size=60)},
        ConfigError,
        ["input_ids hold id 50, and the teacher's vocabulary has 40 entries"],
    ),
    "tokenizer longer than the embedding": (
        lambda: {"processing_class": tokenizer_of(90)},
        ConfigError,
        ["the tokenizer has 90 entries and the student's vocabulary 40: they do not belong together"],
    ),
    "tokenizer longer than the teacher's embedding": (
        lambda: {"processing_class": tokenizer_of(90), "student": bert(2, vocab_size=90)},
        ConfigError,
        ["the tokenizer has 90 entries and the teacher's vocabulary 40"],
    ),
    # settings
    "setting": (
        lambda: {"learning_rat": 0.1},
        ConfigError,
        ["settings: unknown setting 'learning_rat'. Nearest: learning_rate."],
    ),
    "settings out of range": (
        lambda: {"num_train_epochs": 0, "warmup_ratio": 2, "max_grad_norm": -1, "seed": 1 << 40},
        ConfigError,
        ["num_train_epochs is a whole number of 1 or more; found 0", "warmup_ratio is a number in [0, 1]; found 2"]
        + ["max_grad_norm is a finite number of 0 or more; found -1"]
        + ["seed is a whole number of 0 or more, below 2**32; found 1099511627776"],
    ),
    "settings of another type": (
        lambda: {"learning_rate": "fast", "logging_steps": 2.5, "num_train_epochs": float("inf")},
        ConfigError,
        ["learning_rate is a finite number of 0 or more; found 'fast'"]
        + ["logging_steps is a whole number of 1 or more; found 2.5"]
        + ["num_train_epochs is a whole number of 1 or more; found inf"],
    ),
    "learning rate that is no number": (
        lambda: {"learning_rate": float("nan"), "greater_is_better": "yes"},
        ConfigError,
        [
            "learning_rate is a finite number of 0 or more; found nan",
            "greater_is_better is true or false; found 'yes'",
        ],
    ),
    "precision": (
        lambda: {"mixed_precision": "bf61", "teacher_dtype": "float8"},
        ConfigError,
        ["mixed_precision is one of auto, no, bf16, fp16; found 'bf61'. Nearest: bf16.", "teacher_dtype is one of"],
    ),
    "schedule": (
        lambda: {"lr_scheduler_type": "liner"},
        ConfigError,
        ["lr_scheduler_type 'liner' is unknown. Nearest: linear. Known: linear, cosine"],
    ),
    "schedule that needs a metric": (
        lambda: {"lr_scheduler_type": "reduce_lr_on_plateau"},
        ConfigError,
        ["lr_scheduler_type 'reduce_lr_on_plateau' is unknown. Known: linear"],
    ),
    "tracker": (
        lambda: {"report_to": "tensorbored"},
        ConfigError,
        ["Accelerate cannot be set up: Unsupported logging capability: tensorbored"],
    ),
    "device": (lambda: {"device": "gpu"}, ConfigError, ["device 'gpu' is not one torch knows, such as 'cpu'"]),
    "device that is not there": (
        lambda: {"device": "cuda:99"},
        ConfigError,
        ["device 'cuda:99' is not there: torch finds "],
    ),
    "metric for the best student": (
        lambda: {"dev_dataloader": batches(1), "metric_for_best_model": "acuracy"},
        ConfigError,
        ["metric_for_best_model 'acuracy' is not among the evaluator's metrics: accuracy, teacher_accuracy, agreement"]
        + ["Nearest: accuracy."],
    ),
    "evaluator": (
        lambda: {"evaluator": "accuracy"},
        ConfigError,
        ["evaluator is a callable, or an object with a method evaluate; found 'accuracy'"],
    ),
}


class NoStep(Callback):
    def on_step_end(self, distiller):
        pytest.fail("a step was taken")


@pytest.mark.parametrize("wrong", CASES)
def test_one_clear_error_before_the_first_step_and_nothing_written(wrong: str, tmp_path: Path) -> None:
    given, kind, messages = CASES[wrong]
    out = tmp_path / "out"
    with pytest.raises(DistillationError) as raised:
        distiller(**{"output_dir": out, "callbacks": [NoStep()], **given()}).train()
    assert type(raised.value) is kind
    for message in messages:
        assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_each_error_is_also_the_builtin_one_would_expect() -> None:
    with pytest.raises(ValueError, match="unknown setting"):
        distiller(lr=1)
    with pytest.raises(ValueError, match="is empty"):
        distiller(train_dataloader=[]).train()
    with pytest.raises(RuntimeError, match="resume_from_checkpoint needs an output_dir"):
        distiller().train(resume_from_checkpoint=True)


def test_all_problems_come_in_one_error_by_the_number_of_the_item() -> None:
    config = [
        *entry(teacher="bert_layer13.hidden_states", student="layer5.hidden_states"),
        *SOFT,
        {"teacher": "layer{3,9,4}.hidden_states", "student": "layer1.hidden_states", "loss": "mse"},
        *entry(loss="msee"),
        {"loss": "mse"},
        {**LOGITS, "loss": "kl_divergence", "args": {"temprature": 2}},
    ]
    with pytest.raises(ConfigError) as raised:
        distiller(config).plan()
    lines = str(raised.value).splitlines()
    assert lines[0] == "6 problems in distill_config"
    assert [line[:6] for line in lines[1:]] == ["  [0] ", "  [0] ", "  [2] ", "  [3] ", "  [4] ", "  [5] "]
    assert "the teacher has 4 layers" in lines[1] and "the student has 2 layers" in lines[2]
    assert "layer9.hidden_states" in lines[3]


def test_an_entry_with_a_problem_of_its_own_is_bound_all_the_same() -> None:
    config = [
        *entry(teacher="layer9.hidden_states", wieght=2),
        {**LOGITS, "loss": "kl_divergence", "args": {"temprature": 2}, "weight": -1},
        *entry(student="layer1.hiden_states", loss=3, args={"temprature": 2}),
    ]
    with pytest.raises(ConfigError) as raised:
        distiller(config).plan()
    count, *lines = str(raised.value).splitlines()
    assert count == "6 problems in distill_config" and [line[:6] for line in lines] == ["  [0] "] * 2 + [
        *["  [1] "] * 2,
        *["  [2] "] * 2,
    ]
    assert "unknown key 'wieght'. Nearest: weight." in lines[0] and "the teacher has 4 layers" in lines[1]
    assert (
        "weight is a finite number of 0 or more; found -1" in lines[2] and "takes no argument 'temprature'" in lines[3]
    )
    assert "loss is a name or a callable; found 3" in lines[4] and "Nearest: hidden_states." in lines[5]


def test_models_are_left_as_they_were_when_a_run_is_refused(tmp_path: Path) -> None:
    """By a bad config, and after the plan was made by an output directory that is taken."""
    (tmp_path / "student").mkdir()
    teacher, student = bert(), student_from_teacher(bert(), [2, 4])
    before = weights(student), student.config._attn_implementation
    maps = {"teacher": "layer{2,4}.attention", "student": "layer{1,2}.attention", "loss": "mse"}
    for config, kind in (([maps, *entry(loss="msee")], ConfigError), ([maps], CheckpointError)):
        with pytest.raises(kind):
            distiller(config, teacher, student, output_dir=tmp_path).train()
        assert hooks_left_on(student) == hooks_left_on(teacher) == []
        assert student.config._attn_implementation == before[1]
        assert all(parameter.requires_grad for parameter in student.parameters())
    assert same(weights(student), before[0])


def test_early_stopping_needs_patience() -> None:
    with pytest.raises(ConfigError, match="patience is 1 or more; found 0"):
        EarlyStopping(patience=0)


# --- output directories ------------------------------------------------------------------------------------------


def finished(folder: Path, **options: Any) -> dict[str, bytes]:
    distiller(output_dir=folder, **options).train()
    return contents(folder)


def test_an_output_directory_of_another_run_is_left_alone(tmp_path: Path) -> None:
    before = finished(tmp_path / "run")
    with pytest.raises(CheckpointError) as raised:
        distiller(output_dir=tmp_path / "run").train()
    assert f"output_dir {tmp_path / 'run'} holds another run (run.json, history.jsonl" in str(raised.value)
    for way_out in ("resume_from_checkpoint=True", "--resume", "choose another directory", "overwrite_output_dir"):
        assert way_out in str(raised.value)
    assert contents(tmp_path / "run") == before


def test_a_folder_with_other_files_is_no_run_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    after = finished(tmp_path)
    assert after["notes.txt"] == b"mine" and "run.json" in after
    distiller(output_dir=tmp_path, overwrite_output_dir=True).train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_output_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file; a directory is needed"):
        distiller(output_dir=tmp_path / "run").train()
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 0.5}, "settings.learning_rate: it has 0.01, asked is 0.5"),
        ({"seed": 7}, "settings.seed: it has 42, asked is 7"),
        ({"config": [{**SOFT[0], "weight": 2.0}]}, "distill_config[0].weight: it has 1.0, asked is 2.0"),
        (
            {"config": [{**SOFT[0], "args": {"temperature": 3.0}}]},
            "distill_config[0].args.temperature: it has null, asked is 3.0",
        ),
        ({"config": SOFT + HARD}, "distill_config: it has [{"),
        ({"train_dataloader": batches(2)}, "run.batches: it has 3, asked is 2"),
        ({"student": bert(3)}, "models.student.parameters: it has "),
    ],
    ids=["learning rate", "seed", "weight", "argument", "entries", "data", "student"],
)
def test_a_changed_run_is_not_resumed_and_the_change_is_named(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    before = finished(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        distiller(**{"config": SOFT, "output_dir": tmp_path, **changed}).train(resume_from_checkpoint=True)
    assert f"cannot resume {tmp_path}: this is not the run it holds\n" in str(raised.value)
    assert named in str(raised.value)
    assert contents(tmp_path) == before


def test_what_may_change_between_a_run_and_its_continuation(tmp_path: Path) -> None:
    finished(tmp_path)
    free = {"num_train_epochs": 2, "logging_steps": 5, "save_total_limit": 3}
    longer = distiller(output_dir=tmp_path, **free)
    longer.train(resume_from_checkpoint=True)
    assert longer.progress.step == 6


@pytest.mark.parametrize("part", ["student", "projections", "optimizer", "progress", "random-0"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_checkpoint_is_not_resumed(part: str, damage: str, tmp_path: Path) -> None:
    wide = {"config": HIDDEN, "teacher": bert(width=24), "student": bert(2)}
    finished(tmp_path, **wide)
    broken = checkpoints(tmp_path)[-1] / f"{part}.safetensors"
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:-7])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        distiller(**wide, output_dir=tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert part in str(raised.value) and str(broken.parent) in str(raised.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["progress.json", "random-0.json", "optimizer.json", "run.json"])
def test_json_that_is_cut_short_is_named(name: str, tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / name if name == "run.json" else checkpoints(tmp_path)[-1] / name
    path.write_text(path.read_text()[:-5])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        distiller(output_dir=tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert contents(tmp_path) == before


def test_a_foreign_checkpoint_does_not_fit(tmp_path: Path) -> None:
    finished(tmp_path / "other", teacher=bert(), student=bert(3))
    out = tmp_path / "mine"
    with pytest.raises(CheckpointError, match="does not fit"):
        distiller(output_dir=out).train(resume_from_checkpoint=tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        distiller(output_dir=out).train(resume_from_checkpoint=tmp_path / "nowhere")
    assert not out.exists()


def test_files_that_are_no_run_are_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    with pytest.raises(CheckpointError, match="it holds student but no run.json"):
        distiller(output_dir=tmp_path).train(resume_from_checkpoint=True)
    assert contents(tmp_path) == {}


# --- what can only be seen on the way ----------------------------------------------------------------------------


def test_an_iterator_that_is_used_up_ends_the_second_epoch_with_an_error(tmp_path: Path) -> None:
    run = distiller(train_dataloader=iter(batches()), num_train_epochs=2, output_dir=tmp_path)
    with pytest.raises(DataError, match=r"no batch in epoch 2: can it be iterated more than once\?"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
    assert hooks_left_on(run.student) == []


class Poisoned:
    """A loss that is no number from a call on; the probe is one call."""

    __name__ = "poisoned"

    def __init__(self, last_good: int) -> None:
        self.left = 1 + last_good

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return (student - teacher).square().mean(-1) * (1.0 if self.left >= 0 else float("nan"))


@pytest.mark.parametrize("logging_steps", [1, 50], ids=["logged each step", "not logged before the save"])
def test_a_loss_that_is_not_finite_ends_the_run_and_no_checkpoint_holds_it(logging_steps: int, tmp_path: Path) -> None:
    run = distiller(
        [{**LOGITS, "loss": Poisoned(last_good=4), "name": "first"}],
        train_dataloader=batches(8),
        dev_dataloader=batches(1),
        eval_steps=2,
        save_steps=2,
        logging_steps=logging_steps,
        output_dir=tmp_path,
    )
    kept: list[dict[str, bytes]] = []

    class Keep(Callback):
        def on_save(self, distiller, checkpoint):
            kept.append(contents(tmp_path / "checkpoints") | contents(tmp_path / "student"))

    run.callbacks.append(Keep())
    with pytest.raises(DistillationError) as raised:
        run.train()
    step = 5 if logging_steps == 1 else 6
    assert f"the loss is not finite at step {step} (loss=nan, first=nan)" in str(raised.value)
    assert "Lower learning_rate" in str(raised.value)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"] and len(kept) == 2
    assert contents(tmp_path / "checkpoints") | contents(tmp_path / "student") == kept[-1]
    logged = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "eval_accuracy" in line] == [2, 4]


def test_an_unknown_metric_of_ones_own_evaluator_is_named(tmp_path: Path) -> None:
    def evaluator(student, teacher, dataloader, accelerator):
        return {"score": 1.0}

    run = distiller(evaluator=evaluator, metric_for_best_model="scores", output_dir=tmp_path)
    with pytest.raises(ConfigError, match="'scores' is not among the evaluator's metrics: score. Nearest: score."):
        run.train()


def test_a_metric_that_needs_many_rows_may_fail_on_the_first_batch() -> None:
    def compute(logits, labels):
        if len(labels) < 10:
            raise ZeroDivisionError
        return {"mine": 0.5}

    metrics = distiller(
        dev_dataloader=batches(3), evaluator=TaskEvaluator(compute), metric_for_best_model="mine"
    ).train()
    assert metrics["best_mine"] == 0.5


# --- by command --------------------------------------------------------------------------------------------------


def refused(result: Any, *messages: str) -> None:
    """Exit status 2, the messages on one error's lines, no traceback."""
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    for message in messages:
        assert message in result.stderr, result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is the same after the test, apart from recipes."""
    written(tmp_path)
    yield tmp_path
    assert {path.split("/")[0] for path in contents(tmp_path)} <= {"glue", "recipe.yaml", "base.yaml", "saved"}


SETTINGS = {
    "training.learning_rat=1": ["recipe: training: unknown setting 'learning_rat'. Nearest: learning_rate."],
    "training.num_train_epochs=0": ["recipe: training: num_train_epochs is a whole number of 1 or more; found 0"],
    "training.seed=abc": ["recipe: training: seed is a whole number of 0 or more, below 2**32; found 'abc'"],
    "training.output_dir=x": ["unknown setting 'output_dir'"],
    "finetune.max_grad_norms=1": ["recipe: finetune: unknown setting 'max_grad_norms'. Nearest: max_grad_norm."],
    "training=5": ["recipe: training is a mapping of settings; found 5"],
    "training.metric_for_best_model=acc": ["metric_for_best_model 'acc' is not among", "Nearest: accuracy."],
    "techer=x": ["recipe: unknown key 'techer'. Nearest: teacher. Keys: teacher, student, task"],
    "task=sst": ["recipe: task 'sst' is unknown. Nearest: sst2. Known: embedded, sst2, qqp"],
    "task=[1]": ["recipe: task is a text; found [1]"],
    "method=hintn": [
        "recipe: method 'hintn' is unknown. Nearest: hinton. Known: activation_boundary, at, attention_transfer, "
    ],
    "method=hinton": ["recipe: give either method or distill_config"],
    "alpha=x": ["recipe: alpha is a number; found 'x'"],
    "max_length=0": ["recipe: max_length is a whole number of 1 or more; found 0"],
    "max_train_samples=-3": ["recipe: max_train_samples is a whole number of 1 or more; found -3"],
    "vocab_size=3": ["vocab_size is 3; the 5 special tokens need more"],
    "nonsense": ["--set takes key=value, as in training.learning_rate=1e-4; found 'nonsense'"],
    "a=[": ["--set a=[: the value is not valid YAML"],
    "distill_config.5.weight=1": ["--set distill_config.5.weight: distill_config is a list of 2 items", "found '5'"],
    "distill_config.first.weight=1": ["distill_config is a list of 2 items, counted from 0; found 'first'"],
    "task.name=x": ["--set task.name: task is 'sst2', not a mapping"],
    "distill_config.0.loss=msee": ["1 problem in distill_config\n  [0] unknown loss 'msee'. Nearest: mse."],
    "distill_config=5": ["distill_config is a list of entries; found int"],
    "teacher=5": ["recipe: a model is a name, or a mapping with model_type; found 5"],
    "teacher.model_type=brt": ["recipe: model_type 'brt' is not one transformers knows. Nearest: bert."],
    "teacher.hidden_siz=8": ["recipe: a bert config has no field 'hidden_siz'. Nearest: hidden_size."],
    "teacher.num_attention_heads=3": ["recipe: cannot build a bert for sst2: The hidden size (16) is not a multiple"],
    "teacher={model_type: vit}": ["recipe: cannot build a vit for sst2: Unrecognized configuration class"],
    "teacher=./nowhere": ["recipe: './nowhere': no such directory"],
    "student=./nowhere": ["recipe: './nowhere': no such directory"],
    "student={layers: [1], of: ./nowhere}": ["recipe: './nowhere': no such directory"],
    "student=null": ["recipe: student is missing: {layers: [...]}, a directory"],
    "student={layers: [9]}": ["layers [9]: BertForSequenceClassification has layers 1 to 2; found [9]"],
    "student={layers: 3}": ["layers are whole numbers in a list; found 3"],
    "student={layers: [1], form: x}": ["a student cut out of a model has the keys layers and of; found ['form']"],
    "student.vocab_size=4": ["the tokenizer has ", "entries and the student's vocabulary 4"],
    "data_dir=./nowhere": ["data_dir nowhere is not a folder; expected one that holds SST-2/"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_command_refuses_with_status_2_and_writes_nothing(setting: str, folder: Path) -> None:
    result = distill("run", folder / "recipe.yaml", "-o", folder / "out", "--set", setting)
    refused(result, *SETTINGS[setting])
    assert not (folder / "out").exists()


def test_recipes_that_cannot_be_read(folder: Path) -> None:
    path = folder / "recipe.yaml"
    refused(distill("run", folder / "nowhere.yaml"), "nowhere.yaml does not exist")
    for content, message in (
        (b"a: [1", "is not valid YAML"),
        (b"- 1", "is a mapping; found list"),
        (b"task: \xe9", "is not valid YAML: 'utf-8' codec can't decode"),
        (b"base: 5", "base is the path of a recipe; found 5"),
        (b"base: nowhere.yaml", "nowhere.yaml does not exist"),
        (b"base: recipe.yaml", "is its own base: recipe.yaml -> recipe.yaml"),
        (b"max_length: 8", "recipe: teacher is missing: a directory, a hub name, or a mapping to build one"),
    ):
        path.write_bytes(content)
        refused(distill("run", path, "-o", folder / "out"), message)


def test_broken_data_is_named_by_file_and_line(folder: Path) -> None:
    train = folder / "glue" / "SST-2" / "train.tsv"
    good = train.read_text()
    run = ("run", folder / "recipe.yaml", "-o", folder / "out")
    train.write_text(good + "a row without a label\n")
    refused(distill(*run), f"{train}, line 26: found 1 column, expected 2 (sentence, label)")
    train.write_text(good.replace("\t1\n", "\t7\n", 1))
    refused(distill(*run), f"{train}, line 2: found label '7', expected one of 0, 1")
    train.write_text("sentence\tlabel\n")
    refused(distill(*run), f"{train} holds no rows")
    train.write_text("")
    refused(distill(*run), f"{train} is empty")
    train.write_text(good.replace("sentence", "sentance", 1))
    refused(distill(*run), f"{train} has no column 'sentence'", "Nearest: sentance.")
    train.unlink()
    refused(distill(*run), "SST-2 has no file train.tsv")


def test_a_directory_that_holds_another_run(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    for command in ("run", "finetune"):
        out = tmp_path / command
        assert distill(command, recipe, "-o", out).exit_code == 0
        before = contents(out)
        refused(distill(command, recipe, "-o", out), "holds another run (run.json, history.jsonl", "--resume")
        changed = distill(command, recipe, "-o", out, "--resume", "--set", "training.learning_rate=1e-3")
        refused(changed, "cannot resume", "settings.learning_rate: it has 5e-05, asked is 0.001")
        assert contents(out) == before


def test_saved_models_that_cannot_be_used(folder: Path) -> None:
    saved = folder / "saved"
    tokenizer_of(VOCABULARY).save_pretrained(saved)
    bert(2, num_labels=3).save_pretrained(saved)
    of_saved = ("--set", f"student={saved}")
    run = ("run", folder / "recipe.yaml", "-o", folder / "out", *of_saved)
    refused(distill(*run), f"cannot load model for sst2 {str(saved)!r}: it has 3 classes, and the task 2")
    bert(2).save_pretrained(saved)
    weights_file = saved / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    refused(distill(*run), f"cannot load model for sst2 {str(saved)!r}: ")
    (saved / "config.json").unlink()
    refused(distill(*run), f"no model for sst2 in {str(saved)!r}: it holds model.safetensors, tokenizer.json")


def test_other_commands_refuse_too(folder: Path) -> None:
    refused(distill("check", folder / "nowhere.yaml"), "nowhere.yaml does not exist")
    written(folder, student={**TINY_BERT, "num_attention_heads": 4, "num_hidden_layers": 1}, distill_config=HEADS)
    refused(distill("check", folder / "recipe.yaml"), "the student has 4 heads, the teacher 2")
    refused(distill("layers", "brt"), "no model 'brt': no such directory, hub name or model_type. Nearest: bert.")
    refused(
        distill("evaluate", folder / "nowhere", "--task", "sst2", "--data-dir", folder / "glue"), "no such directory"
    )
    refused(distill("finetune"), "recipe: teacher is missing")
    refused(distill("run", folder / "recipe.yaml", "--task", "sst3"), "task 'sst3' is unknown. Nearest: sst2.")
    unused = distill("run", folder / "recipe.yaml", "--alpha", 0.3)
    refused(unused, "--alpha and --temperature belong to a method, and this recipe has a distill_config")


HEADS = [{"teacher": "layer2.attention", "student": "layer1.attention", "loss": "mse"}]


def test_an_unknown_option_or_command_is_told_by_the_terminal() -> None:
    for arguments in (("run", "--techer", "x"), ("rnu",)):
        result = distill(*arguments)
        assert result.exit_code == 2 and arguments[-2 if len(arguments) > 1 else 0] in result.stderr
        assert "Traceback" not in result.output

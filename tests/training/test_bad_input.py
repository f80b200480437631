"""Bad input gets one clear error before the first step, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import hooks_left_on
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller, same, tokenizer_of, weights
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


# What is wrong -> what is given, the kind of error, and what the message says: asked, found, and what would do.
CASES: dict[str, tuple[Callable[[], dict[str, Any]], type[DistillationError], list[str]]] = {
    # names
    "layer": (
        lambda: {"config": entry(teacher="bert_layer13.hidden_states")},
        ConfigError,
        ["[0] bert_layer13.hidden_states: the teacher has 4 layers. Nearest: bert_layer4.hidden_states."],
    ),
    "layer 0": (
        lambda: {"config": entry(student="layer0.hidden_states")},
        ConfigError,
        ["[0] layer0.hidden_states: the student has 2 layers. They count from 1; before the first stands "]
        + ["stands embedding_layer.embedding."],
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
    "teacher left out": (
        lambda: {
            "config": [{"student": "layer1.hidden_states", "loss": "mse"}, {"student": "output.logits", "loss": "cka"}]
        },
        ConfigError,
        [
            "[0] loss mse does not compare a feature of kind tokens with labels, and this entry names no teacher: was "
            "`teacher` left out? With labels these do: cross_entropy",
            "[1] loss cka compares with a teacher, and this entry names none: was `teacher` left out?",
        ],
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
        ["the training data is a list_iterator", "gone through only once", "given as train_dataloader"],
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
        lambda: {"train_dataloader": [{"input_ids": [[1, 2], [3]]}]},
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
    "a teacher that no entry reads and an evaluator asks": (
        lambda: {"processing_class": tokenizer_of(90), "student": bert(2, vocab_size=90), "config": HARD},
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
        ["report_to 'tensorbored' is no tracker of Accelerate. Nearest: tensorboard.", "Known: aim, comet_ml"],
    ),
    "tracker that writes, and nowhere to": (
        lambda: {"report_to": "tensorboard", "output_dir": None},
        ConfigError,
        ["report_to 'tensorboard' writes files: set an output_dir"],
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

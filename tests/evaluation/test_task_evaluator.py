"""Scores of a task: both models', and how often they agree."""

import copy
from typing import Any

import pytest
import torch
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller, scores_of
from tolerance import near
from training_script import collate, rows
from transformers import (
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from knowledge_distillation import Callback, TaskEvaluator


class Fixed(torch.nn.Module):
    """A model whose logits are looked up by the row's first id."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.calls = 0

    def forward(self, input_ids):
        self.calls += 1
        return self.logits[input_ids if self.logits.dim() == 2 and input_ids.dim() == 1 else input_ids[:, 0]]


def accelerator() -> Any:
    return distiller().accelerator


def test_accuracy_of_both_and_agreement() -> None:
    student = Fixed(torch.tensor([[2.0, 1], [0, 1], [3, 1], [0, 5]]))  # 0 1 0 1
    teacher = Fixed(torch.tensor([[2.0, 1], [0, 1], [0, 1], [4, 0]]))  # 0 1 1 0
    data = [
        {"input_ids": torch.tensor([[0], [1], [2]]), "labels": torch.tensor([0, 1, 1])},
        {"input_ids": torch.tensor([[3]]), "labels": torch.tensor([0])},
    ]
    evaluator = TaskEvaluator()
    assert evaluator(student, teacher, data, accelerator()) == {
        "accuracy": 0.5,
        "teacher_accuracy": 1.0,
        "agreement": 0.5,
    }
    assert evaluator.primary_metric == "accuracy" and evaluator.greater_is_better
    assert TaskEvaluator()(student, None, data, accelerator()) == {"accuracy": 0.5}
    without_labels = [{"input_ids": batch["input_ids"]} for batch in data]
    unlabelled = TaskEvaluator()
    assert unlabelled(student, teacher, without_labels, accelerator()) == {"agreement": 0.5}
    assert unlabelled.primary_metric == "agreement"


def test_ones_own_metrics_see_all_rows_in_order() -> None:
    seen = []

    def compute(logits, labels):
        seen.append((logits, labels))
        return {"first": 0.25, "second": 0.5}

    student = Fixed(torch.arange(8.0).reshape(4, 2))
    data = [{"input_ids": torch.tensor([[i], [i + 1]]), "labels": torch.tensor([i, i + 1])} for i in (0, 2)]
    evaluator = TaskEvaluator(compute, primary_metric="second")
    scores = evaluator(student, copy.deepcopy(student), data, accelerator())
    assert scores == {"first": 0.25, "second": 0.5, "teacher_first": 0.25, "teacher_second": 0.5, "agreement": 1.0}
    assert evaluator.primary_metric == "second"
    assert seen[0][0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and seen[0][1].tolist() == [0, 1, 2, 3]


def test_metrics_written_for_transformers_are_called_as_there() -> None:
    def compute(prediction):
        return {"right": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    student = Fixed(torch.tensor([[2.0, 1], [0, 1]]))
    data = [{"input_ids": torch.tensor([[0], [1]]), "labels": torch.tensor([0, 0])}]
    assert TaskEvaluator(compute)(student, None, data, accelerator()) == {"right": 0.5}


def test_real_labels_are_scored_by_correlation() -> None:
    student, teacher = Fixed(torch.tensor([[1.0], [2], [3], [4]])), Fixed(torch.tensor([[2.0], [1], [4], [3]]))
    data = [{"input_ids": torch.tensor([[0], [1], [2], [3]]), "labels": torch.tensor([0.5, 1.0, 1.5, 2.0])}]
    scores = TaskEvaluator()(student, teacher, data, accelerator())
    assert scores == pytest.approx({"pearson": 1.0, "teacher_pearson": 0.6, "agreement": 0.6})


class OfTokens(torch.nn.Module):
    """Class 1 for the ids in `ones`, class 0 for the others."""

    def __init__(self, *ones: int) -> None:
        super().__init__()
        self.ones = torch.nn.Parameter(torch.tensor([float(n in ones) for n in range(10)]))

    def forward(self, input_ids, attention_mask=None):
        return torch.stack([0 * self.ones[input_ids] + 0.5, self.ones[input_ids]], dim=-1)


def test_tokens_of_batches_of_unequal_length_are_scored_without_padding() -> None:
    short = {
        "input_ids": torch.tensor([[1, 2], [3, 0]]),
        "attention_mask": torch.tensor([[1, 1], [1, 0]]),
        "labels": torch.tensor([[1, 0], [1, -100]]),
    }
    long = {
        "input_ids": torch.tensor([[4, 5, 1, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, 0, 1, 1]]),
    }
    student, teacher = OfTokens(1), OfTokens(1, 3, 4)
    scores = TaskEvaluator()(student, teacher, [short, long], accelerator())
    assert scores == pytest.approx({"accuracy": 4 / 6, "teacher_accuracy": 5 / 6, "agreement": 5 / 6})
    without = [{key: value for key, value in batch.items() if key != "labels"} for batch in (short, long)]
    assert TaskEvaluator()(student, teacher, without, accelerator()) == pytest.approx({"agreement": 5 / 7})
    bare = [{"input_ids": batch["input_ids"]} for batch in (short, long)]
    assert TaskEvaluator()(student, teacher, bare, accelerator()) == pytest.approx({"agreement": 6 / 8})


def test_a_token_task_trains_and_is_scored() -> None:
    torch.manual_seed(0)
    config = bert(2, num_labels=3).config
    teacher, student = BertForTokenClassification(config), BertForTokenClassification(config)
    data = [{**b, "labels": (b["input_ids"] % 3).masked_fill(b["attention_mask"] == 0, -100)} for b in batches(5, 3)]
    metrics = scores_of(distiller(SOFT + HARD, teacher, student, train_dataloader=data, dev_dataloader=data))
    assert set(metrics) == {"eval_accuracy", "eval_teacher_accuracy", "eval_agreement", "best_accuracy"}
    logits = [student.eval()(**batch).logits for batch in data]
    right = sum(
        int(((x.argmax(-1) == b["labels"]) & (b["labels"] >= 0)).sum()) for x, b in zip(logits, data, strict=True)
    )
    assert metrics["eval_accuracy"] == pytest.approx(right / sum(int((b["labels"] >= 0).sum()) for b in data))


def test_a_causal_language_model_is_scored_on_the_next_token() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    ids = torch.randint(3, 40, (4, 9))
    predicted = model.eval()(ids).logits.argmax(-1)
    labels = torch.cat([ids[:, :1], predicted[:, :-1]], dim=1)  # what the model says comes next
    data = [{"input_ids": ids, "labels": labels}]
    scores = TaskEvaluator()(model, None, data, accelerator())
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    surprise = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).exp().item()
    assert scores == {"accuracy": 1.0, "perplexity": near(surprise)}


@pytest.mark.parametrize(("data", "times"), [("eval_dataset", 1), ("dev_dataloader", 3)])
def test_the_teacher_is_scored_once_where_the_order_is_fixed(data: str, times: int) -> None:
    teacher = bert()
    calls = []
    teacher.classifier.register_forward_hook(lambda *given: calls.append(1))
    dev = (
        {"eval_dataset": rows(6), "per_device_eval_batch_size": 3} if data == "eval_dataset" else {data: batches(2, 3)}
    )
    run = distiller(HIDDEN, teacher, num_train_epochs=3, data_collator=collate, **dev)
    scores: list[dict[str, float]] = []

    class Keep(Callback):
        def on_train_begin(self, distiller):
            calls.clear()  # the probe, and the first batch of the evaluation data

        def on_evaluate(self, distiller, metrics):
            scores.append(metrics)

    run.callbacks.append(Keep())
    run.train()
    assert len(calls) == 2 * times  # the entries need no logits of the teacher: it runs two layers in a step
    assert len(scores) == 3 and len({score["teacher_accuracy"] for score in scores}) == 1


def test_evaluation_order_and_scores_do_not_depend_on_the_batch_size() -> None:
    scores = []
    for size in (2, 5, 64):
        run = distiller(eval_dataset=rows(11), data_collator=collate, per_device_eval_batch_size=size)
        scores.append(run.evaluate())
    assert scores[0] == pytest.approx(scores[1]) and scores[0] == pytest.approx(scores[2])

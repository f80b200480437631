"""Scores summed batch by batch: what is held, what they are, and that batches and processes change nothing."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from runs import distiller
from tolerance import near
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from knowledge_distillation import Callback, TaskEvaluator

SIZES = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}


def accelerator() -> Any:
    return distiller().accelerator


def language_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=1, eos_token_id=2)).eval()


def texts(rows: int = 7, length: int = 9) -> dict[str, Tensor]:
    """Rows padded to one length, each with a prompt that is not scored."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (rows, length), generator=generator)
    mask = (torch.arange(length) < 3 + torch.arange(rows)[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100).masked_fill(torch.arange(length) < 2, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def cut(batch: dict[str, Tensor], *sizes: int) -> list[dict[str, Tensor]]:
    parts = zip(*(value.split(sizes) for value in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


@pytest.mark.case("A9")
def test_no_more_than_one_batch_of_logits_is_there_at_once() -> None:
    alive: list[weakref.ref] = []
    most = []

    class Counted(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            most.append(sum(one() is not None for one in alive))
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
            alive.append(weakref.ref(output.logits))
            return output

    student, teacher = Counted(language_model(0)), Counted(language_model(1))
    evaluator = TaskEvaluator(fixed_order=True, shift_labels=True)
    for _ in range(2):
        evaluator(student, teacher, cut(texts(), 2, 2, 2, 1), accelerator())
    assert most == [0, 1] * 4 + [0] * 4  # the teacher is asked while the student's are there, and once


@pytest.mark.case("A9")
def test_sums_of_unequal_batches_are_those_of_all_rows() -> None:
    student, teacher = language_model(0), language_model(1)
    batch = texts()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    own, others = (model(**inputs).logits[:, :-1].detach() for model in (student, teacher))
    labels = batch["labels"][:, 1:]
    counted = labels != -100
    expected = {"agreement": float((own.argmax(-1) == others.argmax(-1))[counted].float().mean())}
    for prefix, logits in (("", own), ("teacher_", others)):
        expected[f"{prefix}accuracy"] = float((logits.argmax(-1) == labels)[counted].float().mean())
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        expected[f"{prefix}perplexity"] = float(nll.exp())
    for sizes in ((7,), (3, 3, 1), (1,) * 7):
        assert TaskEvaluator()(student, teacher, cut(batch, *sizes), accelerator()) == near(expected)


@pytest.mark.case("A9")
def test_processes_of_unequal_shares_give_the_scores_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of three shares, one of them without a batch, as `gather_object` hands them to each process."""
    student, teacher, batches = language_model(0), language_model(1), cut(texts(), 3, 2, 2)
    whole = TaskEvaluator()(student, teacher, batches, accelerator())
    shares: list[Any] = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda parts: shares.extend(parts) or list(shares))
    for share in (batches[:1], batches[1:], []):
        scores = TaskEvaluator()(student, teacher, share, accelerator())
    assert scores == near(whole)


def test_the_lowest_perplexity_is_the_best() -> None:
    student = language_model(0)
    data = [texts()]
    run = distiller(
        [{"student": "output.logits", "loss": "cross_entropy"}],
        None,
        student,
        train_dataloader=data,
        dev_dataloader=data,
        metric_for_best_model="perplexity",
        num_train_epochs=3,
    )
    seen: list[float] = []
    run.callbacks.append(_Keep(seen))
    scores = run.train()
    assert seen[-1] < seen[0] and scores["best_perplexity"] == min(seen)


class _Keep(Callback):
    def __init__(self, seen: list[float]) -> None:
        self.seen = seen

    def on_evaluate(self, run: Any, metrics: dict[str, float]) -> None:
        self.seen.append(metrics["perplexity"])

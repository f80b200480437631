"""Batches of any form, sized or not; their order follows from seed and epoch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller, same, trained
from torch.utils.data import DataLoader, TensorDataset
from training_script import collate, rows
from transformers import (
    BatchEncoding,
)
from watching import Watch


def plain_batches() -> list[dict[str, torch.Tensor]]:
    return [{k: batch[k] for k in ("input_ids", "attention_mask")} for batch in batches()]


class WithoutLength:
    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)


def as_tuples() -> Any:
    return [(batch["input_ids"], batch["attention_mask"]) for batch in plain_batches()]


def as_lists_of_a_loader() -> Any:
    same_length = torch.stack([batch["input_ids"][:, :3] for batch in batches()])
    return DataLoader(TensorDataset(same_length.flatten(0, 1)), batch_size=4)


FORMS = {
    "tuples": as_tuples,
    "lists": lambda: [list(batch) for batch in as_tuples()],
    "BatchEncoding": lambda: [BatchEncoding(batch) for batch in plain_batches()],
    "without a length": lambda: WithoutLength(plain_batches()),
    "columns nobody takes": lambda: [{**b, "idx": torch.arange(4), "text": ["a"] * 4} for b in plain_batches()],
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_train_alike(form: str) -> None:
    schedule = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}  # all that can be had without a length
    plain = trained(distiller(HIDDEN, train_dataloader=plain_batches(), num_train_epochs=2, **schedule))
    run = distiller(HIDDEN, train_dataloader=FORMS[form](), num_train_epochs=2, **schedule)
    assert same(plain, trained(run)) and run.progress.step == 6


def test_a_loader_of_single_tensors() -> None:
    tensors = as_lists_of_a_loader()
    dicts = [{"input_ids": ids} for (ids,) in tensors]
    assert same(trained(distiller(train_dataloader=tensors)), trained(distiller(train_dataloader=dicts)))
    assert same(
        trained(distiller(train_dataloader=[ids for (ids,) in tensors])), trained(distiller(train_dataloader=dicts))
    )


def test_a_generator_serves_one_epoch_whole() -> None:
    as_list, as_generator = distiller(max_steps=3), distiller(max_steps=3, train_dataloader=(b for b in batches()))
    assert same(trained(as_list), trained(as_generator)) and as_generator.progress.step == 3


def test_a_generator_without_end_stops_at_max_steps() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield from batches()

    run = distiller(train_dataloader=endless(), max_steps=7)
    run.train()
    assert run.progress.step == 7 and run.total_steps == 7


def test_a_generator_loses_no_batch_to_a_plan() -> None:
    plain, planned = (distiller(max_steps=3, train_dataloader=(b for b in batches())) for _ in range(2))
    planned.plan()
    planned.close()
    assert same(trained(plain), trained(planned)) and planned.progress.step == 3


@pytest.mark.parametrize("data", ["loader", "data set"])
def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone(data: str) -> None:
    """Not from what else draws random numbers: dropout, evaluators, callbacks."""

    def order(seed: int, draws: int) -> list[list[int]]:
        seen: list[list[int]] = []
        loader = {"train_dataloader": DataLoader(rows(12), batch_size=4, shuffle=True, collate_fn=collate)}
        dataset = {"train_dataset": rows(12), "data_collator": collate, "per_device_train_batch_size": 4}

        def adapt(device, batch):
            seen.append(batch["input_ids"][:, 1].tolist())
            return batch, batch

        look = Watch(lambda d: (torch.rand(draws), np.random.rand(draws)))
        run = distiller(
            HARD,
            None,
            bert(2, dropout=0.1),
            **(loader if data == "loader" else dataset),
            train_data_adaptor=adapt,
            callbacks=[look],
            num_train_epochs=2,
            seed=seed,
        )
        run.plan()
        seen.clear()
        run.train()
        return seen

    first = order(1, draws=1)
    assert len(first) == 6 and first[:3] != first[3:]
    assert first == order(1, draws=5) and first != order(2, draws=1)


def test_a_data_adaptor_gives_each_model_its_own_inputs() -> None:
    """The teacher reads other ids than the student, by tuple and by dict; labels reach no model."""
    seen: dict[str, list[Any]] = {"teacher": [], "student": []}
    teacher, student = bert(vocab_size=90), bert(2)
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen[name].append(kwargs), with_kwargs=True
        )

    def adapt(device, batch):
        return (batch["input_ids"] + 50, batch["attention_mask"]), batch

    distiller(SOFT + HARD, teacher, student, train_data_adaptor=adapt).train()
    last = batches()[-1]
    assert torch.equal(seen["student"][-1]["input_ids"], last["input_ids"])
    assert torch.equal(seen["teacher"][-1]["input_ids"], last["input_ids"] + 50)
    assert torch.equal(seen["teacher"][-1]["attention_mask"], last["attention_mask"])
    assert not any("labels" in kwargs for calls in seen.values() for kwargs in calls)

"""Batches filled up to a number of tokens: every row once, nothing too large, alike in every epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import batches, bert, distiller
from transformers import DataCollatorForSeq2Seq

from knowledge_distillation import Callback
from knowledge_distillation.data import tokenize, train_tokenizer
from knowledge_distillation.data.collating import PadToBucket
from knowledge_distillation.data.token_budget import TokenBudgetBatchSampler, edges
from knowledge_distillation.errors import ConfigError, DataError

samplers = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 60), min_size=1, max_size=300),
        "max_tokens": st.integers(60, 400),
        "multiple": st.sampled_from([None, 4, 8]),
        "seed": st.integers(0, 5),
    }
)


def batches_of(options: dict[str, Any], epoch: int = 0, processes: int = 1, index: int = 0) -> list[list[int]]:
    sampler = TokenBudgetBatchSampler(**options, num_processes=processes, process_index=index)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


def padded(options: dict[str, Any], batch: list[int]) -> int:
    """The length that a batch is padded to."""
    longest = max(options["lengths"][row] for row in batch)
    multiple = options.get("multiple")
    return longest if multiple is None else int(edges([longest], multiple, max(options["lengths"]))[0])


@settings(deadline=None, max_examples=60)
@given(samplers, st.integers(1, 4), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch_over_all_processes(options, processes, epoch):
    shares = [batches_of(options, epoch, processes, index) for index in range(processes)]
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == list(range(len(options["lengths"])))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(deadline=None, max_examples=60)
@given(samplers, st.integers(0, 3))
def test_no_batch_is_larger_than_the_budget_with_its_padding(options, epoch):
    for batch in batches_of(options, epoch):
        assert len(batch) * padded(options, batch) <= options["max_tokens"]


@settings(deadline=None, max_examples=60)
@given(samplers, st.integers(1, 3))
def test_every_epoch_has_as_many_batches_on_each_process(options, processes):
    for index in range(processes):
        assert len({len(batches_of(options, epoch, processes, index)) for epoch in range(4)}) == 1


@settings(deadline=None, max_examples=30)
@given(samplers)
def test_the_order_follows_from_seed_and_epoch_alone(options):
    np.random.seed(0)
    first = batches_of(options, epoch=2)
    np.random.seed(1)
    assert batches_of(options, epoch=2) == first


def of_uneven_rows(**changes: Any) -> dict[str, Any]:
    lengths = np.random.default_rng(0).integers(4, 100, 3000).tolist()
    return {"lengths": lengths, "max_tokens": 1024, **changes}


def test_seeds_and_epochs_give_other_orders_and_other_mates():
    orders = [batches_of(of_uneven_rows(seed=seed), epoch) for seed in range(2) for epoch in range(2)]
    assert len({str(order) for order in orders}) == 4
    mates = [{frozenset(batch) for batch in order} for order in orders]
    assert not mates[0] & mates[1]
    lengths = [np.mean([of_uneven_rows()["lengths"][row] for row in batch]) for batch in orders[0]]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.3  # long and short batches in turn


def test_batches_are_nearly_full_of_tokens():
    options = of_uneven_rows()
    tokens = [sum(options["lengths"][row] for row in batch) for batch in batches_of(options)]
    assert np.median(tokens) > 0.9 * 1024


def test_with_edges_each_length_has_one_number_of_rows():
    """But for the batch of what is left over."""
    options = of_uneven_rows(multiple=8)
    shapes = {(len(batch), padded(options, batch)) for batch in batches_of(options)}
    assert len(shapes) <= len({length for _, length in shapes}) + 1 <= 13


def test_processes_work_on_batches_of_nearly_one_length_at_a_time():
    options = of_uneven_rows()
    one, other = (batches_of(options, 0, 2, index) for index in range(2))
    apart = [abs(padded(options, left) - padded(options, right)) for left, right in zip(one, other, strict=False)]
    assert max(apart) <= 10 and np.mean(apart) < 2


def test_edges_are_few_and_never_below_the_length_nor_above_the_longest():
    lengths = np.arange(1, 520)
    up = edges(lengths, 8, 519)
    assert sorted(set(up.tolist()))[:13] == [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160]
    assert (up >= lengths).all() and up.max() == 519 and len(set(up.tolist())) == 21
    assert (up[lengths > 64] <= 1.25 * lengths[lengths > 64] + 1).all()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lengths": []}, DataError, "there are no rows to make batches of"),
        (
            {"lengths": [3, 70, 9]},
            ConfigError,
            "max_tokens_per_batch is 64, and row 1 of the training data has 70 tokens: "
            "truncate the rows, or set it to 70 or more",
        ),
        ({"num_processes": 2, "process_index": 2}, ConfigError, "process_index is 2; it must be from 0 to 1"),
    ],
)
def test_what_cannot_be_batched_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        TokenBudgetBatchSampler(**{"lengths": [1, 2], "max_tokens": 64, **changed})


# --- in a run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences() -> dict[str, Any]:
    from datasets import Dataset

    words = "the film was good and not bad at all so we saw it twice".split()
    texts = [" ".join(words[i % 5 : i % 5 + 1 + i % 9]) for i in range(40)]
    tokenizer = train_tokenizer(texts, vocab_size=60)
    rows = Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(40)]})
    return {"train_dataset": tokenize(rows, tokenizer, ["text"]), "processing_class": tokenizer}


class Shapes(Callback):
    """The shape of each batch a student is given."""

    def __init__(self, student: torch.nn.Module) -> None:
        self.seen: list[tuple[int, ...]] = []
        student.register_forward_pre_hook(
            lambda module, args, inputs: self.seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
        )

    def on_train_begin(self, distiller: Any) -> None:
        self.seen.clear()


def shapes_of(sentences: dict[str, Any], **options: Any) -> list[tuple[int, ...]]:
    student = bert(2, vocab_size=60)
    shapes = Shapes(student)
    distiller(teacher=bert(vocab_size=60), student=student, callbacks=[shapes], **sentences, **options).train()
    return shapes.seen


def test_a_run_takes_as_many_rows_as_the_budget_holds(sentences):
    seen = shapes_of(sentences, max_tokens_per_batch=48)
    assert sum(rows for rows, _ in seen) == 40 and all(rows * length <= 48 for rows, length in seen)
    assert len({rows for rows, _ in seen}) > 3


def test_a_run_pads_to_edges_with_and_without_a_budget(sentences):
    seen = shapes_of(sentences, length_bucket=4, per_device_train_batch_size=4)
    assert {length for _, length in seen} == {4, 8, 11} and len(seen) == 10
    seen = shapes_of(sentences, length_bucket=4, max_tokens_per_batch=48)
    assert {length for _, length in seen} == {4, 8, 11}
    assert sum(shape not in ((12, 4), (6, 8), (4, 11)) for shape in seen) <= 1


def test_labels_longer_than_the_inputs_are_padded_with_them(sentences):
    collator = DataCollatorForSeq2Seq(sentences["processing_class"])
    rows = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [6] * m} for n, m in ((3, 9), (5, 2))]
    batch = PadToBucket(collator, 4, 5)(rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (2, 9))
    batch = PadToBucket(collator, 4, 50)(rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (2, 12))
    assert (batch["labels"] != -100).sum(1).tolist() == [9, 2] and batch["attention_mask"].sum(1).tolist() == [3, 5]


def test_workers_give_the_batches_of_none(sentences):
    assert shapes_of(sentences, dataloader_num_workers=1) == shapes_of(sentences)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens_per_batch": 10}, ConfigError, "max_tokens_per_batch is 10, and row 8 .* has 11 tokens"),
        ({"max_tokens_per_batch": 0}, ConfigError, "max_tokens_per_batch is a whole number of 1 or more; found 0"),
        (
            {"dataloader_num_workers": -1},
            ConfigError,
            "dataloader_num_workers is a whole number of 0 or more; found -1",
        ),
        (
            {"max_tokens_per_batch": 64, "group_by_length": False},
            ConfigError,
            "max_tokens_per_batch fills batches with rows of similar length: leave group_by_length on",
        ),
        (
            {"length_bucket": 8, "processing_class": None},
            ConfigError,
            "length_bucket pads with the tokenizer: give it as processing_class, and no data_collator",
        ),
        (
            {"length_bucket": 8, "data_collator": lambda rows: rows},
            ConfigError,
            "length_bucket pads with the tokenizer",
        ),
        (
            {"max_tokens_per_batch": 64, "train_dataset": [{"pixel_values": [1.0]}], "processing_class": None},
            DataError,
            "max_tokens_per_batch goes by the length of rows, and they have no input_ids",
        ),
    ],
)
def test_a_run_says_at_once_what_cannot_be_batched(sentences, options, error, message):
    with pytest.raises(error, match=message):
        distiller(**{**sentences, **options})


def test_a_loader_of_ones_own_is_left_as_it_is(sentences):
    run = distiller(train_dataloader=batches(), max_tokens_per_batch=5)
    assert run.train()["loss"] > 0

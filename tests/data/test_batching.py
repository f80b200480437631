"""Length-grouped batches: every row once, in shares of one global order, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_distillation.data.batching import LengthGroupedBatchSampler
from knowledge_distillation.errors import ConfigError, DataError

samplers = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 60), min_size=1, max_size=400),
        "batch_size": st.integers(1, 7),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 5),
        "group_by_length": st.booleans(),
    }
)


def batches_of(options, num_processes=1, process_index=0, epoch=0, **changed):
    options = {**options, **changed}
    sampler = LengthGroupedBatchSampler(
        options.pop("lengths"),
        options.pop("batch_size"),
        num_processes=num_processes,
        process_index=process_index,
        **options,
    )
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


@settings(deadline=None, max_examples=60)
@given(samplers, st.integers(1, 4), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch_over_all_processes(options, num_processes, epoch):
    shares = [batches_of(options, num_processes, index, epoch) for index in range(num_processes)]
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == list(range(len(options["lengths"])))


@settings(deadline=None, max_examples=60)
@given(samplers, st.integers(1, 4))
def test_processes_take_contiguous_slices_of_the_batches_of_one_large_process(options, num_processes):
    size = options["batch_size"]
    whole = batches_of(options, batch_size=size * num_processes)
    for index in range(num_processes):
        slices = [batch[index * size : (index + 1) * size] for batch in whole]
        assert batches_of(options, num_processes, index) == [share for share in slices if share]


@settings(deadline=None, max_examples=60)
@given(samplers)
def test_only_the_last_batch_may_be_incomplete(options):
    *whole, last = batches_of(options)
    assert all(len(batch) == options["batch_size"] for batch in whole)
    assert 1 <= len(last) <= options["batch_size"]


@settings(deadline=None, max_examples=30)
@given(samplers)
def test_the_order_follows_from_seed_and_epoch_alone(options):
    np.random.seed(0)
    first = batches_of(options, epoch=2)
    np.random.seed(1)
    assert batches_of(options, epoch=2) == first


def lengths_of(count: int) -> list[int]:
    return np.random.default_rng(0).integers(4, 100, count).tolist()


@pytest.mark.parametrize("group_by_length", [True, False])
def test_seeds_and_epochs_give_different_orders(group_by_length):
    options = {"lengths": lengths_of(300), "batch_size": 8, "group_by_length": group_by_length}
    orders = [batches_of(options, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 9


def test_set_epoch_alone_changes_the_next_pass():
    sampler = LengthGroupedBatchSampler(lengths_of(100), 8)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def padding(options) -> float:
    lengths = np.array(options["lengths"])
    return sum(lengths[batch].max() * len(batch) - lengths[batch].sum() for batch in batches_of(options))


@pytest.mark.parametrize("count", [200, 3000])
def test_grouped_batches_need_a_small_part_of_the_padding_of_random_ones(count):
    options = {"lengths": lengths_of(count), "batch_size": 16}
    assert padding(options) < 0.2 * padding({**options, "group_by_length": False})


def test_grouped_batches_still_come_in_random_order_with_random_mates():
    options = {"lengths": lengths_of(3000), "batch_size": 16}
    lengths = np.array(options["lengths"])
    means = [lengths[batch].mean() for batch in batches_of(options)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    mates = [{frozenset(batch) for batch in batches_of(options, epoch=epoch)} for epoch in (0, 1)]
    assert not mates[0] & mates[1]


def test_the_incomplete_batch_is_not_always_of_the_same_lengths():
    options = {"lengths": list(range(1, 70)), "batch_size": 8}
    assert len({min(batches_of(options, epoch=epoch)[-1]) // 8 for epoch in range(20)}) > 3


def test_evaluation_goes_from_long_to_short_and_keeps_ties_in_order():
    assert batches_of({"lengths": [3, 9, 3, 7, 9], "batch_size": 2, "shuffle": False}) == [[1, 4], [3, 0], [2]]


def test_without_shuffle_and_grouping_rows_keep_their_order():
    options = {"lengths": [3, 9, 3], "batch_size": 2, "shuffle": False, "group_by_length": False}
    assert batches_of(options) == [[0, 1], [2]]


def test_a_process_without_a_share_of_the_last_batch_ends_one_batch_earlier():
    options = {"lengths": [1] * 9, "batch_size": 2, "shuffle": False}
    assert [len(batches_of(options, 2, index)) for index in range(2)] == [3, 2]


def test_indices_are_plain_integers_for_datasets_and_lists_alike():
    assert {type(row) for batch in batches_of({"lengths": np.arange(1, 9), "batch_size": 3}) for row in batch} == {int}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lengths": []}, DataError, "there are no rows to make batches of"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0; it must be at least 1"),
        ({"num_processes": 0}, ConfigError, "num_processes is 0; it must be at least 1"),
        ({"num_processes": 2, "process_index": 2}, ConfigError, "process_index is 2; it must be from 0 to 1"),
        ({"seed": -1}, ConfigError, "seed is -1; it must not be negative"),
    ],
)
def test_what_cannot_be_batched_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        LengthGroupedBatchSampler(**{"lengths": [1, 2], "batch_size": 1, **changed})

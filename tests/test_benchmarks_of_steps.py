"""The benchmarks of whole steps compare programs that do the same work, and let them take turns."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tolerance import near

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import peers  # noqa: E402
import step  # noqa: E402
from growth import jobs, read_batches  # noqa: E402
from interleaved import ratios, spread, take_turns  # noqa: E402
from peers import grouped, sample, shuffled  # noqa: E402
from sides import SIDES, Job, first_loss, from_json, settings_of  # noqa: E402
from step import MAPPED, entries, targets  # noqa: E402

TINY = Job(entries("hidden", 4), 3, 12, steps=2, layers=4, width=16, heads=2)


@pytest.mark.parametrize("padding", [0.0, 0.25])
@pytest.mark.parametrize("config", MAPPED)
def test_ours_and_the_loop_by_hand_have_the_same_first_loss(config, padding):
    job = replace(TINY, entries=entries(config, 4), padding=padding)
    assert first_loss("ours", job) == near(first_loss("plain", job))


@pytest.mark.parametrize("side", SIDES)
def test_every_side_trains_on(side):
    one_pass = SIDES[side](replace(TINY, dropout=0.0, settings={"learning_rate": 5e-5}), torch.device("cpu"))
    first, *_, last = (float(one_pass()) for _ in range(8))
    assert last < first


def test_a_job_survives_its_way_to_the_worker():
    assert from_json(TINY.as_json("floor")) == ("floor", TINY)


def test_settings_are_read_as_yaml():
    assert settings_of(["max_grad_norm=0.5", "group_by_length=false"]) == {
        "max_grad_norm": 0.5,
        "group_by_length": False,
    }


def test_the_deepest_mapped_layer_is_the_one_of_its_config():
    assert [max(t for _, t, _ in entries(config, 12)) for config in MAPPED] == [12, 12, 8, 8]
    assert {ratio.one: ratio.target for ratio in targets("maps-8", "8x512")}["ours"] == 0.75


def test_sides_take_turns_in_going_first_and_only_counted_rounds_are_kept():
    order = []

    def side(name):
        def one_pass():
            order.append(name)
            return {"seconds": len(order)}

        return one_pass

    costs = take_turns({name: side(name) for name in "abc"}, rounds=6, warmup=1)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert [one[0] for one in rounds[1:]].count("a") == 2
    assert {one[0] for one in rounds[1:4]} == {one[0] for one in rounds[4:]} == set("abc")
    assert all(sorted(one) == list("abc") for one in rounds)
    assert [len(found) for found in costs.values()] == [6, 6, 6]
    assert min(cost["seconds"] for found in costs.values() for cost in found) == 4


def test_a_ratio_is_one_of_two_passes_of_the_same_round():
    costs = {"a": [{"seconds": 2.0}, {"seconds": 9.0}], "b": [{"seconds": 1.0}, {"seconds": 3.0}]}
    assert ratios(costs, "a", "b") == [2.0, 3.0]
    assert spread([1.0, 3.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_a_sample_of_an_epoch_has_its_padded_tokens():
    lengths = torch.randint(3, 60, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = grouped(lengths, epoch=0, seed=1)
    assert sorted(row for rows in batches for row in rows) == list(range(4000))

    def padded(some):
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in some) / len(some)

    assert padded(sample(batches, lengths, 8)) == pytest.approx(padded(batches), rel=0.03)
    assert padded(shuffled(4000, 0, 1)) > 1.5 * padded(batches)


def test_entries_grow_one_by_one_and_begin_with_the_deepest_layer():
    made = dict(jobs("entries", replace(TINY, layers=12), small=False))
    assert list(made) == [len(set(job.entries)) for job in made.values()] == [1, 2, 4, 9, 18, 36]
    assert {job.deepest for job in made.values()} == {12}


def test_batches_of_growing_length_have_as_many_tokens():
    made = dict(jobs("length, maps", TINY, small=False))
    assert {job.batch_size * job.length for job in made.values()} == {2048}


def test_look_ups_are_timed_on_a_cache_that_holds_all_samples(tmp_path):
    assert all(seconds > 0 for seconds in read_batches(tmp_path, samples=300, batch_size=4, rounds=2, batches=3))


@pytest.fixture
def run(monkeypatch, capsys):
    """The main function of a script, by its options; the workers it starts are processes."""

    def call(main, *options):
        monkeypatch.setattr(sys, "argv", ["script", "--small", "--json", *map(str, options)])
        main()
        return json.loads(capsys.readouterr().out)

    return call


def test_a_step_is_timed_from_the_command_line(run):
    found = run(step.main, "--config", "maps", "--without", "cached", "plain")
    (line,) = found["lines"]
    assert line["sides"] == "ours / floor"
    assert len(line["ratios"]) == 2 and line["ratio"] > 0 and min(line["mib"]) > 0


@pytest.mark.slow
def test_the_job_of_the_peers_is_timed_and_scored_from_the_command_line(run, tmp_path):
    given = ("--peers", "--work", tmp_path, "--envs", tmp_path / "envs")
    found = run(peers.main, *given)
    losses = found["first losses"]
    assert losses["ours"] == near(losses["plain"])
    assert {line["tool"] for line in found["lines"]} == {"ours", "ours, cached", peers.FILLING, peers.READING}
    rows = torch.load(tmp_path / "models" / "rows.pt")
    options = Namespace(work=tmp_path, envs=tmp_path, precision="float32", learning_rate=1e-3, epochs=2, seeds=[1])
    (scored,) = peers.parity([], tmp_path / "models", rows, options)
    assert len(scored["scores"]) == 2 and 0 < scored["scores"][-1] <= 100

"""Families of transformers: some that fell short once work, and none comes out worse than the page says."""

from __future__ import annotations

import pytest
from every_family import PAGE, reason_of, result_of, results_on, walk, worse
from family_checks import check
from family_models import families

SAMPLE = {  # each of a kind of its own that once went wrong
    "glm4v_vision": "works",  # patches of several pictures in one row
    "mamba": "works without attention",  # a list of entries that named maps it does not have
    "gpt_neo": "works",  # a pattern of layers that was not cut with them
    "deepseek_v3": "works",  # layers of two kinds
    "clip": "works without attention",  # the depth in two sub-configs
    "deepseek_v4": "works",  # hidden states with a dimension after their length
    "esm": "works",  # a weight whose width is the number of layers
}


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_that_fell_short(family):
    found = check(family)
    assert not found["faults"]
    assert result_of(found) == SAMPLE[family], reason_of(found)


def test_a_family_that_comes_out_worse_is_named():
    page = "### Works\n| `one` |\n| `two` |\n### Not built\n| `three` |\n"
    walked = [
        {"family": "one", "faults": ["padding counts"], "maps": 1, "loss": 1.0},
        {"family": "two", "faults": [], "maps": 1, "loss": 1.0},
        {"family": "three", "faults": [], "maps": 1, "loss": 1.0},
        {"family": "four", "faults": [], "maps": 1, "loss": 1.0},
    ]
    assert worse(walked, page) == [
        "one: works on the page, now falls short: padding counts",
        "four: not there on the page, now works: ",
    ]


def test_the_page_has_every_family():
    assert sorted(results_on(PAGE.read_text(encoding="utf-8"))) == families()


@pytest.mark.slow
def test_no_family_comes_out_worse_than_the_page_says():
    """A quarter of an hour of one core."""
    assert not worse(walk(families()), PAGE.read_text(encoding="utf-8"))

"""The metrics agree with scikit-learn and SciPy, and are defined where those warn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_distillation.data.glue import GLUE_TASKS, GlueTask
from knowledge_distillation.errors import DataError
from knowledge_distillation.evaluation import glue_metrics as metrics
from knowledge_distillation.evaluation.glue_metrics import ComputeMetrics, compute_metrics_for

labels = st.integers(2, 30).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 2), min_size=size, max_size=size).map(np.array)] * 2)
)
numbers = st.integers(3, 30).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(-5, 5), min_size=size, max_size=size).map(np.array)] * 2)
)


@pytest.mark.filterwarnings("ignore:A single label:UserWarning")
@settings(deadline=None)
@given(labels)
def test_label_metrics_agree_with_scikit_learn(pair):
    predictions, references = pair
    assert metrics.accuracy(*pair) == pytest.approx(sklearn.metrics.accuracy_score(references, predictions))
    expected = sklearn.metrics.matthews_corrcoef(references, predictions)
    assert metrics.matthews_correlation(*pair) == pytest.approx(expected, abs=1e-12)
    expected = sklearn.metrics.f1_score(references == 1, predictions == 1, zero_division=0.0)
    assert metrics.f1(*pair) == pytest.approx(expected)


@settings(deadline=None)
@given(numbers)
def test_correlations_agree_with_scipy(pair):
    if min(map(np.ptp, pair)) == 0:
        assert metrics.pearson(*pair) == metrics.spearmanr(*pair) == 0.0
    else:
        assert metrics.pearson(*pair) == pytest.approx(scipy.stats.pearsonr(*pair).statistic, abs=1e-12)
        assert metrics.spearmanr(*pair) == pytest.approx(scipy.stats.spearmanr(*pair).statistic, abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", [0.1, 1e-30, 1e30, 0.0])
@pytest.mark.parametrize("formula", [metrics.pearson, metrics.spearmanr])
def test_a_constant_side_correlates_with_nothing(formula, constant):
    ramp = np.arange(7.0)
    assert formula(np.full(7, constant), ramp) == formula(ramp, np.full(7, constant)) == 0.0


@pytest.mark.filterwarnings("error")
def test_one_class_only_is_defined():
    zeros, ones = np.zeros(5, int), np.ones(5, int)
    assert metrics.f1(zeros, zeros) == metrics.f1(zeros, ones) == metrics.f1(ones, zeros) == 0.0
    assert metrics.f1(ones, ones) == 1.0
    assert metrics.matthews_correlation(ones, ones) == metrics.matthews_correlation(zeros, ones) == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 0.75),
        ("f1", 0.8),
        ("matthews_correlation", 1 / np.sqrt(3)),
        ("pearson", 1 / np.sqrt(3)),
        ("spearmanr", 1 / np.sqrt(3)),
    ],
)
def test_each_metric_is_one_of_evaluate(name, expected):
    import evaluate

    metric = metrics.metric_classes()[name](keep_in_memory=True)
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    assert metric.compute() == {name: pytest.approx(expected)}


def scorer(task: GlueTask) -> ComputeMetrics:
    return compute_metrics_for(task.name, task.metrics, task.num_labels)


@pytest.mark.parametrize("task", GLUE_TASKS.values(), ids=GLUE_TASKS)
def test_every_task_is_scored_by_its_own_metrics(task):
    truth = np.arange(12.0) / 3 if task.is_regression else np.arange(12) % task.num_labels
    outputs = truth[:, None] * 2 - 1 if task.is_regression else np.eye(task.num_labels)[truth] * 5 - 2
    scores = scorer(task)(outputs.astype(np.float32), truth)
    assert scores == pytest.approx(dict.fromkeys(task.metrics, 1.0))
    assert task.primary_metric in scores
    assert {type(score) for score in scores.values()} == {float}


def test_regression_takes_one_number_a_sample_with_or_without_a_last_axis():
    score, truth = scorer(GLUE_TASKS["stsb"]), np.array([0.5, 4.0, 2.0])
    assert score(truth, truth) == score(truth[:, None], truth)


def test_scoring_leaves_the_random_state_alone():
    np.random.seed(3)
    expected = np.random.get_state()[1].copy()
    scorer(GLUE_TASKS["sst2"])(np.eye(2), np.array([0, 1]))
    assert (np.random.get_state()[1] == expected).all()


@pytest.mark.parametrize(
    ("task", "predictions", "references", "message"),
    [
        ("sst2", np.ones((0, 2)), [], "there is nothing to score for sst2: no samples"),
        ("sst2", np.ones((2, 3)), [0, 1], r"predictions \(2, 3\) and labels \(2,\), expected predictions \(2, 2\)"),
        ("sst2", np.ones(2), [0, 1], r"found predictions \(2,\) and labels \(2,\), expected predictions \(2, 2\)"),
        ("stsb", np.ones((3, 2)), [0, 1, 2], r"expected predictions \(3,\) or \(3, 1\) and labels \(3,\)"),
        ("mnli", np.ones((2, 3)), [-1, 0], "mnli: found labels -1, 0, expected 0 to 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(task, predictions, references, message):
    with pytest.raises(DataError, match=message):
        scorer(GLUE_TASKS[task])(predictions, np.array(references))


def test_nothing_slow_is_imported_before_the_first_score():
    code = (
        "import sys; from knowledge_distillation.data import glue;"
        "from knowledge_distillation.evaluation import glue_metrics;"
        "glue_metrics.compute_metrics_for('sst2', glue.GLUE_TASKS['sst2'].metrics, 2);"
        "print([name for name in ('torch', 'transformers', 'datasets', 'evaluate') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

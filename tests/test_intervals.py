"""Bootstrap intervals: coverage, exactness of the shortcuts, memory, and paired comparison."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from smoothtune.errors import UsageError
from smoothtune.evaluation.comparison import paired_difference
from smoothtune.evaluation.intervals import RESAMPLES, bootstrap, estimate, metric_estimate
from smoothtune.evaluation.metrics import CORRELATIONS, FUNCTIONS, Rows
from smoothtune.evaluation.scores import TaskAnswers

TRUTH = {"accuracy": 0.8, "macro_f1": 0.8, "pearson": 0.6, "spearman": 6 / math.pi * math.asin(0.3)}
"""What `simulated` has for infinitely many rows (Spearman's: of two normal variables)."""


def simulated(metric: str, n: int, seed: int) -> tuple[Rows, Rows]:
    generator = np.random.default_rng(seed)
    if metric in CORRELATIONS:
        targets = generator.normal(size=n)
        return 0.6 * targets + 0.8 * generator.normal(size=n), targets
    targets = generator.integers(3, size=n)
    return np.where(generator.random(n) < 0.7, targets, generator.integers(3, size=n)), targets


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_intervals_cover_the_truth_about_95_times_in_100(metric: str) -> None:
    # Of 151 rows the accuracy is never exactly the truth, 0.8; of 150 the coverage would hang on such ties.
    generator = np.random.default_rng(0)
    found = [metric_estimate(metric, *simulated(metric, 151, seed), generator, resamples=500) for seed in range(600)]
    covered = np.mean([e.low <= TRUTH[metric] <= e.high for e in found])
    assert 0.915 <= covered <= 0.975


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_shortcuts_draw_from_the_same_distribution_as_rows(metric: str, count: int) -> None:
    predictions, targets = simulated(metric, 60, 1)
    other = np.random.default_rng(9).permutation(predictions)
    several = [predictions, other][:count]
    draws = bootstrap(metric, several, targets, np.random.default_rng(2), resamples=20_000)
    rows = np.random.default_rng(3).integers(60, size=(20_000, 60))
    plain = np.stack([FUNCTIONS[metric](p[rows], targets[rows]) for p in several])
    assert draws.shape == plain.shape == (count, 20_000)
    np.testing.assert_allclose(draws.mean(axis=1), plain.mean(axis=1), atol=0.004)
    np.testing.assert_allclose(np.cov(draws), np.cov(plain), rtol=0.06, atol=2e-4)


def test_ranks_by_counting_equal_ranks_by_sorting() -> None:
    generator = np.random.default_rng(5)
    predictions, targets = generator.integers(6, size=(2, 40)) / 3
    draws = bootstrap("spearman", [predictions], targets, np.random.default_rng(1), resamples=50)
    rows = np.random.default_rng(1).integers(40, size=(50, 40))
    np.testing.assert_allclose(draws[0], FUNCTIONS["spearman"](predictions[rows], targets[rows]), atol=1e-12)


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize(("n", "resamples"), [(10_000, 200), (1_000_000, 3)])
def test_memory_stays_under_100_megabytes(metric: str, n: int, resamples: int) -> None:
    predictions, targets = simulated(metric, n, 1)
    tracemalloc.start()
    metric_estimate(metric, predictions, targets, np.random.default_rng(1), resamples=resamples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_undefined_metrics_have_undefined_limits(metric: str) -> None:
    nothing = metric_estimate(metric, np.zeros(0), np.zeros(0), np.random.default_rng(0))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.n == 0
    assert nothing.draws.shape == (RESAMPLES,)


def test_predictions_that_are_not_finite() -> None:
    broken = np.array([0.1, math.nan, 0.3, 0.4])
    for metric in CORRELATIONS:
        assert math.isnan(metric_estimate(metric, broken, np.arange(4.0), np.random.default_rng(0)).low)


def test_limits_are_unknown_when_too_many_draws_are() -> None:
    draws = np.where(np.arange(100) < 5, np.nan, np.arange(100) / 100)
    assert estimate(0.5, draws, 9).low == pytest.approx(np.quantile(draws[5:], 0.025))
    draws[5] = np.nan
    assert math.isnan(estimate(0.5, draws, 9).low)
    two = metric_estimate("pearson", np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.random.default_rng(0))
    assert two.value == pytest.approx(1)
    assert math.isnan(two.low)


def pair(metric: str, kind: str, n: int = 300) -> tuple[TaskAnswers, TaskAnswers]:
    """Two models that mostly make the same mistakes."""
    first, targets = simulated(metric, n, 4)
    generator = np.random.default_rng(8)
    if metric in CORRELATIONS:
        second = first + 0.3 * generator.normal(size=n)
    else:
        second = np.where(generator.random(n) < 0.05, generator.integers(3, size=n), first)
    return TaskAnswers(kind, metric, first, targets), TaskAnswers(kind, metric, second, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_paired_intervals_are_narrower_than_unpaired_ones(metric: str) -> None:
    a, b = pair(metric, "regression" if metric in CORRELATIONS else "classification")
    found = paired_difference({"t": a}, {"t": b}, seed=1)
    value = FUNCTIONS[metric](a.predictions, a.targets) - FUNCTIONS[metric](b.predictions, b.targets)
    assert found.tasks["t"].value == found.mean.value == pytest.approx(float(value))
    assert found.mean.low == found.tasks["t"].low < value < found.mean.high
    alone = metric_estimate(metric, a.predictions, a.targets, np.random.default_rng(1))
    assert found.mean.high - found.mean.low < 0.7 * (alone.high - alone.low)


def test_a_model_does_not_differ_from_itself() -> None:
    a, b = pair("pearson", "regression"), pair("macro_f1", "classification")
    same = {"a": a[0], "b": b[0]}
    found = paired_difference(same, same, seed=1)
    assert (found.mean.value, found.mean.low, found.mean.high, found.mean.n) == (0, 0, 0, 600)


def test_the_mean_difference_averages_tasks_and_changes_sign_with_the_order() -> None:
    pairs = {"sts": pair("pearson", "regression"), "sst": pair("accuracy", "classification")}
    a, b = ({name: both[i] for name, both in pairs.items()} for i in (0, 1))
    forth, back = paired_difference(a, b, seed=1), paired_difference(b, a, seed=1)
    assert forth.mean.value == pytest.approx((forth.tasks["sts"].value + forth.tasks["sst"].value) / 2)
    np.testing.assert_allclose(forth.mean.draws, (forth.tasks["sts"].draws + forth.tasks["sst"].draws) / 2)
    assert back.mean.value == -forth.mean.value
    assert back.tasks["sts"].low == pytest.approx(-forth.tasks["sts"].high)


def test_only_the_same_rows_are_compared() -> None:
    a, b = pair("accuracy", "classification", 4)
    moved = replace(b, targets=np.where(np.arange(4) == 2, b.targets + 1, b.targets))
    shorter = replace(b, predictions=b.predictions[:3], targets=b.targets[:3])
    row = (
        f"comparison: task t row 2 has targets {a.targets[2]} and {a.targets[2] + 1}; compare answers to the same rows"
    )
    for other, text in (
        ({"t": moved}, row),
        ({"t": shorter}, "comparison: task t has 4 and 3 rows; compare answers to the same rows"),
        (
            {"t": replace(b, metric="macro_f1")},
            "comparison: task t is classification by accuracy and classification by macro_f1; give both alike",
        ),
        ({"u": b}, "comparison: tasks are ['t'] and ['u']; compare answers to the same tasks"),
    ):
        with pytest.raises(UsageError) as error:
            paired_difference({"t": a}, other, seed=1)
        assert str(error.value) == text
    with pytest.raises(UsageError, match="scores: got answers of no task"):
        paired_difference({}, {}, seed=1)

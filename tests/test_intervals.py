"""Intervals: coverage, limits at 0 and 1, memory; the bootstrap and paired comparison."""

from __future__ import annotations

import math
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from smoothtune.errors import UsageError
from smoothtune.evaluation import correlation_intervals
from smoothtune.evaluation.bootstrap import RESAMPLES, bootstrap, percentile_interval
from smoothtune.evaluation.comparison import paired_difference
from smoothtune.evaluation.correlation_intervals import correlation_interval
from smoothtune.evaluation.f1_intervals import f1_interval
from smoothtune.evaluation.intervals import Estimate, mean_estimate, metric_estimate
from smoothtune.evaluation.metrics import CORRELATIONS, FUNCTIONS, Rows
from smoothtune.evaluation.proportions import accuracy_interval, proportion_interval
from smoothtune.evaluation.scores import TaskAnswers

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from interval_coverage import NEAR_ONE, SIMULATIONS, Simulation, coverage


def simulated(metric: str, n: int, seed: int) -> tuple[Rows, Rows]:
    generator = np.random.default_rng(seed)
    if metric in CORRELATIONS:
        targets = generator.normal(size=n)
        return 0.6 * targets + 0.8 * generator.normal(size=n), targets
    targets = generator.integers(3, size=n)
    return np.where(generator.random(n) < 0.7, targets, generator.integers(3, size=n)), targets


@pytest.mark.parametrize(
    ("simulation", "rows"),
    [(simulation, rows) for simulation in SIMULATIONS for rows in simulation.rows if rows < 1000],
    ids=lambda value: f"{value.metric}, {value.population}" if isinstance(value, Simulation) else str(value),
)
def test_intervals_hold_the_truth_about_95_times_in_100(simulation: Simulation, rows: int) -> None:
    for window in simulation.windows:
        assert 0.925 <= coverage(simulation, rows, window, 60).mean <= 0.995


def test_the_percentile_bootstrap_of_few_rows_would_not() -> None:
    def percentile(truth: float, rows: int, generator: np.random.Generator) -> Estimate:
        right = generator.random(rows) < truth
        draws = bootstrap("accuracy", [right], np.ones(rows, bool), generator, resamples=200)[0]
        return Estimate(right.mean(), *percentile_interval(draws), rows)

    old = Simulation("accuracy", "bootstrap", (NEAR_ONE,), percentile)
    assert coverage(old, 15, NEAR_ONE, 60).mean < 0.8


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (15, 15, 0.796, 1), (0, 15, 0, 0.204), (14, 15, 0.702, 0.997), (13, 15, 0.621, 0.976), (8, 15, 0.301, 0.752),
        (1, 1, 0.207, 1), (77, 80, 0.895, 0.990), (400, 1000, 0.370, 0.431),
    ],
)  # fmt: skip
def test_intervals_of_shares(count: int, total: int, low: float, high: float) -> None:
    found = proportion_interval(count, total)
    assert (float(found[0]), float(found[1])) == pytest.approx((low, high), abs=6e-4)


def test_where_all_rows_or_none_are_right_the_limit_is_the_exact_one() -> None:
    assert np.round(accuracy_interval(15, 15), 3).tolist() == [0.782, 1]
    assert np.round(accuracy_interval(0, 15), 3).tolist() == [0, 0.218]
    assert accuracy_interval(14, 15) == proportion_interval(14, 15)


def test_intervals_of_shares_hold_the_share_mirror_and_are_unknown_without_rows() -> None:
    for total in (1, 2, 3, 4, 15, 50, 51, 300):
        counts = np.arange(total + 1)
        low, high = proportion_interval(counts, total)
        assert (low <= counts / total).all()
        assert (counts / total <= high).all()
        np.testing.assert_allclose(low, 1 - high[::-1], atol=1e-12)
        assert (np.diff(low) > 0).all()
    assert np.isnan(proportion_interval(0, 0)).all()


def test_15_of_15_right_rows_have_an_interval_by_every_metric_of_classes() -> None:
    targets = np.arange(15) % 2
    for metric, low in (("accuracy", 0.782), ("macro_f1", 0.805)):
        right, wrong = (metric_estimate(metric, answers, targets) for answers in (targets, 1 - targets))
        assert (right.value, right.low, right.high) == pytest.approx((1, low, 1), abs=1e-3)
        assert (wrong.value, wrong.low) == (0, 0)
        assert 0.15 < wrong.high < 0.35
    low, high = f1_interval(15, 15)
    assert (float(low), float(high)) == pytest.approx((2 * 0.7961 / 1.7961, 1), abs=1e-3)


def test_the_mean_over_tasks_has_an_interval_where_every_task_is_at_1() -> None:
    perfect = metric_estimate("accuracy", np.ones(15), np.ones(15))
    found = mean_estimate([perfect, perfect])
    assert (found.value, found.high, found.n) == (1, 1, 30)
    assert found.low == pytest.approx(1 - (1 - perfect.low) / math.sqrt(2))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("levels", [4, 1000])
def test_correlations_without_each_row_are_those_of_the_other_rows(metric: str, levels: int) -> None:
    generator = np.random.default_rng(7)
    targets = generator.integers(levels, size=40)
    predictions = targets + generator.integers(levels, size=40)
    others = [np.delete(np.arange(40), row) for row in range(40)]
    z = np.arctanh([FUNCTIONS[metric](predictions[rows], targets[rows]) for rows in others])
    half = stats.t.ppf(0.975, 38) * math.sqrt(39 * z.var())
    middle = np.arctanh(FUNCTIONS[metric](predictions, targets))
    expected = np.tanh(middle - half), np.tanh(middle + half)
    assert correlation_interval(metric, predictions, targets) == pytest.approx(expected, abs=1e-9)


def test_spearman_of_many_rows_is_almost_that_of_exact_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = simulated("spearman", 3000, 1)
    many = correlation_interval("spearman", predictions, targets)
    monkeypatch.setattr(correlation_intervals, "_EXACT", 3000)
    assert many == pytest.approx(correlation_interval("spearman", predictions, targets), abs=2e-5)


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
    bootstrap(metric, [predictions], targets, np.random.default_rng(1), resamples=resamples)
    metric_estimate(metric, predictions, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_undefined_metrics_have_undefined_limits(metric: str) -> None:
    nothing = metric_estimate(metric, np.zeros(0), np.zeros(0))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.n == 0
    assert bootstrap(metric, [np.zeros(0)], np.zeros(0), np.random.default_rng(0)).shape == (1, RESAMPLES)


@pytest.mark.parametrize("metric", sorted(CORRELATIONS))
@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        ([0.1, math.nan, 0.3, 0.4], [0, 1, 2, 3]),
        ([1.0, 2.0, 4.0], [1, 3, 2]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ([0, 0, 0, 0, 1], [1, 2, 3, 4, 5]),
    ],
    ids=["not finite", "three rows", "a line", "constant but one"],
)
def test_correlations_whose_limits_are_unknown(metric: str, predictions: list[float], targets: list[float]) -> None:
    found = metric_estimate(metric, np.array(predictions), np.array(targets, dtype=float))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_limits_are_unknown_when_too_many_draws_are() -> None:
    draws = np.where(np.arange(100) < 5, np.nan, np.arange(100) / 100)
    assert percentile_interval(draws)[0] == pytest.approx(np.quantile(draws[5:], 0.025))
    draws[5] = np.nan
    assert math.isnan(percentile_interval(draws)[0])


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
    alone = metric_estimate(metric, a.predictions, a.targets)
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
    widths = [found.high - found.low for found in (*forth.tasks.values(), forth.mean)]
    assert widths[2] == pytest.approx(math.hypot(*widths[:2]) / 2, rel=0.1)  # the tasks' rows are independent
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

"""Metrics against scikit-learn and SciPy, and scores over tasks."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from smoothtune.errors import UsageError
from smoothtune.evaluation.metrics import FUNCTIONS, METRICS, accuracy, macro_f1, pearson, spearman, why_undefined
from smoothtune.evaluation.scores import PointScores, TaskAnswers, mean_score, point_scores, score_tasks

CLASSES = st.integers(1, 40).flatmap(lambda n: arrays(np.int64, (2, n), elements=st.integers(0, 6)))
NUMBERS = st.integers(2, 30).flatmap(
    lambda n: arrays(np.float64, (2, n), elements=st.integers(-50, 50).map(lambda i: i / 10))
)


@given(CLASSES)
def test_class_metrics_equal_scikit_learn(pair: np.ndarray) -> None:
    predictions, targets = pair
    assert accuracy(predictions, targets) == pytest.approx(accuracy_score(targets, predictions))
    expected = f1_score(targets, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, targets) == pytest.approx(expected)


@given(NUMBERS)
def test_correlations_equal_scipy_and_are_undefined_together(pair: np.ndarray) -> None:
    predictions, targets = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stats.pearsonr(predictions, targets).statistic, stats.spearmanr(predictions, targets).statistic
    assert pearson(predictions, targets) == pytest.approx(expected[0], nan_ok=True, abs=1e-9)
    assert spearman(predictions, targets) == pytest.approx(expected[1], nan_ok=True, abs=1e-9)


def test_spearman_gives_ties_their_average_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(np.array([0, 1, 1, 9]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@given(NUMBERS, st.floats(0.1, 10), st.floats(-5, 5))
def test_pearson_ignores_scale_and_shift_and_spearman_any_rising_function(
    pair: np.ndarray, scale: float, shift: float
) -> None:
    predictions, targets = pair
    moved = pearson(scale * predictions + shift, targets)
    assert moved == pytest.approx(pearson(predictions, targets), nan_ok=True, abs=1e-6)
    bent = spearman(np.exp(predictions), targets)
    assert bent == pytest.approx(spearman(predictions, targets), nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("metric", FUNCTIONS)
@given(seed=st.integers(0, 99), n=st.integers(0, 12))
def test_resample_axes_are_rows_computed_alone(metric: str, seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    predictions, targets = generator.integers(3, size=(2, 2, 3, n))
    together = FUNCTIONS[metric](predictions, targets)
    assert together.shape == (2, 3)
    for place in np.ndindex(2, 3):
        alone = float(FUNCTIONS[metric](predictions[place], targets[place]))
        assert together[place] == pytest.approx(alone, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("metric", FUNCTIONS)
@given(pair=NUMBERS | st.integers(0, 2).map(lambda n: np.ones((2, n))))
def test_a_reason_is_given_exactly_where_the_metric_is_nan(metric: str, pair: np.ndarray) -> None:
    reason = why_undefined(metric, *pair)
    assert (reason is None) == math.isfinite(FUNCTIONS[metric](*pair))


@pytest.mark.parametrize(
    ("predictions", "targets", "reason"),
    [
        ([], [], "there are no rows"),
        ([1.0], [2.0], "there is one row and a correlation needs two"),
        ([0.3, 0.3], [1.0, 2.0], "all 2 predictions are 0.3"),
        ([0.3, 0.4, 0.5], [3.0, 3.0, 3.0], "all 3 targets are 3"),
        ([0.3, math.nan, math.inf], [1.0, 2.0, 3.0], "2 of 3 predictions are not finite"),
    ],
)
@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.filterwarnings("error")
def test_reasons(metric: str, predictions: list[float], targets: list[float], reason: str) -> None:
    assert why_undefined(metric, np.array(predictions), np.array(targets)) == reason
    assert math.isnan(FUNCTIONS[metric](np.array(predictions), np.array(targets)))


def test_nearly_constant_predictions_still_correlate() -> None:
    targets = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(1e-200 * targets, targets) == pytest.approx(1)


def test_shapes_must_agree() -> None:
    text = r"metrics: predictions have shape \(3, 1\) and targets \(3,\); give one of each per row"
    for metric in FUNCTIONS.values():
        with pytest.raises(UsageError, match=text):
            metric(np.zeros((3, 1)), np.zeros(3))


def answers() -> dict[str, TaskAnswers]:
    generator = np.random.default_rng(3)
    stars, same, likeness = generator.integers(5, size=300), generator.integers(2, size=200), generator.random(150) * 5
    return {
        "sst": TaskAnswers("classification", "accuracy", np.where(generator.random(300) < 0.5, stars, 2), stars),
        "quora": TaskAnswers("binary", "macro_f1", np.where(generator.random(200) < 0.8, same, 1 - same), same),
        "sts": TaskAnswers("regression", "pearson", likeness + generator.normal(size=150), likeness),
    }


def test_wangs_score() -> None:
    metrics, values = ["accuracy", "accuracy", "pearson"], np.array([0.531, 0.861, 0.870])
    assert round(float(mean_score(metrics, values)), 3) == 0.776
    baseline = np.array([0.381, 0.651, 0.187])
    assert round(float(mean_score(metrics, baseline)), 3) == 0.542


def test_scores_and_their_fast_path_agree() -> None:
    given_answers = answers()
    scores, points = score_tasks(given_answers), point_scores(given_answers)
    assert {name: {m: e.value for m, e in task.items()} for name, task in scores.tasks.items()} == points.tasks
    assert (scores.score.value, scores.plain_mean.value) == (points.score, points.plain_mean)
    assert points.main == {name: points.tasks[name][task.metric] for name, task in given_answers.items()}
    r = points.main["sts"]
    assert points.plain_mean == pytest.approx((points.main["sst"] + points.main["quora"] + r) / 3)
    assert points.score == pytest.approx((points.main["sst"] + points.main["quora"] + (r + 1) / 2) / 3)
    for name, task in given_answers.items():
        assert list(points.tasks[name]) == list(METRICS[task.kind])
        assert all(e.low < e.value < e.high and e.n == len(task) for e in scores.tasks[name].values())
    assert scores.score.low < scores.score.value < scores.score.high


def test_interval_of_the_score_is_that_of_independent_tasks() -> None:
    scores = score_tasks(answers())
    main = [scores.tasks["sst"]["accuracy"], scores.tasks["quora"]["macro_f1"], scores.tasks["sts"]["pearson"]]
    for mean, scales in ((scores.score, (1, 1, 0.5)), (scores.plain_mean, (1, 1, 1))):
        distances = [scale * (e.value - e.low) for e, scale in zip(main, scales, strict=True)]
        assert mean.value - mean.low == pytest.approx(math.hypot(*distances) / 3)


def test_scores_repeat_and_do_not_depend_on_the_tasks_beside() -> None:
    given_answers = answers()
    scores = score_tasks(given_answers)
    assert score_tasks(given_answers).to_json() == scores.to_json()
    assert score_tasks({"sts": given_answers["sts"]}).tasks["sts"] == scores.tasks["sts"]


def test_json_of_scores_has_null_for_nan() -> None:
    constant = TaskAnswers("regression", "pearson", np.ones(3), np.arange(3.0))
    scores = score_tasks({"sts": constant, "sst": answers()["sst"]})
    found = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    nothing = {"value": None, "low": None, "high": None}
    assert set(found) == {"tasks", "score", "plain_mean"}
    assert found["tasks"]["sts"] == {metric: {**nothing, "n": 3} for metric in ("pearson", "spearman")}
    assert found["score"] == found["plain_mean"] == nothing
    assert set(found["tasks"]["sst"]["accuracy"]) == {"value", "low", "high", "n"}
    assert isinstance(point_scores({"sts": constant}), PointScores)


@pytest.mark.parametrize(
    ("kind", "metric", "predictions", "targets", "text"),
    [
        (
            "binary",
            "pearson",
            [0],
            [1],
            "answers: 'pearson' is not a metric of a binary task; take one of accuracy, macro_f1",
        ),
        ("binary", "accuracy", [0, 0.4], [1, 1], "answers: predictions row 1 of a binary task is 0.4; give 0 or 1"),
        (
            "classification",
            "accuracy",
            [0, 1],
            [1, -100],
            "answers: targets row 1 of a classification task is -100; give class numbers 0, 1, 2, ...",
        ),
        (
            "regression",
            "pearson",
            [0, 1],
            [1],
            "answers: got 2 predictions and 1 targets; give one prediction per target",
        ),
        ("regression", "pearson", [0], [math.nan], "answers: targets row 0 is not finite; leave such rows out"),
        (
            "regression",
            "pearson",
            [[0]],
            [1],
            r"answers: predictions have shape (1, 1); give one number per row, shape (n,)",
        ),
    ],
)
def test_answers_are_checked(kind: str, metric: str, predictions: list, targets: list, text: str) -> None:
    with pytest.raises(UsageError) as error:
        TaskAnswers(kind, metric, predictions, targets)  # type: ignore[arg-type]
    assert str(error.value) == text


def test_scores_of_no_task() -> None:
    with pytest.raises(UsageError, match="scores: got answers of no task; give those of at least one"):
        point_scores({})

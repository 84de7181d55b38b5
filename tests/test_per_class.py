"""Each class and the confusion matrix against scikit-learn, the largest class, and the evaluation that holds them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from smoothtune.evaluation.largest_class import constant_answers, largest_class
from smoothtune.evaluation.per_class import class_scores, confusion
from smoothtune.evaluation.scores import TaskAnswers
from smoothtune.workflow.evaluation import evaluation_of

CLASSES = 5
PAIRS = st.integers(1, 40).flatmap(lambda n: arrays(np.int64, (2, n), elements=st.integers(0, CLASSES - 1)))


@given(PAIRS)
def test_class_scores_equal_scikit_learn(pair: np.ndarray) -> None:
    predictions, targets = pair
    found = class_scores(predictions, targets, CLASSES)
    metrics = [[e.value for e in (scores.precision, scores.recall, scores.f1)] for scores in found]
    *expected, rows = precision_recall_fscore_support(targets, predictions, labels=range(CLASSES), zero_division=0)
    np.testing.assert_allclose(metrics, np.transpose(expected))
    assert [scores.rows for scores in found] == list(rows)


@given(PAIRS)
def test_confusion_equals_scikit_learn(pair: np.ndarray) -> None:
    predictions, targets = pair
    cells = confusion(predictions, targets, CLASSES)
    np.testing.assert_array_equal(cells.matrix(CLASSES), confusion_matrix(targets, predictions, labels=range(CLASSES)))
    assert (cells.rows > 0).all()


@given(PAIRS)
def test_limits_hold_their_value_and_are_unknown_exactly_without_rows(pair: np.ndarray) -> None:
    for scores in class_scores(*pair, CLASSES):
        for estimate in (scores.precision, scores.recall, scores.f1):
            assert math.isnan(estimate.low) == math.isnan(estimate.high) == (estimate.n == 0)
            if estimate.n:
                assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
                assert estimate.low < estimate.high


def test_the_largest_class_is_the_commonest_and_of_several_the_first() -> None:
    assert largest_class(np.array([2, 1, 1, 2, 0])) == 1
    assert largest_class(np.array([0.0, 1.0, 1.0])) == 1
    answers = TaskAnswers("binary", "macro_f1", [0, 1], [1, 1])  # type: ignore[arg-type]
    assert constant_answers(answers, 0).predictions.tolist() == [0, 0]


ANSWERS = {
    "mood": TaskAnswers("classification", "accuracy", np.array([0, 1, 1]), np.array([0, 1, 2])),
    "near": TaskAnswers("regression", "pearson", np.array([0.0, 1, 3]), np.array([0.0, 1, 2])),
}
LABELS = {"mood": ("a", "b", "c"), "near": None}


def test_json_has_classes_confusion_and_baselines_beside_the_scores() -> None:
    probe = {"mood": TaskAnswers("classification", "accuracy", np.array([0, 0, 2]), np.array([0, 1, 2]))}
    found = evaluation_of(ANSWERS, LABELS, largest={"mood": "b"}, baselines={"probe": probe}).to_json()
    found = json.loads(json.dumps(found, allow_nan=False))
    mood = found["tasks"]["mood"]
    assert set(mood) == {"accuracy", "macro_f1", "per_class", "confusion"}
    assert set(mood["per_class"]) == {"a", "b", "c"}
    assert mood["per_class"]["c"]["rows"] == 1
    assert mood["per_class"]["c"]["precision"] == {"value": 0.0, "low": None, "high": None, "n": 0}
    assert mood["per_class"]["b"]["recall"]["value"] == 1
    assert mood["confusion"] == [
        {"label": "a", "prediction": "a", "rows": 1},
        {"label": "b", "prediction": "b", "rows": 1},
        {"label": "c", "prediction": "b", "rows": 1},
    ]
    assert set(found["tasks"]["near"]) == {"pearson", "spearman"}
    assert found["main"] == {"mood": "accuracy", "near": "pearson"}
    assert list(found["baselines"]) == ["largest class", "probe"]
    assert found["baselines"]["largest class"]["tasks"]["mood"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["baselines"]["largest class"]["labels"] == {"mood": "b"}
    assert found["baselines"]["probe"]["labels"] == {"mood": None}
    assert found["baselines"]["probe"]["score"] is None  # the mean of some tasks is not that of all


def test_a_regression_alone_has_no_largest_class() -> None:
    found = evaluation_of({"near": ANSWERS["near"]}, LABELS, largest={"mood": "b"})
    assert found.to_json()["baselines"] == {}

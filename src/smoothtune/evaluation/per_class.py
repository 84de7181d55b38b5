"""Precision, recall and F1 of each class with 95 % intervals, and the confusion matrix. Knows nothing of label names.

Legend: n rows, C classes, numbered 0 to C - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smoothtune.evaluation.f1_intervals import f1_interval
from smoothtune.evaluation.intervals import Estimate
from smoothtune.evaluation.metrics import Floats, Rows
from smoothtune.evaluation.proportions import accuracy_interval


@dataclass(frozen=True, slots=True)
class ClassScores:
    """What a model does on one class that `rows` targets have; the `n` of each metric is its denominator.

    A metric of no rows is 0, as in scikit-learn with `zero_division=0`, and its limits are `nan`. F1 counts the rows
    that are of the class or predicted to be.
    """

    rows: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True, slots=True)
class Cells:
    """The occupied cells of a confusion matrix: class numbers and rows of each, (K,), by target, then prediction."""

    targets: NDArray[np.int64]
    predictions: NDArray[np.int64]
    rows: NDArray[np.int64]

    def matrix(self, classes: int) -> NDArray[np.int64]:
        """The whole matrix (C, C): a row for each target, a column for each prediction."""
        whole = np.zeros((classes, classes), dtype=np.int64)
        whole[self.targets, self.predictions] = self.rows
        return whole


def confusion(predictions: Rows, targets: Rows, classes: int) -> Cells:
    """The confusion matrix of class numbers (n,) and (n,) below `classes`, without its empty cells."""
    cells, rows = np.unique(np.asarray(targets, np.int64) * classes + predictions, return_counts=True)
    cell_targets, cell_predictions = np.divmod(cells, classes)
    return Cells(cell_targets, cell_predictions, rows)


def class_scores(predictions: Rows, targets: Rows, classes: int) -> list[ClassScores]:
    """The scores of each of the `classes`, in their order, from class numbers (n,) and (n,)."""
    predicted, actual = (np.bincount(column, minlength=classes) for column in (predictions, targets))
    right = np.bincount(targets[predictions == targets], minlength=classes)
    either = predicted + actual - right
    columns = (
        _estimates(right, predicted, predicted, accuracy_interval(right, predicted)),
        _estimates(right, actual, actual, accuracy_interval(right, actual)),
        _estimates(2 * right, predicted + actual, either, f1_interval(right, either)),
    )
    return [ClassScores(int(rows), *metrics) for rows, *metrics in zip(actual, *columns, strict=True)]


def _estimates(counts: Rows, totals: Rows, rows: Rows, limits: tuple[Floats, Floats]) -> list[Estimate]:
    columns = (counts / np.maximum(totals, 1), *limits, rows)
    return [
        Estimate(float(value), float(low), float(high), int(n)) for value, low, high, n in zip(*columns, strict=True)
    ]

"""95 % intervals of F1 of one class and of macro-F1, from counts of classes.

F1 is 2 J / (1 + J), where J is the share of right rows among those that are of the class or predicted to be. Given their
number J is a proportion, so an interval of J is one of F1. Legend: C classes, K occupied cells of the confusion matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from smoothtune.evaluation.metrics import Floats, Rows, classes_of
from smoothtune.evaluation.proportions import Z, wilson

_UNSEEN = 1.0  # errors, spread over all pairs of classes, that tie the classes together where no error was seen


def f1_interval(right: ArrayLike, either: ArrayLike) -> tuple[Floats, Floats]:
    """Limits (...) of F1 for `right` rows (...) of the `either` (...) that are of the class, or predicted, or both.

    Wilson's limits of J, the share of the two; `nan` where `either` is 0.
    """
    x, n = np.broadcast_arrays(np.asarray(right, dtype=np.float64), np.asarray(either, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = wilson(x, n, Z)
    low, high = np.where(x == 0, 0, low), np.where(x == n, 1, high)  # free of rounding where F1 is 0 or 1
    return _f1(np.where(n > 0, low, np.nan)), _f1(np.where(n > 0, high, np.nan))


def macro_f1_interval(predictions: Rows, targets: Rows) -> tuple[float, float]:
    """Limits of macro-F1 over the classes that occur in predictions (n,) or targets (n,).

    The classes' distances to their limits add up as correlated standard errors do (variance recovery, as in
    `intervals.mean_estimate`); an error lowers the F1 of two classes, which ties them. Few rows pull F1 down, since F1
    is concave in J: the upper limit is raised by that bias. Cost: a sort of the rows, and K.
    """
    counts = _Counts.of(predictions, targets)
    mean = counts.f1.mean()
    return float(max(mean - counts.distance(0), 0)), float(min(mean + counts.distance(1) + counts.bias(), 1))


def _f1(share: Floats) -> Floats:
    return np.asarray(2 * share / (1 + share))


@dataclass(frozen=True, slots=True)
class _Counts:
    """`right`, `predicted`, `actual` (C,) of the classes that occur, and the K wrong cells: their codes and `wrong` rows."""

    right: Rows
    predicted: Rows
    actual: Rows
    wrong_predicted: Rows
    wrong_actual: Rows
    wrong: Rows

    @classmethod
    def of(cls, predictions: Rows, targets: Rows) -> _Counts:
        classes = classes_of(predictions, targets)
        count = len(classes)
        predicted, actual = (np.searchsorted(classes, column) for column in (predictions, targets))
        cells, rows = np.unique(actual * count + predicted, return_counts=True)
        cell_actual, cell_predicted = np.divmod(cells, count)
        wrong = cell_actual != cell_predicted
        return cls(
            right=np.bincount(cell_actual[~wrong], rows[~wrong], minlength=count),
            predicted=np.bincount(predicted, minlength=count),
            actual=np.bincount(actual, minlength=count),
            wrong_predicted=cell_predicted[wrong],
            wrong_actual=cell_actual[wrong],
            wrong=rows[wrong],
        )

    @property
    def either(self) -> Rows:
        """Rows that are of the class, or predicted to be, or both: (C,)."""
        return np.asarray(self.predicted + self.actual - self.right)

    @property
    def f1(self) -> Floats:
        """F1 of each class, (C,)."""
        return _f1(self.right / self.either)

    def bias(self) -> float:
        """By how much macro-F1 is too low on average: half the curvature of F1 in J times the variance of J.

        The shares in it are drawn to that of all classes by two rows, so that few rows do not give a variance of 0.
        """
        right, either = self.right, self.either
        share = (right + 2 * (right.sum() + 0.5) / (either.sum() + 1)) / (either + 2)
        return float((2 * share * (1 - share) / ((1 + share) ** 3 * either)).mean())

    def distance(self, side: int) -> float:
        """From macro-F1 to its lower (0) or upper (1) limit.

        The limit of a mean over m independent classes moves each of them by 1 / sqrt(m) of the way to its own limit, so
        the classes' limits are taken at that part of the standard errors, and their distances times sqrt(m).
        """
        alone = self._distances(Z, side)
        tied = self._combined(alone)
        independent = max((alone.mean() / tied) ** 2, 1.0) if tied > 0 else 1.0
        return self._combined(self._distances(Z / np.sqrt(independent), side)) * float(np.sqrt(independent))

    def _distances(self, z: float, side: int) -> Floats:
        return np.abs(_f1(wilson(self.right, self.either, z)[side]) - self.f1)

    def _combined(self, distances: Floats) -> float:
        """The distance of the mean over classes, from those of the classes (C,)."""
        size = self.predicted + self.actual
        share = size / size.sum()
        spread = 1 - np.square(share).sum()
        unseen = _UNSEEN / spread if len(size) > 1 else 0.0
        errors = size - 2 * self.right + 2 * unseen * share * (1 - share)
        f1 = 2 * self.right / (2 * self.right + errors)
        deviation = np.sqrt(4 * self.right * (1 - f1) ** 2 + errors * f1**2)
        loads = np.divide(distances * f1, deviation, out=np.zeros_like(f1), where=deviation > 0)
        tied = 2 * (self.wrong * loads[self.wrong_actual] * loads[self.wrong_predicted]).sum()
        tied += 2 * unseen * ((loads * share).sum() ** 2 - np.square(loads * share).sum())
        return float(np.sqrt(np.square(distances).sum() + tied)) / len(size)

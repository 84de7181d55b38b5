"""95 % intervals of metrics, of one task and of the mean over tasks. They are computed, not drawn; they know nothing of tasks.

Each metric has the interval of its kind: a share of rows (`proportions`), macro-F1 (`f1_intervals`), a correlation
(`correlation_intervals`). docs/intervals.md says how often they hold the true value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smoothtune.evaluation.correlation_intervals import correlation_interval
from smoothtune.evaluation.f1_intervals import macro_f1_interval
from smoothtune.evaluation.metrics import CORRELATIONS, FUNCTIONS, Floats, Rows
from smoothtune.evaluation.proportions import accuracy_interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval, from `n` rows. Limits that cannot be computed are `nan`."""

    value: float
    low: float
    high: float
    n: int


def metric_estimate(metric: str, predictions: Rows, targets: Rows) -> Estimate:
    """`metric` of predictions (n,) and targets (n,), with its interval.

    Limits are `nan` where the value is, and for correlations of fewer than four rows or of rows on a line.
    """
    value = float(FUNCTIONS[metric](predictions, targets))
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, len(targets))
    low, high = _limits(metric, predictions, targets)
    return Estimate(value, float(low), float(high), len(targets))


def _limits(metric: str, predictions: Rows, targets: Rows) -> tuple[Floats | float, Floats | float]:
    if metric in CORRELATIONS:
        return correlation_interval(metric, predictions, targets)
    if metric == "accuracy":
        return accuracy_interval(np.count_nonzero(predictions == targets), len(targets))
    return macro_f1_interval(predictions, targets)


def mean_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates.

    Distances from the values to their limits add up as standard errors do ("variance recovery": Zou and Donner, 2008,
    Statistics in Medicine 27, equations 3 and 4), so that limits stay apart where every part is 0 or 1.
    """
    value, low, high = (np.array([getattr(part, name) for part in parts]) for name in ("value", "low", "high"))
    below, above = (float(np.sqrt(np.square(limit - value).sum())) / len(parts) for limit in (low, high))
    mean = float(value.mean())
    return Estimate(mean, mean - below, mean + above, sum(part.n for part in parts))

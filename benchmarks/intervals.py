"""Medians, their ratio and differences of means, paired or not, with 95 % intervals. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As a table."""
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio_of_medians(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """The ratio of the medians of two samples; percentile bootstrap, both resampled apart, with a fixed seed.

    With few repetitions such an interval is narrow at best: at five, its ends are near the smallest and largest ratio.
    """
    draw = np.random.default_rng(0)
    above, below = (_medians(np.asarray(values, dtype=float), draw) for values in (numerator, denominator))
    low, high = np.percentile(above / below, [2.5, 97.5])
    return Interval(float(np.median(numerator) / np.median(denominator)), float(low), float(high))


def median_of_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """The median ratio of values measured in pairs; percentile bootstrap over the pairs, with a fixed seed."""
    ratios = np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float)
    low, high = np.percentile(_medians(ratios, np.random.default_rng(0)), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))


def _medians(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    chosen: np.ndarray = np.median(values[draw.integers(0, len(values), (DRAWS, len(values)))], axis=1)
    return chosen


def difference_of_means(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean(a) - mean(b) with Welch's 95 % interval (Welch, 1947)."""
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Interval(float(np.mean(a) - np.mean(b)), float(found.low), float(found.high))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean(a - b) with Student's 95 % interval over the pairs, of which there are at least two."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    middle = float(differences.mean())
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return Interval(middle, middle - half, middle + half)

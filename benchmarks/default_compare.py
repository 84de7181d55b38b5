"""Comparisons of ours with the baselines from measured cells. Knows nothing of Markdown or of how a cell is measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from default_cells import Key, Line
from default_data import RANGES, SEEDS, SIZES, main_metric
from intervals import DRAWS, Interval

BASELINES = ("frozen", "words")
LOSS = 0.01
"""Ours loses where it is below a baseline by more than this, one point."""
Cells = Mapping[Key, Line]


class Comparison(NamedTuple):
    """The means over seeds at one set and size, None where a side has no cell, and two differences of ours.

    Differences are means over the seeds that both sides have; `better` is the baseline of the larger mean.
    """

    set: str
    rows: int
    means: dict[str, float | None]
    to_frozen: float | None
    better: str | None
    to_better: float | None


@dataclass(frozen=True, slots=True)
class View:
    """What is compared: the cells, the side that stands as ours, and the metric; None is the main metric of each set."""

    cells: Cells
    ours: str = "ours"
    metric: str | None = None

    def values(self, name: str, rows: int, side: str) -> dict[int, float]:
        """The metric by seed, of the cells that have it."""
        metric = self.metric or main_metric(name)
        lines = {seed: self.cells.get(Key(name, rows, seed, side)) for seed in SEEDS}
        return {seed: line["metrics"][metric] for seed, line in lines.items() if line and metric in line["metrics"]}

    def comparison(self, name: str, rows: int) -> Comparison:
        """One set and size."""
        ours = self.values(name, rows, self.ours)
        others = {side: self.values(name, rows, side) for side in BASELINES}
        means = {"ours": _mean(ours.values()), **{side: _mean(values.values()) for side, values in others.items()}}
        scored = {side: mean for side in BASELINES if (mean := means[side]) is not None}
        better = max(scored, key=lambda side: scored[side]) if scored else None
        to_better = None if better is None else _difference(ours, others[better])
        return Comparison(name, rows, means, _difference(ours, others["frozen"]), better, to_better)

    def comparisons(self, sets: Iterable[str]) -> list[Comparison]:
        """All sets and sizes, set after set, that have the metric and any cell."""
        every = [self.comparison(name, rows) for name in sets if self.applies(name) for rows in SIZES]
        return [row for row in every if any(value is not None for value in row.means.values())]

    def applies(self, name: str) -> bool:
        """Whether a set has the metric: similarity has its main metric alone."""
        return self.metric is None or name not in RANGES


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return statistics.fmean(numbers) if numbers else None


def _difference(a: Mapping[int, float], b: Mapping[int, float]) -> float | None:
    return _mean(a[seed] - b[seed] for seed in a if seed in b)


class Means(NamedTuple):
    """A mean over sets with two 95 % intervals: Student's over the set means, and a percentile bootstrap over sets."""

    sets: int
    student: Interval
    bootstrap: Interval


def mean_over_sets(differences: Sequence[float]) -> Means | None:
    """The mean of one difference for each set; None for fewer than two sets."""
    if len(differences) < 2:
        return None
    values = np.asarray(differences)
    middle = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    draws = values[np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = (float(end) for end in np.percentile(draws, [2.5, 97.5]))
    return Means(len(values), Interval(middle, middle - half, middle + half), Interval(middle, low, high))


def losses(rows: Iterable[Comparison]) -> list[tuple[float, Comparison]]:
    """Where ours is more than a point below the better baseline, and by how much; the largest loss first."""
    differences = [(row.to_better, row) for row in rows if row.to_better is not None]
    return sorted((pair for pair in differences if pair[0] < -LOSS), key=lambda pair: pair[0])


def seconds(cells: Cells, sets: Iterable[str], rows: int, side: str) -> float | None:
    """The median training time of a side at one size, over sets and seeds."""
    lines = [cells.get(Key(name, rows, seed, side)) for name in sets for seed in SEEDS]
    times = [line["train_seconds"] for line in lines if line]
    return statistics.median(times) if times else None

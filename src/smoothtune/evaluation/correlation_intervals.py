"""95 % intervals of Pearson's r and Spearman's rho: the jackknife on Fisher's z scale. Knows nothing of tasks.

Fisher's own standard error, 1 / sqrt(n - 3), holds for normal variables alone; that of the jackknife holds for others too.
Source: Efron and Stein (1981), Annals of Statistics 9; Fisher (1921), Metron 1.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from smoothtune.evaluation.metrics import Floats, Rows, pearson, standardised
from smoothtune.evaluation.proportions import LEVEL

_EXACT = 2000  # rows up to which ranks without one row are exact; from there on the rest is one part in n
_NUMBERS_AT_ONCE = 500_000
_LINE = 1e-12


def correlation_interval(metric: str, predictions: Rows, targets: Rows) -> tuple[float, float]:
    """Limits of `pearson` or `spearman` of predictions (n,) and targets (n,), neither constant.

    `nan` for fewer than four rows, for rows on a line (they show no spread), and where all but one row are constant.
    Time grows with n log n; for Spearman of at most 2,000 rows with n squared.
    """
    rows = len(targets)
    if rows < 4:
        return np.nan, np.nan
    if metric == "spearman":
        predictions, targets = rankdata(predictions), rankdata(targets)
    r = float(pearson(predictions, targets))
    if abs(r) > 1 - _LINE:
        return np.nan, np.nan
    z = _fisher((_spearman_without if metric == "spearman" else _pearson_without)(predictions, targets))
    error = np.sqrt((rows - 1) / rows * np.square(z - z.mean()).sum())
    half = stdtrit(rows - 2, (1 + LEVEL) / 2) * error
    return float(np.tanh(_fisher(r) - half)), float(np.tanh(_fisher(r) + half))


def _fisher(r: Floats | float) -> Floats:
    return np.asarray(np.arctanh(np.clip(r, _LINE - 1, 1 - _LINE)))


def _pearson_without(predictions: Rows, targets: Rows) -> Floats:
    """Pearson without each row, (n,), of columns (n,); `nan` where a column is then constant."""
    u, v = standardised(predictions), standardised(targets)
    share = len(u) / (len(u) - 1)
    spread = (1 - share * u * u) * (1 - share * v * v)
    return np.asarray(((u * v).sum() - share * u * v) / np.sqrt(np.where(spread > _LINE, spread, np.nan)))


def _spearman_without(ranks: Floats, others: Floats) -> Floats:
    """Spearman without each row, (n,), from the average ranks (n,) of both columns."""
    rest = len(ranks) - 1
    rho = _both_above(ranks, others)  # in place from here on: of a million rows each array takes 8 MB
    rho -= _sums_above(ranks, others)
    rho -= _sums_above(others, ranks)
    rho -= ranks * others
    rho += float(ranks @ others) - rest * ((rest + 1) / 2) ** 2
    for column in (ranks, others):
        spread = _spread_without(column)
        rho /= np.sqrt(np.where(spread > 0, spread, np.nan))
    return rho


def _sums_above(ranks: Floats, values: Floats) -> Floats:
    """For each row the sum of `values` (n,) over the rows of higher rank, those of equal rank counted half: (n,)."""
    _, group = np.unique(ranks, return_inverse=True)
    sums = np.bincount(group, values)
    above = sums.sum() - np.cumsum(sums)
    return np.asarray(above[group] + (sums[group] - values) / 2)


def _both_above(ranks: Floats, others: Floats) -> Floats:
    """For each row the weight of the rows that are above it in both columns, (n,), equal ranks counted half.

    Of many rows, what it would be if the columns were independent.
    """
    rows = len(ranks)
    if rows > _EXACT:
        return (rows - ranks) * (rows - others) / (rows - 1)
    step = max(1, _NUMBERS_AT_ONCE // rows)
    parts = (slice(start, start + step) for start in range(0, rows, step))
    weights = [(_above(ranks, part) * _above(others, part)).sum(axis=1) for part in parts]
    return np.concatenate(weights) - 0.25  # a row is not above itself


def _above(ranks: Floats, part: slice) -> Floats:
    differences = ranks[None, :] - ranks[part, None]
    return np.asarray((np.sign(differences) + 1) / 2)


def _spread_without(ranks: Floats) -> Floats:
    """Sum of squared deviations of the ranks that the other rows would have, without each row: (n,)."""
    _, group, counts = np.unique(ranks, return_inverse=True, return_counts=True)
    ties = (counts.astype(np.float64) ** 3 - counts)[group]
    fewer = ((counts - 1.0) ** 3 - (counts - 1.0))[group]
    total = (counts.astype(np.float64) ** 3 - counts).sum()
    rest = len(ranks) - 1.0
    return np.asarray((rest**3 - rest - (total - ties + fewer)) / 12)

"""95 % intervals of a share of rows: accuracy, precision, recall. Knows nothing of classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtri

from smoothtune.evaluation.metrics import Floats

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
_FEW = 50  # rows up to which the two counts next to 0 and n are special, above them three
_POISSON = gammaincinv([1, 2, 3], 1 - LEVEL)  # means of a Poisson variable that reaches 1, 2, 3 with probability 5 %


def proportion_interval(counts: ArrayLike, totals: ArrayLike) -> tuple[Floats, Floats]:
    """Lower and upper limits (...) of the share that `counts` (...) are of `totals` (...); `nan` for a total of 0.

    Wilson's interval, where the counts next to 0 and to the total have a Poisson limit on that side: 15 of 15 gives 0.796 to 1.
    Source: Brown, Cai and DasGupta (2001), Statistical Science 16, section 4.1.1.
    """
    x, n = np.broadcast_arrays(np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = wilson(x, n, Z)
        return np.where(n > 0, _near_zero(x, n, low), np.nan), np.where(
            n > 0, 1 - _near_zero(n - x, n, 1 - high), np.nan
        )


def accuracy_interval(right: ArrayLike, rows: ArrayLike) -> tuple[Floats, Floats]:
    """Limits (...) of a share of `rows` (...), as `proportion_interval`, but for the exact limit where all or none are `right`.

    15 of 15 gives 0.782 to 1. Source: Clopper and Pearson (1934), Biometrika 26.
    """
    x, n = np.broadcast_arrays(np.asarray(right, dtype=np.float64), np.asarray(rows, dtype=np.float64))
    low, high = proportion_interval(x, n)
    with np.errstate(divide="ignore"):
        end = ((1 - LEVEL) / 2) ** (1 / n)
    return np.where((x == n) & (n > 0), end, low), np.where((x == 0) & (n > 0), 1 - end, high)


def wilson(x: Floats, n: Floats, z: float) -> tuple[Floats, Floats]:
    """Wilson's limits (...) of the shares x / n (...), `z` standard errors away."""
    share, square = x / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return centre - half, centre + half


def _near_zero(x: Floats, n: Floats, low: Floats) -> Floats:
    """The lower limits (...) with those of the counts 0, 1, 2 and 3 in their place."""
    low = np.where(x == 0, 0, low)
    for count, mean in enumerate(_POISSON, start=1):
        special = (x == count) & (count < n) & ((n > _FEW) | (count < len(_POISSON)))
        low = np.where(special, mean / n, low)
    return low

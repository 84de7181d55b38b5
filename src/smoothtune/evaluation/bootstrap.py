"""The bootstrap of metrics (Efron and Tibshirani, 1993, chapter 13), for paired differences, in bounded memory.

Metrics of classes depend only on how often each cell (predictions, target) occurs, and resampled cell counts are
exactly multinomial, so no rows are drawn for them (accuracy: binomial). Correlations are computed on resampled rows, a
few resamples at a time. Several predictions of the same rows are resampled together, for paired comparison. This module
knows nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from smoothtune.evaluation.metrics import CORRELATIONS, Floats, Rows, classes_of, f1_of_counts, pearson
from smoothtune.evaluation.proportions import LEVEL

RESAMPLES = 2000
_NUMBERS_AT_ONCE = 500_000


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """The 95 % interval between the quantiles of draws (resamples,).

    Draws that could not be computed are left out; where they are more than 5 % of all they could hold both tails, and
    the limits are `nan`.
    """
    known = draws[~np.isnan(draws)]
    if len(known) < LEVEL * len(draws):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap(
    metric: str,
    predictions: Sequence[Rows],
    targets: Rows,
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Floats:
    """Values (M, resamples) of `metric` for M predictions (n,) of the same targets (n,), rows drawn together."""
    if not len(targets):
        return np.full((len(predictions), resamples), np.nan)
    if metric in CORRELATIONS:
        chunks = _row_chunks(metric, [*predictions, targets], generator, resamples)
    elif metric == "accuracy":
        # Right or wrong is all that accuracy sees; of one prediction the counts are then Binomial(n, p).
        right = [p == targets for p in predictions]
        chunks = _cell_chunks(metric, [*right, np.ones(len(targets), bool)], generator, resamples)
    else:
        chunks = _cell_chunks(metric, [*predictions, targets], generator, resamples)
    return np.concatenate(list(chunks), axis=1)


def _cell_chunks(
    metric: str, columns: Sequence[Rows], generator: np.random.Generator, resamples: int
) -> Iterator[Floats]:
    """Values (M, r) of `metric` for M predictions and, last, their targets, each (n,)."""
    cells, sizes = _cells(columns)
    shares = sizes / sizes.sum()
    of_cells = _accuracy_of_cells if metric == "accuracy" else _macro_f1_of_cells
    for r in _chunks(resamples, len(sizes)):
        counts = generator.multinomial(sizes.sum(), shares, size=r)
        yield np.stack([of_cells(predicted, cells[-1], counts) for predicted in cells[:-1]])


def _cells(columns: Sequence[Rows]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows of M + 1 columns (n,) as class codes (M + 1, K), and how often each occurs (K,)."""
    classes = classes_of(*columns)
    numbers = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        numbers = numbers * len(classes) + np.searchsorted(classes, column)
    cells, sizes = np.unique(numbers, return_counts=True)
    return np.stack(np.unravel_index(cells, (len(classes),) * len(columns))), sizes


def _accuracy_of_cells(predicted: Rows, actual: Rows, counts: Rows) -> Floats:
    return np.asarray(counts @ (predicted == actual) / counts.sum(axis=-1))


def _macro_f1_of_cells(predicted: Rows, actual: Rows, counts: Rows) -> Floats:
    """Macro-F1 (r,) of cell counts (r, K) whose predicted and actual class codes are (K,)."""
    classes = 1 + max(predicted.max(), actual.max())
    right = predicted == actual

    def per_class(codes: Rows, weights: Rows) -> Rows:
        cell_to_class = csr_array((weights, (np.arange(len(codes)), codes)), shape=(len(codes), classes))
        return np.asarray(counts @ cell_to_class)

    once = np.ones(len(counts[0]), dtype=np.int64)
    return f1_of_counts(per_class(actual, once * right), per_class(predicted, once), per_class(actual, once))


def _row_chunks(
    metric: str, columns: Sequence[Rows], generator: np.random.Generator, resamples: int
) -> Iterator[Floats]:
    """Correlations (M, r) of M predictions with, last, their targets, each (n,), on resampled rows."""
    by_rank = metric == "spearman" and all(np.isfinite(column).all() for column in columns)
    if by_rank:
        columns = [np.unique(column, return_inverse=True)[1].astype(np.int32) for column in columns]
    rows = len(columns[0])
    for r in _chunks(resamples, rows):
        drawn = generator.integers(rows, size=(r, rows))
        targets = _resampled(columns[-1], drawn, by_rank)
        yield np.stack([pearson(_resampled(column, drawn, by_rank), targets) for column in columns[:-1]])


def _resampled(column: Rows, drawn: Rows, by_rank: bool) -> Rows:
    """The drawn rows (r, n) of a column (n,); `by_rank`, the average ranks that rank codes 0, 1, ... have among them.

    Counting the codes gives the ranks without a sort: about seven times faster than `rankdata`.
    """
    values = column[drawn]
    if not by_rank:
        return values
    codes = 1 + int(column.max())
    counts = np.stack([np.bincount(row, minlength=codes) for row in values])
    return np.take_along_axis(np.cumsum(counts, axis=-1) - (counts - 1) / 2, values, axis=-1)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    """Sizes that add up to `resamples`, each times `width` within the numbers held at once (but at least one)."""
    step = max(1, _NUMBERS_AT_ONCE // width)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)

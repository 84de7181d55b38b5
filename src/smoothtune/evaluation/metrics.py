"""The four metrics, as functions of predictions and targets; a leading resample axis makes bootstraps vectorised.

`n` rows; every metric maps two arrays (..., n) to (...). One that cannot be computed is `nan`, and `why_undefined`
says why. This module knows nothing of tasks, intervals or models.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from smoothtune.errors import UsageError
from smoothtune.types import Kind

Floats = NDArray[np.float64]
Rows = NDArray[Any]
Metric = Callable[[Rows, Rows], Floats]


def accuracy(predictions: Rows, targets: Rows) -> Floats:
    """Share of rows, 0 to 1, whose prediction is the target: (..., n) and (..., n) -> (...)."""
    right = _same_shape(predictions, targets)[0] == targets
    rows = right.shape[-1]
    return np.asarray(right.mean(axis=-1) if rows else np.full(right.shape[:-1], np.nan))


def macro_f1(predictions: Rows, targets: Rows) -> Floats:
    """Mean F1, 0 to 1, over the classes that occur in targets or predictions: (..., n) and (..., n) -> (...).

    A class that is never predicted, or never a target, has F1 = 0; one that is neither is left out (scikit-learn's
    `f1_score(average="macro", zero_division=0)`).
    """
    predictions, targets = _same_shape(predictions, targets)
    lead, rows = targets.shape[:-1], targets.shape[-1]
    classes = classes_of(predictions, targets)
    shape = (prod(lead), len(classes))
    start = np.arange(shape[0])[:, None] * shape[1]
    predicted, actual = (
        np.searchsorted(classes, part).reshape(shape[0], rows) + start for part in (predictions, targets)
    )
    both = _counts(actual[predicted == actual], shape)
    return f1_of_counts(both, _counts(predicted, shape), _counts(actual, shape)).reshape(lead)


def classes_of(*columns: Rows) -> Rows:
    """The distinct values of all columns together, rising: (C,)."""
    return np.unique(np.concatenate([np.unique(column) for column in columns]))


def f1_of_counts(both: Rows, predicted: Rows, actual: Rows) -> Floats:
    """Macro-F1 from three counts per class, each (..., C): rows of the class that were right, predicted, and there."""
    size = predicted + actual
    occurring = (size > 0).sum(axis=-1)
    f1 = 2 * both / np.maximum(size, 1)
    return np.where(occurring > 0, f1.sum(axis=-1) / np.maximum(occurring, 1), np.nan)


def pearson(predictions: Rows, targets: Rows) -> Floats:
    """Pearson's r, -1 to 1: (..., n) and (..., n) -> (...).

    `nan` where predictions or targets are constant or not finite, and for fewer than two rows.
    """
    predictions, targets = _same_shape(predictions, targets)
    if targets.shape[-1] < 2:
        return np.full(targets.shape[:-1], np.nan)
    defined = _varies(predictions) & _varies(targets)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (standardised(predictions) * standardised(targets)).sum(axis=-1)
    return np.where(defined, np.clip(r, -1, 1), np.nan)


def spearman(predictions: Rows, targets: Rows) -> Floats:
    """Spearman's rho, -1 to 1, ties at their average rank: (..., n) and (..., n) -> (...). `nan` where `pearson` is."""
    predictions, targets = _same_shape(predictions, targets)
    if targets.shape[-1] < 2:
        return np.full(targets.shape[:-1], np.nan)
    r = pearson(rankdata(predictions, axis=-1), rankdata(targets, axis=-1))
    return np.where(_varies(predictions) & _varies(targets), r, np.nan)


FUNCTIONS: dict[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1, "pearson": pearson, "spearman": spearman}
CORRELATIONS = frozenset({"pearson", "spearman"})
METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "binary": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
}


def has_score(metric: str, targets: Rows) -> bool:
    """Whether any predictions have a `metric` beside these targets (n,): a correlation needs two that differ."""
    targets = np.asarray(targets)
    return bool(len(targets)) and (metric not in CORRELATIONS or bool(_varies(targets)))


def why_undefined(metric: str, predictions: Rows, targets: Rows) -> str | None:
    """Why `metric` of predictions (n,) and targets (n,) is `nan`, as a clause; None where it is a number."""
    if not len(targets):
        return "there are no rows"
    if metric not in CORRELATIONS:
        return None
    if len(targets) == 1:
        return "there is one row and a correlation needs two"
    return _unfit("predictions", predictions) or _unfit("targets", targets)


def _unfit(name: str, values: Rows) -> str | None:
    broken = int((~np.isfinite(values)).sum())
    if broken:
        return f"{broken} of {len(values)} {name} are not finite"
    return None if _varies(values) else f"all {len(values)} {name} are {values[0]:g}"


def _same_shape(predictions: Rows, targets: Rows) -> tuple[Rows, Rows]:
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if predictions.shape != targets.shape or not targets.ndim:
        raise UsageError(
            f"metrics: predictions have shape {predictions.shape} and targets {targets.shape}; give one of each per row"
        )
    return predictions, targets


def _counts(codes: Rows, shape: tuple[int, int]) -> NDArray[np.int64]:
    return np.bincount(codes.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _varies(values: Rows) -> NDArray[np.bool_]:
    """Whether values (..., n) are finite and not all equal: (...)."""
    low, high = values.min(axis=-1), values.max(axis=-1)
    return np.asarray(np.isfinite(low) & np.isfinite(high) & (low < high))


def standardised(values: Rows) -> Floats:
    """Centred values (..., n) of length 1. The largest is brought to 1 first, so that no square underflows."""
    centred = values - values.mean(axis=-1, keepdims=True, dtype=np.float64)
    centred /= np.abs(centred).max(axis=-1, keepdims=True)
    centred /= np.sqrt(np.square(centred).sum(axis=-1, keepdims=True))
    return np.asarray(centred, dtype=np.float64)

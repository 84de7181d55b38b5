"""A linear probe: logistic regression or ridge on frozen features, its strength chosen by cross-validation.

Alain and Bengio (2017), "Understanding intermediate layers using linear classifier probes". Knows nothing of models, of where
the features come from or of what becomes of the fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from smoothtune.evaluation.metrics import Floats, Rows, macro_f1
from smoothtune.runtime.device import blas_threads
from smoothtune.runtime.random import numpy_stream
from smoothtune.types import Kind

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""C of the logistic regression, on features whose rows have a mean squared length of `LENGTH`; ridge penalties are 1 / C."""
_COARSE = (1.0, 10.0, 100.0)
LENGTH = 4.0
FOLDS = 5
MOST_ROWS = 1000
"""Rows that cross-validation takes; the fit itself takes `MOST_FITTED`."""
MOST_FITTED = 10_000
FEW_ROWS = 60
"""Below so many rows a single row decides a comparison; what is compared must then differ by more than chance."""
_CLEARLY = 0.98
FLOOR = 1e-4
"""The least probability that a held-out label counts with, so that one sure mistake is not all that a log loss sees."""
_UNSEEN = 10.0  # how far below the other classes a class without a training row stands, in logits
_QUICK, _EXACT = {"tol": 1e-3, "max_iter": 300}, {"tol": 1e-6, "max_iter": 2000}


@dataclass(frozen=True, slots=True)
class ProbeTargets:
    """What a probe is to learn of its rows: `targets` (n,), `classes` of them, the class `weights` (classes,), `groups` (n,).

    Targets are class numbers, 0 or 1 for binary, label units for a regression. Rows of one group (equal texts) are in
    one fold. `span` is the width of a regression's range.
    """

    kind: Kind
    targets: Rows
    classes: int
    groups: Rows
    weights: Floats | None = None
    span: float = 1.0

    def part(self, rows: Rows) -> ProbeTargets:
        """Some of the rows."""
        return ProbeTargets(self.kind, self.targets[rows], self.classes, self.groups[rows], self.weights, self.span)


@dataclass(frozen=True, slots=True)
class LinearFit:
    """`weight` (K, F) and `bias` (K,): K classes, or 1 for the logit of a binary task and a regression in label units."""

    weight: Floats
    bias: Floats

    def __call__(self, features: Rows) -> Floats:
        """Logits or values (n, K) of features (n, F)."""
        return np.asarray(features @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """Quality on held-out rows: mean `loss` (log loss, or squared error over the squared span), by `losses` (n,), and `value`.

    `value` is accuracy; for a regression minus the root of the mean squared error over the span.
    """

    loss: float
    value: float
    macro_f1: float
    losses: Floats
    logits: Floats


@dataclass(frozen=True, slots=True)
class ProbeChoice:
    """The `strength` that cross-validation prefers, and the score of held-out rows at it."""

    strength: float
    score: ProbeScore


def fit(features: Rows, rows: ProbeTargets, strength: float, *, seed: int = 0) -> LinearFit:
    """The probe of features (n, F) at a strength; of more than `MOST_FITTED` rows a sample, drawn by `seed`."""
    sample = _sample(len(features), MOST_FITTED, seed)
    return _fit(np.asarray(features[sample], dtype=np.float64), rows.part(sample), strength, _EXACT)


def choose(features: Rows, rows: ProbeTargets, *, seed: int, strengths: Sequence[float] = STRENGTHS) -> ProbeChoice:
    """The strength for features (n, F), by cross-validation on at most `MOST_ROWS` rows.

    Of a regression it is that of the least loss. Of classes it is the largest whose loss is within one standard error of the
    least, which shrinks too much for rare classes; of fewer than `FEW_ROWS` rows that of the highest accuracy, of equal
    ones of the least loss, and else the largest. Cost: folds x strengths fits.
    """
    sample = _sample(len(features), MOST_ROWS, seed)
    part, some = rows.part(sample), _rotated(np.asarray(features[sample], dtype=np.float64))
    folds = list(folds_of(part, seed=seed))
    if not folds:
        return ProbeChoice(1.0, _unknown(part))
    scores = [cross_validated(some, part, strength, folds) for strength in strengths]
    best = min(range(len(scores)), key=lambda number: scores[number].loss)
    if rows.kind != "regression" and len(part.targets) < FEW_ROWS:
        best = max(range(len(scores)), key=lambda number: (scores[number].value, -scores[number].loss, number))
    elif rows.kind != "regression":
        best = _least_shrunk(scores, best)
    return ProbeChoice(strengths[best], scores[best])


def _least_shrunk(scores: Sequence[ProbeScore], best: int) -> int:
    """The number of the largest strength whose loss is within one standard error of that of number `best`."""
    for number in range(len(scores) - 1, best, -1):
        difference = scores[number].losses - scores[best].losses
        if difference.mean() <= difference.std() / np.sqrt(len(difference)):
            return number
    return best


def best_score(features: Rows, rows: ProbeTargets, *, seed: int) -> ProbeScore:
    """The cross-validated score of features (n, F) at the best of a few strengths, to compare features by."""
    sample = _sample(len(features), MOST_ROWS, seed)
    part, some = rows.part(sample), _rotated(np.asarray(features[sample], dtype=np.float64))
    folds = folds_of(part, seed=seed, folds=3)
    if not folds:
        return _unknown(part)
    return min((cross_validated(some, part, strength, folds) for strength in _COARSE), key=lambda tried: tried.loss)


def clearly_better(score: ProbeScore, other: ProbeScore) -> bool:
    """Whether the loss is lower than the other's by 2 %; of fewer than `FEW_ROWS` rows, by its standard error."""
    difference = other.losses - score.losses
    if len(difference) < FEW_ROWS:
        return bool(difference.mean() > difference.std() / np.sqrt(len(difference)))
    return score.loss < _CLEARLY * other.loss


def cross_validated(
    features: Floats, rows: ProbeTargets, strength: float, folds: Sequence[tuple[Rows, Rows]]
) -> ProbeScore:
    """The score of every row by the fit of the folds that it is not in."""
    logits = np.zeros((len(features), _columns(rows)))
    for train, test in folds:
        logits[test] = _fit(features[train], rows.part(train), strength)(features[test])
    return score(logits, rows)


def score(logits: Floats, rows: ProbeTargets) -> ProbeScore:
    """The quality of logits or values (n, K) for rows (n,)."""
    if rows.kind == "regression":
        losses = np.square((logits[:, 0] - rows.targets) / rows.span)
        return ProbeScore(float(losses.mean()), -float(np.sqrt(losses.mean())), np.nan, losses, logits)
    wide = np.concatenate([np.zeros_like(logits), logits], axis=1) if rows.kind == "binary" else logits
    truth = rows.targets.astype(np.int64)
    chances = np.exp(log_softmax(wide, axis=1)[np.arange(len(wide)), truth])
    losses = -np.log(np.maximum(chances, FLOOR))
    answers = wide.argmax(axis=1)
    value = float((answers == truth).mean())
    return ProbeScore(float(losses.mean()), value, float(macro_f1(answers, truth)), losses, logits)


def folds_of(rows: ProbeTargets, *, seed: int, folds: int = FOLDS) -> list[tuple[Rows, Rows]]:
    """Rows to learn from and rows to judge by, `folds` times; stratified by class, groups whole. Empty for too few rows."""
    count = len(rows.targets)
    folds = min(folds, len(np.unique(rows.groups)))
    if folds < 2 or count < 4:
        return []
    state = int(numpy_stream(seed, "folds").integers(2**31))
    grouped = len(np.unique(rows.groups)) < count
    labels = np.zeros(count, dtype=np.int64) if rows.kind == "regression" else rows.targets.astype(np.int64)
    if np.bincount(labels).max() < folds:
        labels = np.zeros(count, dtype=np.int64)  # no class has a row for every fold: there is nothing to stratify
    kind: Any = StratifiedGroupKFold if grouped else StratifiedKFold if labels.any() else KFold
    splitter = kind(folds, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is one that some folds lack
        return [
            (train, test) for train, test in splitter.split(labels, labels, rows.groups) if len(train) and len(test)
        ]


def _fit(features: Floats, rows: ProbeTargets, strength: float, limits: Mapping[str, Any] = _QUICK) -> LinearFit:
    with blas_threads(1):  # products this small take longer in several threads, the more so beside other work
        return _fitted(features, rows, strength, limits)


def _fitted(features: Floats, rows: ProbeTargets, strength: float, limits: Mapping[str, Any]) -> LinearFit:
    size = float(np.sqrt(LENGTH / max(np.square(features).sum(axis=1).mean(), 1e-12)))
    x = _rotated(features) if features.shape[1] > len(features) else features
    if rows.kind == "regression":
        model = Ridge(alpha=1 / strength).fit(x * size, rows.targets)
        weight, bias = model.coef_[None] * size, np.array([model.intercept_])
    else:
        weight, bias = _logistic(x, size, rows, strength, limits)
    if x is not features:
        weight = _turned_back(weight, x, features)
    return LinearFit(weight, bias)


def _logistic(
    x: Floats, size: float, rows: ProbeTargets, strength: float, limits: Mapping[str, Any]
) -> tuple[Floats, Floats]:
    """Weight (K, F) and bias (K,); classes without a row come last in every answer."""
    truth = rows.targets.astype(np.int64)
    present = np.unique(truth)
    count = _columns(rows)
    if len(present) < 2:
        far = _UNSEEN / 2
        bias = np.where(np.arange(max(count, 2)) == present[0], far, -far)
        return np.zeros((count, x.shape[1])), bias[-1:] if count == 1 else bias
    share = None if rows.weights is None else rows.weights[truth]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # judged by its folds, like any other
        warnings.simplefilter("ignore", UserWarning)  # many classes of few rows are no mistake here
        model = LogisticRegression(C=strength, **limits).fit(x * size, truth, sample_weight=share)
    weight, bias = np.asarray(model.coef_) * size, np.asarray(model.intercept_)
    if count == 1:
        return weight, bias
    if len(present) == 2:  # scikit-learn gives one logit, the difference of the two
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    every, lowest = np.zeros((count, x.shape[1])), float((x @ weight.T + bias).min())
    shift = np.full(count, lowest - _UNSEEN)
    every[present], shift[present] = weight, bias
    return every, shift


def _rotated(features: Floats) -> Floats:
    """Features (n, F) with F > n in n coordinates: distances and products stay, so every fit does (but for its size)."""
    if features.shape[1] <= len(features):
        return features
    values, vectors = np.linalg.eigh(features @ features.T)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _turned_back(weight: Floats, rotated: Floats, features: Floats) -> Floats:
    """The weight (K, F) that gives on `features` (n, F) what `weight` (K, n) gives on them `rotated` (n, n)."""
    squares = np.square(rotated).sum(axis=0)
    usable = squares > squares.max(initial=0) * 1e-12
    basis = rotated[:, usable] / squares[usable]
    return np.asarray((weight[:, usable] @ basis.T) @ features)


def _columns(rows: ProbeTargets) -> int:
    return rows.classes if rows.kind == "classification" else 1


def _sample(count: int, most: int, seed: int) -> Rows:
    if count <= most:
        return np.arange(count)
    return np.sort(numpy_stream(seed, "linear probe").choice(count, size=most, replace=False))


def _unknown(rows: ProbeTargets) -> ProbeScore:
    """The score where there are too few rows to hold any out."""
    logits = np.zeros((len(rows.targets), _columns(rows)))
    return ProbeScore(np.nan, np.nan, np.nan, np.full(len(logits), np.nan), logits)


def balanced(targets: Rows, classes: int) -> Floats:
    """The weight of each class (classes,) with which all that occur count alike, 1 in the mean over rows; 1 for the others."""
    counts: NDArray[np.int64] = np.bincount(targets.astype(np.int64), minlength=classes)
    weights: Floats = np.where(counts > 0, len(targets) / np.maximum(counts, 1) / max((counts > 0).sum(), 1), 1.0)
    return weights

"""The honest baseline "words alone": TF-IDF and a linear model. What an encoder adds is what it scores above this.

Texts become word 1-2-grams and character 3-5-grams inside words, each weighted by sublinear TF-IDF with rows of length
1; the linear model's strength is chosen on the training rows. Knows nothing of tasks' files, encoders or metrics.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from smoothtune.errors import UsageError
from smoothtune.evaluation.metrics import Rows
from smoothtune.types import Kind

FOLDS = 5
INVERSE_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""C of the logistic regression; the ridge penalties are their inverses."""
MAX_FEATURES = {"word": 30_000, "char_wb": 60_000}
"""The most frequent n-grams kept of each sort, so that 20,000 pairs take about a minute and half a gigabyte."""
RARE_FROM = 1000
"""From this many training texts on, an n-gram must occur in two of them; fewer texts cannot spare any."""

Texts = Sequence[tuple[str, ...]]


def words_alone(kind: Kind, train_texts: Texts, train_targets: Rows, texts: Texts, *, seed: int = 0) -> Rows:
    """Predictions (m,) for m texts by a linear model fitted on n training texts with targets (n,).

    A text is a tuple of one string, or two for a pair; a pair is seen as |a - b|, a * b and the cosine of its two
    vectors. Class numbers (int64) for classification and binary, label units (float64, unbounded) for regression.
    Strength: 5-fold cross-validation on the training rows, shuffled by `seed`, by accuracy (stratified) or squared
    error. Raises `UsageError` for no training rows, for texts of mixed or other lengths, and for texts without a word.
    """
    targets = np.asarray(train_targets, dtype=np.float64 if kind == "regression" else np.int64)
    _check(train_texts, targets, texts)
    if not len(texts) or (targets == targets[0]).all():
        return np.full(len(texts), targets[0])
    vectorisers = _fitted_vectorisers(train_texts)
    with warnings.catch_warnings():
        # A solver that stops short of its tolerance is a baseline like any other, and it is judged by its folds.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = _fitted_model(kind, _features(vectorisers, train_texts), targets, seed)
    return np.asarray(model.predict(_features(vectorisers, texts)), dtype=targets.dtype)


def _check(train_texts: Texts, targets: Rows, texts: Texts) -> None:
    if not len(train_texts) or targets.shape != (len(train_texts),):
        got = f"{len(train_texts)} training texts and targets of shape {targets.shape}"
        raise UsageError(f"words alone: got {got}; give at least one text and one target per text")
    if any(isinstance(text, str) for text in (*train_texts, *texts)):
        raise UsageError("words alone: got a plain string as a text; give a tuple of one string, or two for a pair")
    lengths = {len(text) for text in (*train_texts, *texts)}
    if lengths not in ({1}, {2}):
        raise UsageError(f"words alone: texts are tuples of {sorted(lengths)} strings; give all one string, or all two")


def _fitted_vectorisers(train_texts: Texts) -> list[Any]:
    strings = [string for text in train_texts for string in text]
    rarest = 2 if len(strings) >= RARE_FROM else 1
    fitted = []
    for analyzer, grams in (("word", (1, 2)), ("char_wb", (3, 5))):
        vectoriser = TfidfVectorizer(
            analyzer=analyzer,
            ngram_range=grams,
            token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None,
            sublinear_tf=True,
            min_df=rarest,
            max_features=MAX_FEATURES[analyzer],
            dtype=np.float32,
        )
        try:
            fitted.append(vectoriser.fit(strings))
        except ValueError:  # how scikit-learn says that no n-gram is left; the other sort may have some
            continue
    if not fitted:
        raise UsageError(f"words alone: the {len(strings)} training texts hold no words; check the text columns")
    return fitted


def _features(vectorisers: Sequence[Any], texts: Texts) -> Any:
    """Sparse float32 features (n, F) of n texts."""
    blocks = []
    for vectoriser in vectorisers:
        first, *second = (vectoriser.transform(column) for column in zip(*texts, strict=True))
        blocks += _pair_blocks(first, second[0]) if second else [first]
    return hstack(blocks, format="csr")


def _pair_blocks(first: Any, second: Any) -> list[Any]:
    product = first.multiply(second)
    cosine = csr_matrix(product.sum(axis=1))  # the rows have length 1
    return [abs(first - second), product, cosine]


def _fitted_model(kind: Kind, features: Any, targets: Rows, seed: int) -> Any:
    """The linear model refitted on all rows (n, F), at the strength that cross-validation prefers."""
    if kind == "regression":
        model: Any = Ridge(solver="sparse_cg", tol=1e-3)
        name, strengths = "alpha", [1 / inverse for inverse in INVERSE_STRENGTHS]
        rows, folds, scoring = np.arange(len(targets)), KFold, "neg_mean_squared_error"
    else:
        model = LogisticRegression(max_iter=300)
        name, strengths = "C", list(INVERSE_STRENGTHS)
        rows, folds, scoring = _rows_of_common_classes(targets), StratifiedKFold, "accuracy"
    strength = strengths[len(strengths) // 2]
    if len(rows) >= FOLDS:
        search = GridSearchCV(
            model,
            {name: strengths},
            scoring=scoring,
            cv=folds(FOLDS, shuffle=True, random_state=seed),
            refit=False,
        )
        strength = search.fit(features[rows], targets[rows]).best_params_[name]
    return model.set_params(**{name: strength}).fit(features, targets)


def _rows_of_common_classes(targets: Rows) -> Rows:
    """Rows of the classes that fill every fold; none where fewer than two classes do."""
    classes, counts = np.unique(targets, return_counts=True)
    common = classes[counts >= FOLDS]
    return np.flatnonzero(np.isin(targets, common)) if len(common) >= 2 else np.arange(0)

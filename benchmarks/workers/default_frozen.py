"""One cell of the baseline `frozen`: a linear model on embeddings of the bundled encoder, which does not train.

Classification: multinomial logistic regression, C by stratified cross-validation on the training rows, by accuracy. Similarity:
ridge, alpha likewise by squared error, clipped to the range. A pair is u, v, |u - v| and u * v, for similarity also the cosine.

A spec holds `data` (a folder with train.tsv and scored.tsv), `task`, `seed`, `checkpoint`; in `options` `embeddings`, the file of
the set (else texts are embedded here), and `class_weight`. `train_seconds` are those of embedding the training rows and of
fitting, all folds included.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from embeddings import Embeddings, embed, read_file
from scores import report_of
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from worker import Report, Spec, read_rows, run_worker

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""C of the logistic regression; the ridge penalties are the same numbers."""
FOLDS = 5


def features(vectors: Sequence[np.ndarray], *, cosine: bool) -> np.ndarray:
    """Features (n, F) of n rows from the embeddings (n, D) of each of their one or two texts."""
    if len(vectors) == 1:
        return np.asarray(vectors[0], dtype=np.float64)
    u, v = (np.asarray(part, dtype=np.float64) for part in vectors)
    blocks = [u, v, abs(u - v), u * v]
    return np.hstack([*blocks, (u * v).sum(axis=1, keepdims=True)] if cosine else blocks)


def folds_of(labels: Sequence[Any]) -> tuple[np.ndarray, int]:
    """Numbers of the rows that take part in cross-validation, and how many folds: rows of classes with one row do not."""
    classes, counts = np.unique(labels, return_counts=True)
    common = classes[counts >= 2]
    if len(common) < 2:
        return np.arange(0), 0
    return np.flatnonzero(np.isin(labels, common)), int(min(FOLDS, counts[counts >= 2].min()))


def fit(kind: str, inputs: np.ndarray, targets: np.ndarray, *, seed: int, class_weight: str | None = None) -> Any:
    """The linear model on all rows (n, F), at the strength that cross-validation prefers; the middle one without folds."""
    if kind == "regression":
        model: Any = Ridge()
        name, rows, folds = "alpha", np.arange(len(targets)), min(FOLDS, len(targets))
        scoring, splits = "neg_mean_squared_error", KFold
    else:
        model = LogisticRegression(max_iter=1000, class_weight=class_weight)
        name, (rows, folds) = "C", folds_of(targets)
        scoring, splits = "accuracy", StratifiedKFold
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if folds >= 2:
        cv = splits(folds, shuffle=True, random_state=seed)
        search = GridSearchCV(model, {name: STRENGTHS}, scoring=scoring, cv=cv, refit=False)
        strength = search.fit(inputs[rows], targets[rows]).best_params_[name]
    return model.set_params(**{name: strength}).fit(inputs, targets)


def measure(spec: Spec) -> Report:
    """Embed, fit, predict, score."""
    train, scored, kind = read_rows(spec), read_rows(spec, "scored"), spec["task"]["kind"]
    inputs, seconds = _inputs(spec, train)
    others, other_seconds = _inputs(spec, scored)
    labels = [row["label"] for row in train]
    targets = np.asarray([float(label) for label in labels] if kind == "regression" else labels)
    began = time.perf_counter()
    with warnings.catch_warnings():
        # A solver that stops short of its tolerance is a baseline like any other, and it is judged by its folds.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = fit(kind, inputs, targets, seed=spec["seed"], class_weight=spec["options"].get("class_weight"))
    fit_end = time.perf_counter()
    values, distribution = model.predict(others), None
    if kind == "regression":
        values = np.clip(values, *spec["task"]["range"])
    else:
        distribution = [str(label) for label in model.classes_], model.predict_proba(others)
    predict_seconds = time.perf_counter() - fit_end
    return {
        "metrics": report_of(spec, [row["label"] for row in scored], values.tolist(), distribution),
        "train_seconds": seconds + fit_end - began,
        "predict_seconds": other_seconds + predict_seconds,
        "fit_seconds": fit_end - began,
        "strength": float(model.get_params()["alpha" if kind == "regression" else "C"]),
    }


def _inputs(spec: Spec, rows: list[dict[str, str]]) -> tuple[np.ndarray, float]:
    columns = [column for column in rows[0] if column != "label"]
    parts = [_embeddings(spec, [row[column] for row in rows]) for column in columns]
    inputs = features([part.vectors for part in parts], cosine=spec["task"]["kind"] == "regression")
    return inputs, sum(part.seconds for part in parts)


def _embeddings(spec: Spec, texts: list[str]) -> Embeddings:
    path = spec["options"].get("embeddings")
    return embed(spec["checkpoint"], texts) if path is None else read_file(Path(path), texts)


if __name__ == "__main__":
    run_worker(measure, ("data", "task", "seed", "checkpoint"))

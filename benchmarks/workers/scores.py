"""Metrics of predictions on labelled rows, by scikit-learn and SciPy. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

LEAST = 1e-6
"""Least probability that log loss counts: a class without a training row has probability 0 on every side."""


def class_scores(truth: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, and macro-F1 over the classes of the scored rows, of n labels."""
    return {
        "accuracy": float(accuracy_score(truth, labels)),
        "macro_f1": float(f1_score(truth, labels, average="macro", labels=sorted(set(truth)), zero_division=0)),
    }


def log_loss(truth: Sequence[str], classes: Sequence[str], probabilities: Any) -> float:
    """Mean of -log of the true label's probability, from probabilities (n, C) of C classes; at least `LEAST` each."""
    numbers = {label: number for number, label in enumerate(classes)}
    values = [row[numbers[label]] if label in numbers else 0.0 for label, row in zip(truth, probabilities, strict=True)]
    return float(-np.log(np.clip(values, LEAST, 1.0)).mean())


def number_scores(truth: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation of n numbers. Raises `ValueError` where all predictions are the same."""
    if len(set(values)) < 2:
        raise ValueError(f"all {len(values)} predictions are {values[0]}: no correlation can be computed")
    return {
        "spearman": float(stats.spearmanr(truth, values).statistic),
        "pearson": float(stats.pearsonr(truth, values).statistic),
    }


def one_class(truth: Sequence[str], labels: Sequence[str], label: str) -> dict[str, float]:
    """Recall and precision of one class; precision is 0 where nothing is labelled so."""
    options = {"labels": [label], "average": "macro", "zero_division": 0}
    return {
        "recall": float(recall_score(truth, labels, **options)),
        "precision": float(precision_score(truth, labels, **options)),
    }


def report_of(
    spec: dict[str, Any], truth: Sequence[str], values: Sequence[Any], distribution: tuple[Sequence[str], Any] | None
) -> dict[str, float]:
    """All metrics of a cell; `distribution` are classes and probabilities, None where a side has none."""
    if spec["task"]["kind"] == "regression":
        return number_scores([float(label) for label in truth], [float(value) for value in values])
    metrics = class_scores(truth, list(values))
    if distribution is not None:
        metrics["log_loss"] = log_loss(truth, *distribution)
    if "class" in spec:
        metrics |= one_class(truth, list(values), spec["class"])
    return metrics

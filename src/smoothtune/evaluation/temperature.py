"""Temperature scaling: one number per task that brings probabilities closer to the share of right answers."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from smoothtune.evaluation.metrics import Floats, Rows

HIGHEST = 20.0
"""The largest temperature; at the smallest, 1, probabilities stay as they are."""


def fit_temperature(logits: Rows, targets: Rows) -> float:
    """The temperature, 1 to 20, at which `logits` / temperature have the least mean log loss.

    `logits` are (n, C), or (n,) for two classes; `targets` (n,) class numbers. Never below 1: few rows that are all right
    would make a model surer without end. 1 for no rows.
    Source: Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4.2, equation 9.
    """
    if not len(targets):
        return 1.0
    wide, classes = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    result = minimize_scalar(
        lambda log: log_loss(wide / np.exp(log), classes), bounds=(0.0, np.log(HIGHEST)), method="bounded"
    )
    temperature = float(np.exp(result.x))
    return round(temperature, 3) if log_loss(wide / temperature, classes) < log_loss(wide, classes) else 1.0


def log_loss(logits: Floats, targets: Rows) -> float:
    """Mean of -log p of the right class; `logits` (n, C) or (n,), `targets` (n,) class numbers."""
    if logits.ndim == 1:
        return float(-log_expit(np.where(targets == 1, logits, -logits)).mean())
    return float(-np.take_along_axis(log_softmax(logits, axis=1), targets[:, None], axis=1).mean())

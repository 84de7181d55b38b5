"""Answers to texts. Knows nothing of the model that gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers in the order of the texts.

    `values` are labels (text), or numbers for regression; `probabilities` (N, C) go with `labels`, None for regression.
    """

    values: list[str] | list[float]
    labels: tuple[str, ...] | None
    probabilities: np.ndarray | None

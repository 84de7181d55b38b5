"""The baseline "largest class": the commonest class of the training rows, for every row. Knows nothing of label names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from smoothtune.evaluation.metrics import Rows
from smoothtune.evaluation.scores import TaskAnswers

LARGEST_CLASS = "largest class"


def largest_class(train_targets: Rows) -> int:
    """The commonest class number of the training targets (n,), at least one; of several the first."""
    return int(np.bincount(np.asarray(train_targets, dtype=np.int64)).argmax())


def constant_answers(answers: TaskAnswers, number: int) -> TaskAnswers:
    """Answers to the same rows, every one of them `number`."""
    return replace(answers, predictions=np.full(len(answers), number))

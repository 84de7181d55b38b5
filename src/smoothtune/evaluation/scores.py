"""Scores of several tasks together: every metric of every task, Wang's score and the plain mean, with intervals.

Knows nothing of models or files: answers are arrays. `point_scores` is the fast path without intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from smoothtune.errors import UsageError
from smoothtune.evaluation.intervals import Estimate, mean_estimate, metric_estimate
from smoothtune.evaluation.metrics import CORRELATIONS, FUNCTIONS, METRICS, Floats, Rows, has_score
from smoothtune.types import Kind


@dataclass(frozen=True, slots=True, eq=False)
class TaskAnswers:
    """What a model answered on one task, and what was right; `metric` is the task's main metric.

    `predictions` and `targets` are (n,): class numbers for classification, 0 or 1 for binary, label units for
    regression. They are kept as int64, or float64 for regression. Predictions that are not finite are allowed in
    regression, where the metrics are then `nan`. Raises `UsageError` for anything else.
    """

    kind: Kind
    metric: str
    predictions: Rows
    targets: Rows

    def __post_init__(self) -> None:
        if self.metric not in METRICS[self.kind]:
            known = ", ".join(METRICS[self.kind])
            raise UsageError(f"answers: {self.metric!r} is not a metric of a {self.kind} task; take one of {known}")
        object.__setattr__(self, "predictions", _checked(self.kind, "predictions", self.predictions))
        object.__setattr__(self, "targets", _checked(self.kind, "targets", self.targets))
        if len(self.predictions) != len(self.targets):
            got = f"{len(self.predictions)} predictions and {len(self.targets)} targets"
            raise UsageError(f"answers: got {got}; give one prediction per target")

    def __len__(self) -> int:
        return len(self.targets)


def _checked(kind: Kind, name: str, values: Rows) -> Rows:
    values = np.asarray(values)
    if values.ndim != 1:
        raise UsageError(f"answers: {name} have shape {values.shape}; give one number per row, shape (n,)")
    if kind == "regression":
        numbers = values.astype(np.float64)
        if name == "targets" and not np.isfinite(numbers).all():
            raise UsageError(f"answers: targets row {np.isfinite(numbers).argmin()} is not finite; leave such rows out")
        return numbers
    wanted = (values == 0) | (values == 1) if kind == "binary" else (values >= 0) & (values == np.floor(values))
    if not wanted.all():
        row = int(wanted.argmin())
        rule = "0 or 1" if kind == "binary" else "class numbers 0, 1, 2, ..."
        raise UsageError(f"answers: {name} row {row} of a {kind} task is {values[row]}; give {rule}")
    return values.astype(np.int64)


@dataclass(frozen=True, slots=True)
class PointScores:
    """Scores without intervals: `tasks[name][metric]`, `main[name]` (the main metric), and both means over tasks.

    The means leave out `scoreless` tasks: no model has a score on their rows, as where all labels of a regression are equal.
    """

    tasks: dict[str, dict[str, float]]
    main: dict[str, float]
    score: float
    plain_mean: float
    scoreless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores with 95 % intervals: `tasks[name][metric]`, and both means over the tasks' main metrics.

    `score` counts a correlation r as (r + 1) / 2 (Wang, Table 1: 0.531, 0.861 and r = 0.870 give 0.776);
    `plain_mean` takes r as it is. Both leave out `scoreless` tasks (see `PointScores`), are `nan` where the main metric of
    another is, and their `n` is the rows of the tasks in them.
    """

    tasks: dict[str, dict[str, Estimate]]
    score: Estimate
    plain_mean: Estimate
    scoreless: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file; `nan` is None, `scoreless` is there where there are any."""
        return {
            **({"scoreless": list(self.scoreless)} if self.scoreless else {}),
            "tasks": {
                name: {metric: {**_limits(found), "n": found.n} for metric, found in metrics.items()}
                for name, metrics in self.tasks.items()
            },
            "score": _limits(self.score),
            "plain_mean": _limits(self.plain_mean),
        }


def point_scores(answers: Mapping[str, TaskAnswers]) -> PointScores:
    """Scores of tasks by name, without intervals: cheap enough for every epoch. Raises `UsageError` without tasks."""
    check_tasks(answers)
    tasks = {
        name: {metric: float(FUNCTIONS[metric](task.predictions, task.targets)) for metric in METRICS[task.kind]}
        for name, task in answers.items()
    }
    main = {name: tasks[name][task.metric] for name, task in answers.items()}
    scoreless = without_score(answers)
    counted = [name for name in answers if name not in scoreless] or list(answers)
    metrics, values = [answers[name].metric for name in counted], np.array([main[name] for name in counted])
    return PointScores(tasks, main, float(mean_score(metrics, values)), float(values.mean()), scoreless)


def without_score(answers: Mapping[str, TaskAnswers]) -> tuple[str, ...]:
    """The tasks on whose rows no model has a main metric."""
    return tuple(name for name, task in answers.items() if not has_score(task.metric, task.targets))


def score_tasks(answers: Mapping[str, TaskAnswers]) -> Scores:
    """Scores of tasks by name, with intervals. Raises `UsageError` without tasks."""
    check_tasks(answers)
    tasks = {
        name: {metric: metric_estimate(metric, task.predictions, task.targets) for metric in METRICS[task.kind]}
        for name, task in answers.items()
    }
    scoreless = without_score(answers)
    counted = {name: task for name, task in answers.items() if name not in scoreless} or answers
    main = [tasks[name][task.metric] for name, task in counted.items()]
    shares = [
        _as_share(part) if task.metric in CORRELATIONS else part
        for part, task in zip(main, counted.values(), strict=True)
    ]
    return Scores(tasks, score=mean_estimate(shares), plain_mean=mean_estimate(main), scoreless=scoreless)


def _as_share(part: Estimate) -> Estimate:
    """A correlation brought from [-1, 1] to [0, 1]."""
    return Estimate((part.value + 1) / 2, (part.low + 1) / 2, (part.high + 1) / 2, part.n)


def mean_score(metrics: Sequence[str], values: Floats) -> Floats:
    """Mean over tasks of values (tasks, ...), with correlations brought from [-1, 1] to [0, 1]: (...)."""
    correlation = np.array([metric in CORRELATIONS for metric in metrics]).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(np.where(correlation, (values + 1) / 2, values).mean(axis=0))


def check_tasks(answers: Mapping[str, TaskAnswers]) -> None:
    """Raise `UsageError` where there is nothing to take a mean of."""
    if not answers:
        raise UsageError("scores: got answers of no task; give those of at least one")


def _limits(found: Estimate) -> dict[str, float | None]:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: None if isnan(number) else number for name, number in numbers.items()}

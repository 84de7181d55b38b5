"""Paired comparison of two models on the same rows. Knows nothing of how the answers were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from smoothtune.errors import UsageError
from smoothtune.evaluation.bootstrap import bootstrap, percentile_interval
from smoothtune.evaluation.intervals import Estimate
from smoothtune.evaluation.metrics import FUNCTIONS, Floats
from smoothtune.evaluation.scores import TaskAnswers, check_tasks, without_score
from smoothtune.runtime.random import numpy_stream


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences a - b of main metrics, with 95 % intervals: by task, and their plain mean over tasks that have a score.

    An interval that leaves out 0 tells the models apart on these rows; it says nothing of other training seeds.
    """

    tasks: dict[str, Estimate]
    mean: Estimate


def paired_difference(a: Mapping[str, TaskAnswers], b: Mapping[str, TaskAnswers], *, seed: int) -> Comparison:
    """Compare the answers of two models. Each resample takes the same rows of both; tasks are resampled independently.

    Raises `UsageError` where the two have other tasks, kinds, main metrics or targets.
    """
    _check_same_rows(a, b)
    draws = {name: _draws(a[name], b[name], numpy_stream(seed, "paired", name)) for name in a}
    tasks = {name: _estimate(_difference(a[name], b[name]), draws[name], len(a[name])) for name in a}
    scoreless = without_score(a)
    counted = [name for name in a if name not in scoreless] or list(a)
    value = float(np.mean([tasks[name].value for name in counted]))
    rows = sum(tasks[name].n for name in counted)
    return Comparison(tasks, _estimate(value, np.mean([draws[name] for name in counted], axis=0), rows))


def _difference(a: TaskAnswers, b: TaskAnswers) -> float:
    metric = FUNCTIONS[a.metric]
    return float(metric(a.predictions, a.targets) - metric(b.predictions, b.targets))


def _draws(a: TaskAnswers, b: TaskAnswers, generator: np.random.Generator) -> Floats:
    of_a, of_b = bootstrap(a.metric, [a.predictions, b.predictions], a.targets, generator)
    return np.asarray(of_a - of_b)


def _estimate(value: float, draws: Floats, rows: int) -> Estimate:
    low, high = (np.nan, np.nan) if np.isnan(value) else percentile_interval(draws)
    return Estimate(value, low, high, rows)


def _check_same_rows(a: Mapping[str, TaskAnswers], b: Mapping[str, TaskAnswers]) -> None:
    check_tasks(a)
    if set(a) != set(b):
        raise UsageError(f"comparison: tasks are {sorted(a)} and {sorted(b)}; compare answers to the same tasks")
    for name in a:
        one, other = (a[name].kind, a[name].metric), (b[name].kind, b[name].metric)
        if one != other:
            raise UsageError(f"comparison: task {name} is {' by '.join(one)} and {' by '.join(other)}; give both alike")
        _check_same_targets(name, a[name], b[name])


def _check_same_targets(name: str, a: TaskAnswers, b: TaskAnswers) -> None:
    if len(a) != len(b):
        raise UsageError(f"comparison: task {name} has {len(a)} and {len(b)} rows; compare answers to the same rows")
    same = a.targets == b.targets
    if not same.all():
        row = int(same.argmin())
        got = f"{a.targets[row]} and {b.targets[row]}"
        raise UsageError(f"comparison: task {name} row {row} has targets {got}; compare answers to the same rows")

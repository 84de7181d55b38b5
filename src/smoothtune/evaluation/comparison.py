"""Paired comparison of two models on the same rows. Knows nothing of how the answers were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from smoothtune.errors import UsageError
from smoothtune.evaluation.intervals import Estimate, bootstrap, estimate
from smoothtune.evaluation.metrics import FUNCTIONS
from smoothtune.evaluation.scores import TaskAnswers, check_tasks
from smoothtune.runtime.random import numpy_stream


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences a - b of main metrics, with 95 % intervals: by task, and their plain mean over tasks.

    An interval that leaves out 0 tells the models apart on these rows; it says nothing of other training seeds.
    """

    tasks: dict[str, Estimate]
    mean: Estimate


def paired_difference(a: Mapping[str, TaskAnswers], b: Mapping[str, TaskAnswers], *, seed: int) -> Comparison:
    """Compare the answers of two models. Each resample takes the same rows of both; tasks are resampled independently.

    Raises `UsageError` where the two have other tasks, kinds, main metrics or targets.
    """
    _check_same_rows(a, b)
    tasks = {name: _difference(a[name], b[name], numpy_stream(seed, "paired", name)) for name in a}
    value = float(np.mean([found.value for found in tasks.values()]))
    draws = np.mean([found.draws for found in tasks.values()], axis=0)
    return Comparison(tasks, estimate(value, draws, sum(found.n for found in tasks.values())))


def _difference(a: TaskAnswers, b: TaskAnswers, generator: np.random.Generator) -> Estimate:
    metric = FUNCTIONS[a.metric]
    value = float(metric(a.predictions, a.targets) - metric(b.predictions, b.targets))
    of_a, of_b = bootstrap(a.metric, [a.predictions, b.predictions], a.targets, generator)
    return estimate(value, of_a - of_b, len(a))


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

"""What the scores of an epoch in a checkpoint must be, to be scores at all. Knows nothing of checkpoints or of tasks' kinds."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Self

from pydantic import BaseModel, model_validator

from smoothtune.training.state import STRICT

_ROUNDING = 1e-9  # of metrics and their means


class TaskScores(BaseModel):
    """Scores of tasks on one split: every metric by task, the main one of each, and means. What is undefined is `nan`."""

    model_config = STRICT

    tasks: dict[str, dict[str, float]]
    main: dict[str, float]
    score: float
    plain_mean: float
    scoreless: list[str] | tuple[str, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        numbers = [self.score, self.plain_mean, *(value for task in self.tasks.values() for value in task.values())]
        if any(abs(number) > 1 + _ROUNDING for number in numbers):
            raise ValueError("holds a metric beyond -1 to 1")
        if not self.main or self.main.keys() != self.tasks.keys():
            raise ValueError("holds other tasks among the main metrics than among all")
        for task, main in self.main.items():
            if not any(_same(main, value) for value in self.tasks[task].values()):
                raise ValueError(f"holds a main metric of {task} that is none of the task's")
        if any(not math.isnan(self.main.get(task, 0.0)) for task in self.scoreless):
            raise ValueError("holds tasks without a score that have one")
        counted = [main for task, main in self.main.items() if task not in self.scoreless]
        if not _same(self.plain_mean, fmean(counted or self.main.values())):
            raise ValueError("holds a plain mean that is not that of the main metrics")
        return self


class ScoresState(BaseModel):
    """The scores of an epoch, as a stage keeps them from before its first step and of its best state."""

    model_config = STRICT

    dev: TaskScores
    train: TaskScores
    undefined: dict[str, str]
    loss: float = math.nan

    @model_validator(mode="after")
    def _agree(self) -> Self:
        metrics = [{task: sorted(found) for task, found in part.tasks.items()} for part in (self.dev, self.train)]
        if metrics[0] != metrics[1]:
            raise ValueError("holds other metrics of dev than of train")
        return self


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= _ROUNDING or (math.isnan(a) and math.isnan(b))

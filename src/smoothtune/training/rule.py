"""When a stage ends: one value for the whole stage, or one for each task. Knows nothing of how scores are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from smoothtune.config.stage import Stage
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.best import BestState
from smoothtune.training.selection import own_parts
from smoothtune.training.state import STRICT, under
from smoothtune.training.stopping import Stopping

_ROUNDING = 1e-9


class RuleState(BaseModel):
    """What a `Rule` keeps; the parts are checked by those whose they are."""

    model_config = STRICT

    stopping: dict[str, Any]
    by_task: dict[str, dict[str, Any]]
    running: list[str]
    best: dict[str, dict[str, Any]]
    best_step: int | None = None
    best_steps: dict[str, int] = {}
    scoreless: list[str] = []


class StageScores(Protocol):
    """What stopping needs of an evaluation."""

    def value(self, metric: str) -> float:
        """The value of a stage's `stop.metric`: `score`, `plain_mean`, `TASK` or `TASK.METRIC`."""
        ...

    @property
    def main(self) -> Mapping[str, float]:
        """Main metric by task."""
        ...

    @property
    def scoreless(self) -> tuple[str, ...]:
        """The tasks that no model has a score of on these rows."""
        ...

    @property
    def loss(self) -> float:
        """Mean loss over tasks, which decides between equal values of a stage that begins with a probe; else `nan`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which the evaluation that made them makes them again."""
        ...


class Evaluation(Protocol):
    """What a stage follows."""

    def __call__(self, model: MultiTaskModel) -> StageScores:
        """The scores of a model."""
        ...

    def scores_of(self, state: Mapping[str, Any]) -> StageScores:
        """Scores again from their `state_dict`."""
        ...


class Rule:
    """The stage's stopping rule: one value for the whole stage, or one for each task."""

    def __init__(self, stage: Stage, tasks: tuple[str, ...]) -> None:
        stop = stage.stop
        self._metric = stop.metric
        self.stopping = Stopping(
            patience=stop.patience, threshold=stop.threshold, keep_last=stop.keep == "last"
        )  # fmt: skip
        self._holds_tasks = stop.no_task_below_start
        self._leaves_tasks = stop.leaves_each_task
        self.floor: dict[str, float] = {}
        self.best_step: int | None = None  # after how many steps the best state was; 0: before the first
        self.best_steps: dict[str, int] = {}  # the same by task, where each has a state of its own
        last = self._leaves_tasks and stop.keep == "last"
        self.by_task = {
            task: Stopping(patience=stop.patience, threshold=stop.threshold, keep_last=last)
            for task in (tasks if stop.per_task else ())
        }
        self.task_best: dict[str, BestState] = {}
        self.improved_tasks: tuple[str, ...] = ()
        self._running = list(tasks)
        self._scoreless: tuple[str, ...] = ()
        self.reason = "all epochs done" if stop.max_steps is None else "all epochs or steps done"

    def start(self, scores: StageScores, model: MultiTaskModel) -> None:
        """Begin with the scores of `model` as those to beat."""
        self.set_floor(scores)
        self.stopping.start(scores.value(self._metric), scores.loss)
        self.best_step = 0
        for task, stopping in self.by_task.items():
            stopping.start(scores.main[task])
            self.keep_task(task, model, step=0)

    def take(self, scores: StageScores) -> tuple[bool, tuple[str, ...]]:
        """Whether the stage's value improved, and the tasks that finished now."""
        below = self.below_start(scores)
        held_back = bool(below) and not self._leaves_tasks
        improved = self.stopping.improves(math.nan if held_back else scores.value(self._metric), scores.loss)
        self._scoreless = tuple(scores.scoreless)
        judged = [task for task in self._running if task in self.by_task and not self._without_score(task)]
        better = {task: self.by_task[task].improves(scores.main[task]) for task in judged}
        self.improved_tasks = tuple(task for task, value in better.items() if value and task not in below)
        finished = tuple(task for task in better if self.by_task[task].finished)
        self._running = [task for task in self._running if task not in finished]
        return improved, finished

    def _without_score(self, task: str) -> bool:
        """Whether the task trains as long as others do, since no score can end it."""
        return task in self._scoreless and not self._leaves_tasks

    def set_floor(self, scores: StageScores) -> None:
        """Let no task of the best state be below these scores, where the stage asks for that."""
        if self._holds_tasks:
            self.floor = {task: value for task, value in scores.main.items() if math.isfinite(value)}

    def below_start(self, scores: StageScores) -> dict[str, tuple[float, float]]:
        """The tasks whose metric is below what the stage began with: what it was and what it is."""
        return {
            task: (floor, scores.main[task])
            for task, floor in self.floor.items()
            if not scores.main[task] >= floor - _ROUNDING
        }

    def keep_task(self, task: str, model: MultiTaskModel, *, step: int) -> None:
        """Keep what belongs to the task alone as it is after `step` steps: its output, LoRA and adapters."""
        self._best_of(task, model).keep()
        if self._leaves_tasks:
            self.best_steps[task] = step

    def _best_of(self, task: str, model: MultiTaskModel) -> BestState:
        if task not in self.task_best:
            names = [name for name, _ in model.named_parameters() if name.startswith(own_parts(task))]
            self.task_best[task] = BestState(model, names)
        return self.task_best[task]

    def restore_task(self, task: str) -> None:
        """Put the task's best output, LoRA and adapters back, if it ever had them."""
        if task in self.task_best:
            self.task_best[task].restore(own_parts(task))

    @property
    def finished(self) -> tuple[str, ...]:
        """The tasks that have finished by their own metric."""
        return tuple(task for task in self.by_task if task not in self._running)

    @property
    def tasks_with_own_state(self) -> tuple[str, ...]:
        """The tasks that the stage leaves in a state of their own: the finished ones, or all where each has its own."""
        return tuple(self.task_best) if self._leaves_tasks else self.finished

    @property
    def done(self) -> bool:
        """Whether the stage ends now."""
        if self.by_task:
            judged = [task for task in self._running if not self._without_score(task)]
            if self.finished and not judged:
                some = ", but those without a score," if self._running else ""
                self.reason = f"every task{some} spent its patience"
                return True
            return False
        if self.stopping.finished:
            what = (
                f"improvement of more than {self.stopping.threshold:g}"
                if math.isfinite(self.stopping.best)
                else "score"
            )
            self.reason = f"no {what} in {self.stopping.patience} epochs"
        return self.stopping.finished

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "stopping": self.stopping.state_dict(),
            "by_task": {task: stopping.state_dict() for task, stopping in self.by_task.items()},
            "running": list(self._running),
            "best": {task: best.state_dict() for task, best in self.task_best.items()},
            "best_step": self.best_step,
            "best_steps": dict(self.best_steps),
            "scoreless": list(self._scoreless),
        }

    def load_state_dict(
        self, state: Mapping[str, Any], model: MultiTaskModel, present: Mapping[str, Tensor], *, epochs: int
    ) -> None:
        """Go on from the state after `epochs` epochs; `present` is all that `model` will hold, by name.

        Raises `ValueError` for what is no state of such a rule.
        """
        found = RuleState.model_validate(state)
        self._check(found)
        with under("stopping"):
            self.stopping.load_state_dict(found.stopping, epochs=epochs)
        for task, kept in found.by_task.items():
            with under(f"by_task.{task}"):
                self.by_task[task].load_state_dict(kept, epochs=epochs)
        self._running = list(found.running)
        self.best_step, self.best_steps = found.best_step, dict(found.best_steps)
        self._scoreless = tuple(found.scoreless)
        for task, best in found.best.items():
            with under(f"best.{task}"):
                self._best_of(task, model).load_state_dict(best, present)
        for task, stopping in self.by_task.items():
            if math.isfinite(stopping.best) and not (task in self.task_best and self.task_best[task].kept):
                raise ValueError(f"best.{task}: got no state for the best value {stopping.best}")

    def _check(self, found: RuleState) -> None:
        """That it is of the tasks of this rule."""
        if found.by_task.keys() != self.by_task.keys():
            raise ValueError(f"by_task: got {sorted(found.by_task)}, expected {sorted(self.by_task)}")
        if found.running != [task for task in self._running if task in found.running or not self.by_task]:
            raise ValueError(f"running: got {found.running}, expected of {self._running} those that have not finished")
        if not found.best.keys() <= self.by_task.keys():
            raise ValueError(f"best: got {sorted(found.best)}, expected tasks of {sorted(self.by_task)}")

    def agrees(self, active: Sequence[str], *, ended: bool) -> bool:
        """Whether a schedule has these tasks left; where the stage has `ended`, it keeps those that finished last."""
        return set(self._running) <= set(active) if ended else self._running == list(active)

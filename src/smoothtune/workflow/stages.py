"""What `run.json` says of the stages of a run. Knows nothing of how a stage trains, nor of how a model is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smoothtune.config.experiment import Experiment
from smoothtune.config.stage import START
from smoothtune.training.loop import StepReport
from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch, StageEvent
from smoothtune.workflow.metrics_line import plain


@dataclass(slots=True)
class StageRecord:
    """A stage as `run.json` tells of it; until it ends, `reason` and `after` are None.

    `files` are the sums of its model's files where it has a folder of its own (see `kept_stages`).
    """

    experiment: Experiment
    number: int
    begin: StageBegin | None = None
    before: Any = None
    train_seconds: float = 0.0
    end: StageEnd | None = None
    files: dict[str, str] | None = None

    def take(self, event: StageEvent) -> None:
        """Follow one event of the stage."""
        if isinstance(event, StageBegin):
            self.begin = event
        elif isinstance(event, StageEpoch) and event.report.epoch < 0:
            self.before = event.report.dev
        elif isinstance(event, StepReport):
            self.train_seconds = event.seconds
        elif isinstance(event, StageEnd):
            self.end = event

    def to_json(self) -> dict[str, Any]:
        """Plain values. `trains` counts parameters by part; `before` is None where the stage began with no result."""
        stage, begin, end = self.experiment.stages[self.number], self.begin, self.end
        found = {
            "name": stage.name,
            "from": begun_from(self.experiment, self.number),
            "tasks": list(self.experiment.stage_tasks(stage)),
            "trains": {} if begin is None else begin.trains,
            "trained": None if begin is None else begin.trained,
            "parameters": None if begin is None else begin.parameters,
            "precision": None if begin is None else begin.dtype,
            "train_seconds": round(self.train_seconds, 3),
            "reason": None if end is None else end.reason,
            "best_step": None if end is None else end.best_step,
            **({"best_steps": end.best_steps} if end is not None and end.best_steps else {}),
            "before": _scores(self.before),
            "after": None if end is None else _scores(end.after),
            "files": self.files,
        }
        told: dict[str, Any] = plain(found)
        return told


def begun_from(experiment: Experiment, number: int) -> str:
    """The name of the stage from whose best state stage `number` begins, or `start`."""
    source = experiment.source(number)
    return START if source is None else experiment.stages[source].name


def steps_by_task(stages: Iterable[Mapping[str, Any]]) -> dict[str, int | None]:
    """After how many steps of its last stage each task was as that left it; None where that is not known.

    `stages` are those of `run.json`. 0: as the stage began with it, so of a stage that begins with probes the probe.
    """
    steps: dict[str, int | None] = {}
    for stage in stages:
        own = stage.get("best_steps", {})
        steps.update({task: own.get(task, stage.get("best_step")) for task in stage["tasks"]})
    return steps


def _scores(scores: Any) -> dict[str, Any] | None:
    """The dev metrics of the stage's tasks, and their means."""
    if scores is None:
        return None
    return {"dev": scores.dev.tasks, "score": scores.score, "plain_mean": scores.plain_mean}

"""Stages that may end before their rate is at its peak. Knows nothing of data: what `max_steps` ends is not judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smoothtune.config.experiment import Experiment


@dataclass(frozen=True, slots=True)
class SlowStart:
    """The rate of `stage` rises for `warmup` of its `epochs` epochs, and the stage may end after `patience` of them."""

    stage: str
    warmup: float
    epochs: int
    patience: int


def slow_starts(experiment: Experiment) -> Iterator[SlowStart]:
    """Every stage whose warm-up lasts as long as it may take to run out of patience.

    That is `patience` epochs where the state that it begins with is the one to beat, else one more: the first sets the mark.
    """
    for number, stage in enumerate(experiment.stages):
        stop = stage.stop
        if stop.patience is None or stop.max_steps is not None:
            continue
        warmup = round(stage.warmup * stop.max_epochs, 6)
        if warmup >= stop.patience + (0 if _may_begin_with_a_result(experiment, number) else 1):
            yield SlowStart(stage.name, warmup, stop.max_epochs, stop.patience)


def _may_begin_with_a_result(experiment: Experiment, number: int) -> bool:
    """Whether the output of each task of the stage was trained before."""
    earlier = [experiment.stages[place] for place in experiment.before(number)]
    trained = {
        task
        for stage in earlier
        for task in experiment.stage_tasks(stage)
        if not {"outputs", f"outputs.{task}"}.isdisjoint(stage.train)
    }
    return trained.issuperset(experiment.stage_tasks(experiment.stages[number]))

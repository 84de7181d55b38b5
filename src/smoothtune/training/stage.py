"""Runs one stage: prepares module, optimiser and schedule, turns the loop, stops in time, goes back to the best state.

Knows nothing of files, printing or how scores are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator

from smoothtune.config.stage import Stage
from smoothtune.data.batching import BatchStream, Examples
from smoothtune.data.schedules import Schedule
from smoothtune.errors import UsageError
from smoothtune.nn.model import MultiTaskModel, selected
from smoothtune.objective.look import Regulariser
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.registry import resolve
from smoothtune.training.adamw import KernelAdamW
from smoothtune.training.best import BestState
from smoothtune.training.loop import EpochReport, LoopParts, StepReport, run_epochs
from smoothtune.training.optimiser import build_optimiser, build_rates, parameter_groups
from smoothtune.training.step import StepModule
from smoothtune.training.stopping import Stopping


class StageScores(Protocol):
    """What stopping needs of an evaluation."""

    def value(self, metric: str) -> float:
        """The value of a stage's `stop.metric`: `score`, `plain_mean`, `TASK` or `TASK.METRIC`."""
        ...

    @property
    def main(self) -> Mapping[str, float]:
        """Main metric by task."""
        ...


@dataclass(frozen=True, slots=True)
class StageBegin:
    """Before the first step: what trains, and its share of all parameters."""

    stage: str
    tasks: tuple[str, ...]
    steps: int
    trained: int
    parameters: int
    dtype: str


@dataclass(frozen=True, slots=True)
class StageEpoch:
    """After an epoch: the loop's report, whether this is the new best, and the tasks that finished with it.

    Where the state that the stage began with is the one to beat, it comes first, as epoch -1.
    """

    report: EpochReport
    best: bool
    finished: tuple[str, ...]
    factors: dict[str, float]


@dataclass(frozen=True, slots=True)
class StageEnd:
    """After the stage: why it ended and the best value of its metric (nan when there was none)."""

    stage: str
    reason: str
    metric: str
    best: float


StageEvent = StageBegin | StepReport | StageEpoch | StageEnd


@dataclass(slots=True)
class StageRun:
    """One stage on its way; `events()` runs it.

    With `entry_counts` the model it begins with is a result: it is scored first and is the state to beat, so that the
    stage never leaves the model worse by its own metric.
    """

    model: MultiTaskModel
    stage: Stage
    examples: Mapping[str, Examples]
    facts: Mapping[str, TaskFacts]
    evaluate: Callable[[MultiTaskModel], StageScores]
    seed: int
    dtype: torch.dtype
    accelerator: Accelerator
    regularisers: Sequence[Regulariser] = ()
    entry_counts: bool = False
    _best: BestState | None = field(init=False, default=None)
    _rule: _Rule | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Raises `UsageError` where regularisers are to look at the layers of an encoder that does not run."""
        kept = [task for task, examples in self.examples.items() if examples.states]
        if self.regularisers and kept:
            asked = ", ".join(regulariser.name for regulariser in self.regularisers)
            raise UsageError(
                f"stage {self.stage.name}: regularisers ({asked}) look at the encoder, but the examples of "
                f"{', '.join(kept)} carry its kept states; give examples without states "
                '(runtime.frozen_states = "off" makes none), or no regularisers'
            )

    def events(self) -> Iterator[StageEvent]:
        """Train until the stopping rule says so, then put the best state back. The reader may stop at any event."""
        try:
            yield from self._events()
        finally:
            self.model.encoder.give_sparse_gradients(False)

    def _events(self) -> Iterator[StageEvent]:
        chosen = self._choose()
        self._best = best = BestState(self.model, chosen)
        self._rule = rule = _Rule(self.stage, tuple(self.examples))
        if self.entry_counts:
            best.keep()
        parts = self._parts(chosen)
        everything = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in chosen.values())
        dtype = str(self.dtype).removeprefix("torch.")
        yield StageBegin(self.stage.name, parts.schedule.active, parts.total_steps, trained, everything, dtype)
        if self.entry_counts:
            scores = self.evaluate(self.model)
            rule.start(scores, self.model)
            entry = EpochReport(self.stage.name, -1, 0, 0.0, {}, {}, scores, 0)
            yield StageEpoch(entry, True, (), parts.module.weighting.factors())
        for report in run_epochs(parts):
            if isinstance(report, StepReport):
                yield report
                continue
            improved, finished = rule.take(report.dev)
            for task in rule.improved_tasks:
                rule.keep_task(task, self.model)
            for task in finished:
                if report.step < parts.total_steps:
                    parts.schedule.finish(task)
                rule.restore_task(task)
            if improved:
                best.keep()
            yield StageEpoch(report, improved, finished, parts.module.weighting.factors())
            if rule.done:
                break
        self.restore()
        value = rule.stopping.best if math.isfinite(rule.stopping.best) else math.nan
        yield StageEnd(self.stage.name, rule.reason, self.stage.stop.metric, value)

    def restore(self) -> bool:
        """Put the best state back, and the best output of each finished task; whether there was a best state."""
        if self._best is None or self._rule is None:
            return False
        self._best.restore()
        for task in self._rule.finished:
            self._rule.restore_task(task)
        return self._best.kept

    def _choose(self) -> dict[str, torch.nn.Parameter]:
        chosen = chosen_parameters(self.model, self.stage, tuple(self.examples))
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def _parts(self, chosen: Mapping[str, torch.nn.Parameter]) -> LoopParts:
        stage = self.stage
        weighting = WeightingProduct(stage.weighting, {name: self.facts[name] for name in self.examples})
        module = StepModule(self.model, weighting, dtype=self.dtype, regularisers=self.regularisers)
        schedule = self._schedule()
        total = _total_steps(schedule, stage)
        optimiser = build_optimiser(parameter_groups(self.model, weighting.to(self.accelerator.device), chosen, stage))
        rates = build_rates(optimiser, warmup_share=stage.warmup, total=total)
        alone = self.accelerator.num_processes == 1  # then there is nothing to wrap, and wrappers cost at each step
        self.model.encoder.give_sparse_gradients(alone and isinstance(optimiser, KernelAdamW))
        prepared, wrapped = (module, optimiser) if alone else self.accelerator.prepare(module, optimiser)
        return LoopParts(
            module, prepared, wrapped, rates, schedule, self.accelerator, stage, self.seed, total, self.evaluate
        )

    def _schedule(self) -> Schedule:
        stage = self.stage
        sources = {
            name: BatchStream(examples, stage.batch_size, seed=self.seed, stage=stage.name)
            for name, examples in self.examples.items()
        }
        kind = resolve("schedules", stage.schedule)
        schedule: Schedule = kind(
            sources, stage.schedule_options, seed=self.seed, stage=stage.name, epochs=stage.stop.max_epochs
        )
        return schedule


def chosen_parameters(model: MultiTaskModel, stage: Stage, tasks: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    """What the stage trains, by full name. Raises `UsageError` for a selection without parameters, or a task without any."""
    try:
        chosen = selected(model, stage.train, tasks)
    except ValueError as error:
        raise UsageError(f"stage {stage.name}: train: {error}; correct the selection") from None
    for task in tasks:
        parts = ("encoder.", f"trunks.{model.tasks[task].trunk}.", f"outputs.{task}.")
        if not any(name.startswith(parts) for name in chosen):
            what = f"{', '.join(stage.train)} leaves nothing to learn from task {task}"
            raise UsageError(
                f"stage {stage.name}: train: {what}; select its output, or leave it out of the stage's tasks"
            )
    return chosen


def begins_trained(model: MultiTaskModel, tasks: tuple[str, ...], trained: Set[str]) -> bool:
    """Whether all outputs and trunks of `tasks` are among the parameters already `trained`, so that the model is a result."""
    heads = tuple(part for task in tasks for part in (f"outputs.{task}.", f"trunks.{model.tasks[task].trunk}."))
    return {name for name, _ in model.named_parameters() if name.startswith(heads)} <= trained


def _total_steps(schedule: Schedule, stage: Stage) -> int:
    wanted = schedule.group * stage.accumulate
    total = sum(-(-batches // wanted) for batches in schedule.epoch_batches())
    return total if stage.stop.max_steps is None else min(total, stage.stop.max_steps)


class _Rule:
    """The stage's stopping rule: one value for the whole stage, or one for each task."""

    def __init__(self, stage: Stage, tasks: tuple[str, ...]) -> None:
        stop = stage.stop
        self._metric = stop.metric
        self.stopping = Stopping(patience=stop.patience, threshold=stop.threshold)
        self.by_task = (
            {task: Stopping(patience=stop.patience, threshold=stop.threshold) for task in tasks}
            if stop.per_task
            else {}
        )
        self.task_best: dict[str, BestState] = {}
        self.improved_tasks: tuple[str, ...] = ()
        self._running = list(tasks)
        self.reason = "all epochs done" if stop.max_steps is None else "all epochs or steps done"

    def start(self, scores: StageScores, model: MultiTaskModel) -> None:
        """Begin with the scores of `model` as those to beat."""
        self.stopping.start(scores.value(self._metric))
        for task, stopping in self.by_task.items():
            stopping.start(scores.main[task])
            self.keep_task(task, model)

    def take(self, scores: StageScores) -> tuple[bool, tuple[str, ...]]:
        """Whether the stage's value improved, and the tasks that finished now."""
        improved = self.stopping.improves(scores.value(self._metric))
        better = {
            task: self.by_task[task].improves(scores.main[task]) for task in self._running if task in self.by_task
        }
        self.improved_tasks = tuple(task for task, value in better.items() if value)
        finished = tuple(task for task in better if self.by_task[task].finished)
        self._running = [task for task in self._running if task not in finished]
        return improved, finished

    def keep_task(self, task: str, model: MultiTaskModel) -> None:
        """Keep the task's output as it is now."""
        if task not in self.task_best:
            names = [name for name, _ in model.named_parameters() if name.startswith(f"outputs.{task}.")]
            self.task_best[task] = BestState(model, names)
        self.task_best[task].keep()

    def restore_task(self, task: str) -> None:
        """Put the task's best output back, if it ever had one."""
        if task in self.task_best:
            self.task_best[task].restore(f"outputs.{task}.")

    @property
    def finished(self) -> tuple[str, ...]:
        """The tasks that have finished by their own metric."""
        return tuple(task for task in self.by_task if task not in self._running)

    @property
    def done(self) -> bool:
        """Whether the stage ends now."""
        if self.by_task:
            if not self._running:
                self.reason = "every task spent its patience"
            return not self._running
        if self.stopping.finished:
            self.reason = f"no improvement of more than {self.stopping.threshold:g} in {self.stopping.patience} epochs"
        return self.stopping.finished

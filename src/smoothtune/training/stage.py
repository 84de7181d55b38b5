"""Runs one stage: prepares module, optimiser and schedule, turns the loop, stops in time, goes back to the best state.

Knows nothing of files, printing or how scores are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from smoothtune.config.stage import Stage
from smoothtune.data.batching import BatchStream, Examples
from smoothtune.data.schedules import Schedule
from smoothtune.errors import UsageError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.look import Regulariser
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.registry import resolve
from smoothtune.training.adamw import KernelAdamW
from smoothtune.training.best import BestState
from smoothtune.training.loop import EpochReport, LoopParts, StepReport, run_epochs
from smoothtune.training.notices import Notice, Notices
from smoothtune.training.optimiser import build_optimiser, build_rates, parameter_groups
from smoothtune.training.probe import Probe, Records, probe_batch
from smoothtune.training.rule import Rule, StageScores
from smoothtune.training.selection import chosen_parameters, counted
from smoothtune.training.step import StepModule


@dataclass(frozen=True, slots=True)
class StageBegin:
    """Before the first step: what trains, and its share of all parameters.

    `trains` counts the parameters that train by part: `encoder` or its layers, `trunks.NAME`, `outputs.TASK`,
    `lora.TASK`, `adapters.TASK`.
    """

    stage: str
    tasks: tuple[str, ...]
    steps: int
    trains: dict[str, int]
    parameters: int
    dtype: str

    @property
    def trained(self) -> int:
        """The number of parameters that train."""
        return sum(self.trains.values())


@dataclass(frozen=True, slots=True)
class StageEpoch:
    """After an epoch: the loop's report, whether this is the new best, and the tasks that finished with it.

    Where the state that the stage began with is the one to beat, it comes first, as epoch -1. `probe` holds what the
    regularisers do to this state, by task and regulariser.
    """

    report: EpochReport
    best: bool
    finished: tuple[str, ...]
    factors: dict[str, float]
    probe: Records = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageEnd:
    """After the stage: why it ended and the best value of its metric (nan when there was none).

    `before` are the scores of the state that the stage began with, None where that was no result; `after` those of the
    state that it leaves.
    """

    stage: str
    reason: str
    metric: str
    best: float
    before: Any = None
    after: Any = None


StageEvent = StageBegin | StepReport | StageEpoch | Notice | StageEnd


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
    _rule: Rule | None = field(init=False, default=None)

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
        self._rule = rule = Rule(self.stage, tuple(self.examples))
        if self.entry_counts:
            best.keep()
        parts = self._parts(chosen)
        everything = sum(parameter.numel() for parameter in self.model.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        yield StageBegin(
            self.stage.name,
            parts.schedule.active,
            parts.total_steps,
            counted(chosen, self.stage.train),
            everything,
            dtype,
        )
        probe, notices = self._probe(parts), Notices(self.stage.name, self.regularisers, dtype)
        records = probe(0, 0.0)
        before = after = None
        if self.entry_counts:
            before = after = self.evaluate(self.model)
            rule.start(before, self.model)
            entry = EpochReport(self.stage.name, -1, 0, 0.0, {}, {}, before, 0)
            yield StageEpoch(entry, True, (), parts.module.weighting.factors(), records)
        yield from notices.new(records)  # before hours are spent on a term that does nothing
        for report in run_epochs(parts):
            if isinstance(report, StepReport):
                yield report
                continue
            records = probe(report.step, report.step / parts.total_steps)
            improved, finished = rule.take(report.dev)
            for task in rule.improved_tasks:
                rule.keep_task(task, self.model)
            for task in finished:
                if report.step < parts.total_steps:
                    parts.schedule.finish(task)
                rule.restore_task(task)
            if improved:
                best.keep()
            if improved or not best.kept:
                after = report.dev
            yield StageEpoch(report, improved, finished, parts.module.weighting.factors(), records)
            yield from notices.new(records)
            if rule.done:
                break
        self.restore()
        if rule.finished:  # their best outputs stand beside the best epoch's rest: a state that no epoch has scored
            after = self.evaluate(self.model)
        value = rule.stopping.best if math.isfinite(rule.stopping.best) else math.nan
        yield StageEnd(self.stage.name, rule.reason, self.stage.stop.metric, value, before, after)

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
        module = StepModule(
            self.model,
            weighting,
            dtype=self.dtype,
            regularisers=self.regularisers,
            frozen_dropout=stage.frozen_dropout,
        )
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

    def _probe(self, parts: LoopParts) -> Probe:
        device, most = self.accelerator.device, self.stage.batch_size
        looked_at = self.examples if self.regularisers else {}
        batches = {name: probe_batch(rows, most, self.seed).to(device) for name, rows in looked_at.items()}
        return Probe(parts.module, parts.trained, batches, self.seed, self.stage.name)

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


def _total_steps(schedule: Schedule, stage: Stage) -> int:
    wanted = schedule.group * stage.accumulate
    total = sum(-(-batches // wanted) for batches in schedule.epoch_batches())
    return total if stage.stop.max_steps is None else min(total, stage.stop.max_steps)

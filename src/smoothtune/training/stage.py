"""Runs one stage: prepares module, optimiser and schedule, turns the loop, stops in time, goes back to the best state.

Knows nothing of files, printing or how scores are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from smoothtune.config.stage import Stage
from smoothtune.data.batching import BatchStream, Examples
from smoothtune.data.schedules import Schedule
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.look import Regulariser
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.registry import resolve
from smoothtune.runtime import processes
from smoothtune.runtime.processes import ALONE, computing_with
from smoothtune.training.adamw import KernelAdamW
from smoothtune.training.best import BestState
from smoothtune.training.loop import EpochReport, Pieces, StepReport, run_epochs
from smoothtune.training.notices import Notices
from smoothtune.training.optimiser import (
    build_optimiser,
    build_rates,
    moments_of,
    parameter_groups,
)
from smoothtune.training.optimiser_step import LoopParts
from smoothtune.training.probe import Probe, Records, probe_batch
from smoothtune.training.rule import Evaluation, Rule
from smoothtune.training.selection import chosen_parameters, counted, freeze_all_but, passed_through
from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch, StageEvent
from smoothtune.training.stage_state import Live, go_on
from smoothtune.training.state import State, refusal
from smoothtune.training.step import StepModule


@dataclass(slots=True)
class StageRun:
    """One stage on its way; `events()` runs it.

    With `entry_counts` the model it begins with is a result: it is scored first and is the state to beat, so that the
    stage never leaves the model worse by its own metric. With `goes_on_from`, the `state_dict` of a run of the same stage on
    the same data, it goes on from there, to the same bits; the model is then the one that the stage began with.
    `class_weights` are (C,) by task, for the tasks that have any.
    """

    model: MultiTaskModel
    stage: Stage
    examples: Mapping[str, Examples]
    facts: Mapping[str, TaskFacts]
    evaluate: Evaluation
    seed: int
    dtype: torch.dtype
    accelerator: Accelerator
    regularisers: Sequence[Regulariser] = ()
    entry_counts: bool = False
    goes_on_from: Mapping[str, Any] | None = None
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    _live: Live | None = field(init=False, default=None)

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
        """Train until the stopping rule says so, then put the best state back. The reader may stop at any event.

        Raises `ModelFileError` where the state to go on from does not fit the stage.
        """
        try:
            yield from self._events()
        finally:
            self.model.encoder.give_sparse_gradients(False)

    def _events(self) -> Iterator[StageEvent]:
        live = self._live = self._begin()
        yield self._told(live)
        if self.goes_on_from is None:
            yield from self._enter(live)
        for report in () if live.rule.done else run_epochs(live.parts, live.at):
            if isinstance(report, StepReport | Pieces):
                yield report
                continue
            yield from self._judge(live, report)
            if live.rule.done:
                break
        self.restore()
        rule = live.rule
        value = rule.stopping.best if math.isfinite(rule.stopping.best) else math.nan
        if rule.tasks_with_own_state:  # their states come from several epochs: no epoch has scored them together
            live.after = self.evaluate(self.model)
            value = live.after.value(self.stage.stop.metric) if self.stage.stop.leaves_each_task else value
        yield StageEnd(
            self.stage.name, rule.reason, self.stage.stop.metric, value, live.before, live.after, rule.best_step,
            dict(rule.best_steps),
        )  # fmt: skip

    def state_dict(self) -> State:
        """What another process needs to go on after the last event but a `StageEnd`: plain values and tensors, not copied.

        What the stage does not train is not in it.
        """
        live, held = self._running(), self.model.state_dict()
        parts = live.parts
        return {
            "progress": live.at.state_dict(),
            "schedule": parts.schedule.state_dict(),
            "weights": {name: held[name] for name in live.best.names},
            "weighting": dict(parts.module.weighting.state_dict()),
            "moments": moments_of(parts.optimiser),
            "regularisers": [regulariser.state_dict() for regulariser in self.regularisers],
            "best": live.best.state_dict(),
            "rule": live.rule.state_dict(),
            "notices": live.notices.state_dict(),
            "before": None if live.before is None else live.before.state_dict(),
            "after": None if live.after is None else live.after.state_dict(),
        }

    def restore(self) -> bool:
        """Put the best state back, and the best output of each finished task; whether there was a best state."""
        if self._live is None:
            return False
        self._live.best.restore()
        for task in self._live.rule.tasks_with_own_state:
            self._live.rule.restore_task(task)
        return self._live.best.kept

    def _running(self) -> Live:
        if self._live is None:
            raise UsageError(f"stage {self.stage.name} has no state yet; take it after an event of the stage")
        return self._live

    def _begin(self) -> Live:
        chosen = self._choose()
        best, rule = BestState(self.model, chosen), Rule(self.stage, tuple(self.examples))
        if self.entry_counts and self.goes_on_from is None:
            best.keep()
        parts = self._parts(chosen)
        notices = Notices(self.stage.name, self.regularisers, parts.module.dtype_with)
        live = Live(chosen, parts, self._probe(parts), notices, best, rule)
        if self.goes_on_from is not None:
            self._go_on(live, self.goes_on_from)
        return live

    def _go_on(self, live: Live, state: Mapping[str, Any]) -> None:
        """Put `state` in place of what the stage begins with."""
        try:
            go_on(live, state, self.evaluate, entry_counts=self.entry_counts)
        except ValueError as error:
            raise ModelFileError(refusal(state, f"stage {self.stage.name}", error)) from None

    def _told(self, live: Live) -> StageBegin:
        everything = sum(parameter.numel() for parameter in self.model.parameters())
        return StageBegin(
            self.stage.name,
            live.parts.schedule.active,
            live.parts.total_steps,
            counted(live.chosen, self.stage.train),
            everything,
            _name_of(self.dtype),
            live.at.step,
            self.stage.stop.keep == "last",
            passed_through(self.model, live.chosen, tuple(self.examples)),
        )

    def _enter(self, live: Live) -> Iterator[StageEvent]:
        """What there is to tell before the first step."""
        records = _probed(live, 0)
        if self.entry_counts:
            live.before = live.after = self.evaluate(self.model)
            live.rule.start(live.before, self.model)
            entry = EpochReport(self.stage.name, -1, 0, 0.0, {}, {}, live.before, 0)
            yield StageEpoch(entry, self._marks_best, (), live.parts.module.weighting.factors(), records)
        yield from live.notices.new(records)  # before hours are spent on a term that does nothing

    def _judge(self, live: Live, report: EpochReport) -> Iterator[StageEvent]:
        """What an epoch means; after the last of these events the state is one to go on from."""
        parts, rule = live.parts, live.rule
        records = _probed(live, report.step)
        improved, finished = rule.take(report.dev)
        for task in rule.improved_tasks:
            rule.keep_task(task, self.model, step=report.step)
        for task in finished:
            if report.step < parts.total_steps:
                parts.schedule.finish(task)
            rule.restore_task(task)
        if improved:
            live.best.keep()
            rule.best_step = report.step
        if improved or not live.best.kept:
            live.after = report.dev
        yield from live.notices.new(records)
        below = rule.below_start(report.dev)
        each_task = self.stage.stop.leaves_each_task
        factors = parts.module.weighting.factors()
        yield StageEpoch(report, improved and self._marks_best, finished, factors, records, below, each_task)

    @property
    def _marks_best(self) -> bool:
        """Whether one state of all tasks is the best so far."""
        return self.stage.stop.keep == "best" and not self.stage.stop.leaves_each_task

    def _choose(self) -> dict[str, torch.nn.Parameter]:
        chosen = chosen_parameters(self.model, self.stage, tuple(self.examples))
        freeze_all_but(self.model, chosen, self.stage, tuple(self.examples))
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
            class_weights={name: weights.to(self.accelerator.device) for name, weights in self.class_weights.items()},
        )
        schedule = self._schedule()
        total = _total_steps(schedule, stage)
        optimiser = build_optimiser(parameter_groups(self.model, weighting.to(self.accelerator.device), chosen, stage))
        rates = build_rates(optimiser, warmup_share=stage.warmup, total=total)
        together = processes.current()
        self.model.encoder.give_sparse_gradients(together.alone and isinstance(optimiser, KernelAdamW))
        return LoopParts(
            module, optimiser, rates, schedule, self.accelerator, together, stage, self.seed, total, self.evaluate,
            {name: examples.shown for name, examples in self.examples.items()},
        )  # fmt: skip

    def _probe(self, parts: LoopParts) -> Probe:
        device, most = self.accelerator.device, self.stage.batch_size
        looked_at = self.examples if self.regularisers else {}
        batches = {name: probe_batch(rows, most, self.seed).to(device) for name, rows in looked_at.items()}
        return Probe(parts.module, parts.trained, batches, self.seed, self.stage.name)

    def _schedule(self) -> Schedule:
        """Its batches are those that all processes have in common."""
        stage = self.stage
        size = stage.batch_size * processes.current().world
        sources = {
            name: BatchStream(examples, size, seed=self.seed, stage=stage.name)
            for name, examples in self.examples.items()
        }
        kind = resolve("schedules", stage.schedule)
        schedule: Schedule = kind(
            sources, stage.schedule_options, seed=self.seed, stage=stage.name, epochs=stage.stop.max_epochs
        )
        return schedule


def _probed(live: Live, step: int) -> Records:
    """What the regularisers do after `step` steps: the same in every process, so that none needs the others for it."""
    with computing_with(ALONE):
        return live.probe(step, step / max(live.parts.total_steps, 1))


def _total_steps(schedule: Schedule, stage: Stage) -> int:
    wanted = schedule.group * stage.accumulate
    total = sum(-(-batches // wanted) for batches in schedule.epoch_batches())
    return total if stage.stop.max_steps is None else min(total, stage.stop.max_steps)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

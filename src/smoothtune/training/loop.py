"""The training loop of one stage: a generator of reports. Saving, printing and stopping are done by who reads them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from smoothtune.config.stage import Stage
from smoothtune.data.schedules import Coverage, Schedule
from smoothtune.errors import TrainingError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch


@dataclass(frozen=True, slots=True)
class StepReport:
    """After each optimiser step.

    `losses` holds, per task of the step, the mean of each loss part (`unweighted`, `task`, `weight`, regularisers);
    `seconds` is the training time of the stage so far; `skipped` counts batches left out because their loss was not
    finite.
    """

    stage: str
    epoch: int
    step: int
    of_steps: int
    losses: dict[str, dict[str, float]]
    rate: float
    seconds: float
    skipped: int


@dataclass(frozen=True, slots=True)
class EpochReport:
    """After each epoch, and at the last step of the stage.

    `losses` are means over the epoch by task and part; `dev` is whatever `evaluate` gave; `coverage` what the
    epoch saw of each task's rows.
    """

    stage: str
    epoch: int
    step: int
    train_seconds: float
    losses: dict[str, dict[str, float]]
    coverage: dict[str, Coverage]
    dev: Any
    skipped: int


@dataclass(slots=True)
class _Means:
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, parts: dict[str, float]) -> None:
        into = self.sums.setdefault(task, {})
        for name, value in parts.items():
            into[name] = into.get(name, 0.0) + value
        self.counts[task] = self.counts.get(task, 0) + 1

    def means(self) -> dict[str, dict[str, float]]:
        return {
            task: {name: value / self.counts[task] for name, value in parts.items()}
            for task, parts in self.sums.items()
        }


@dataclass(slots=True)
class LoopParts:
    """What the loop turns: all of it is prepared outside."""

    module: StepModule
    prepared: torch.nn.Module
    optimiser: Optimizer
    rates: LRScheduler
    schedule: Schedule
    accelerator: Accelerator
    stage: Stage
    seed: int
    total_steps: int
    evaluate: Callable[[MultiTaskModel], Any]


def run_epochs(parts: LoopParts) -> Iterator[StepReport | EpochReport]:
    """Train until the stage's largest number of epochs or steps; the reader may stop reading at any report.

    Raises `TrainingError` at a loss that is not finite, unless the stage skips such batches.
    """
    stage, schedule = parts.stage, parts.schedule
    step = number = skipped = 0
    spent = 0.0
    while schedule.epoch < stage.stop.max_epochs and schedule.active and step < parts.total_steps:
        epoch, coverage, means = schedule.epoch, schedule.coverage(), _Means()
        wanted = schedule.group * stage.accumulate
        parts.prepared.train()
        put_frozen_to_rest(parts.module)
        group: list[tuple[str, Batch]] = []
        left = len(schedule)
        began = time.perf_counter()
        for item in schedule:
            group.append(item)
            left -= 1
            if len(group) < wanted and left:
                continue
            losses, bad = _optimiser_step(parts, group, number, step)
            number += len(group)
            skipped += bad
            step += 1
            group = []
            for task, task_losses in losses.sums.items():
                means.add(task, {name: value / losses.counts[task] for name, value in task_losses.items()})
            spent += time.perf_counter() - began
            rate = float(max(parts.rates.get_last_lr()))
            yield StepReport(stage.name, epoch, step, parts.total_steps, losses.means(), rate, spent, skipped)
            began = time.perf_counter()
            if step >= parts.total_steps:
                break
        yield EpochReport(
            stage.name, epoch, step, spent, means.means(), coverage, parts.evaluate(parts.module.model), skipped
        )


def put_frozen_to_rest(module: StepModule) -> None:
    """Modules whose every parameter is frozen are put into eval mode: no dropout, no running statistics."""
    _rest(module.model)


def _rest(module: torch.nn.Module) -> None:
    own = [parameter.requires_grad for parameter in module.parameters()]
    if own and not any(own):
        module.eval()  # the module's own `eval` decides for what it holds: an LSTM must stay in training mode
        return
    for child in module.children():
        _rest(child)


def _optimiser_step(parts: LoopParts, group: list[tuple[str, Batch]], number: int, step: int) -> tuple[_Means, int]:
    """One optimiser step over the batches of `group`; the mean loss parts by task, and how many batches were skipped."""
    losses, good = _Means(), 0
    share = 1.0 / parts.stage.accumulate
    for offset, (task, batch) in enumerate(group):
        name = StepName(
            parts.seed, parts.stage.name, number + offset, parts.accelerator.process_index, step / parts.total_steps
        )
        found = parts.prepared(batch.to(parts.accelerator.device), name)
        total = _total(found)
        if not math.isfinite(float(total.detach())):
            _refuse_or_skip(parts.stage, task, batch, float(total.detach()), step)
            continue
        parts.accelerator.backward(total * share)
        losses.add(task, {part: float(value.detach()) for part, value in found.items()})
        good += 1
    if good:
        _apply(parts)
    parts.optimiser.zero_grad(set_to_none=True)
    parts.rates.step()
    return losses, len(group) - good


def _apply(parts: LoopParts) -> None:
    if parts.stage.gradient_clip is not None:
        trained = [parameter for group in parts.optimiser.param_groups for parameter in group["params"]]
        parts.accelerator.clip_grad_norm_(trained, parts.stage.gradient_clip)
    parts.optimiser.step()


def _total(found: dict[str, Tensor]) -> Tensor:
    minimised = [value for part, value in found.items() if part != "unweighted"]
    return torch.stack(minimised).sum()


def _refuse_or_skip(stage: Stage, task: str, batch: Batch, loss: float, step: int) -> None:
    if stage.on_nan == "skip":
        return
    rows = ", ".join(str(row) for row in batch.rows[:8].tolist())
    raise TrainingError(
        f"stage {stage.name}, step {step + 1}: the loss of task {task} is {loss} on the batch with rows {rows}"
        f"{', ...' if len(batch) > 8 else ''} of its training data; lower the learning rate, "
        'use precision = "float32", or set on_nan = "skip" to leave such batches out'
    )

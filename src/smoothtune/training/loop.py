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
from smoothtune.data.schedules import Coverage, Schedule, Seen
from smoothtune.errors import TrainingError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.adamw import clip_gradients
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch


@dataclass(frozen=True, slots=True)
class StepReport:
    """After each optimiser step.

    `losses` holds, per task of the step, the mean of each loss part (`unweighted`, `task`, `weight`, regularisers);
    `seconds` is the training time of the stage so far; `skipped` counts batches left out because their loss, or
    the gradient of their step, was not finite.
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

    `losses` are means over the epoch by task and part; `dev` is whatever `evaluate` gave; `coverage` how often
    the epoch learned from each task's rows. Epoch -1 is the state the stage began with: step 0, no losses, no coverage.
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
    trained: list[Tensor] = field(init=False)
    statistics: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self.statistics = list(self.module.buffers())  # once: to look for them takes longer than a small step

    def backward(self, loss: Tensor) -> None:
        """The gradients of `loss`, added to those that are there."""
        if self.accelerator.num_processes == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(loss)


def run_epochs(parts: LoopParts) -> Iterator[StepReport | EpochReport]:
    """Train until the stage's largest number of epochs or steps; the reader may stop reading at any report.

    Raises `TrainingError` at a loss or a gradient that is not finite, unless the stage skips such batches. Neither ever
    reaches the parameters or the running statistics.
    """
    stage, schedule = parts.stage, parts.schedule
    step = number = skipped = 0
    spent = 0.0
    while schedule.epoch < stage.stop.max_epochs and schedule.active and step < parts.total_steps:
        epoch, means = schedule.epoch, _Means()
        seen = {task: Seen() for task in schedule.active}
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
            losses, good = _optimiser_step(parts, group, number, step)
            number += len(group)
            skipped += len(group) - len(good)
            for batch in good:
                seen[batch.task].add(batch.rows.numpy())
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
        coverage = {task: rows.coverage(schedule.sources[task].rows) for task, rows in seen.items()}
        yield EpochReport(
            stage.name, epoch, step, spent, means.means(), coverage, parts.evaluate(parts.module.model), skipped
        )


def put_frozen_to_rest(module: StepModule) -> None:
    """Modules whose every parameter is frozen are put into eval mode: no running statistics, and no dropout.

    With the step's `frozen_dropout` only what has running statistics rests.
    """
    _rest(module.model, module.frozen_dropout)


def _rest(module: torch.nn.Module, keep_dropout: bool) -> None:
    own = [parameter.requires_grad for parameter in module.parameters()]
    if not own or any(own):
        for child in module.children():
            _rest(child, keep_dropout)
        return
    for part in _with_statistics(module) if keep_dropout else [module]:
        part.eval()  # the module's own `eval` decides for what it holds: an LSTM must stay in training mode


def _with_statistics(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [part for part in module.modules() if "running_mean" in dict(part.named_buffers(recurse=False))]


def _optimiser_step(
    parts: LoopParts, group: list[tuple[str, Batch]], number: int, step: int
) -> tuple[_Means, list[Batch]]:
    """One optimiser step over the batches of `group`; the mean loss parts by task, and the batches it learned from."""
    losses, good = _Means(), list[Batch]()
    share = 1.0 / parts.stage.accumulate
    before = _copied(parts.statistics)
    for offset, (task, batch) in enumerate(group):
        name = StepName(
            parts.seed, parts.stage.name, number + offset, parts.accelerator.process_index, step / parts.total_steps
        )
        last = _copied(parts.statistics) if offset else before
        found = parts.prepared(batch.to(parts.accelerator.device), name)
        total = _total(found)
        value = float(total.detach())
        if not math.isfinite(value):
            _put_back(parts.statistics, last)
            _refuse_or_skip(parts.stage, step, f"the loss of task {task} is {value}", [batch])
            continue
        parts.backward(total if share == 1 else total * share)
        losses.add(task, {part: float(value.detach()) for part, value in found.items()})
        good.append(batch)
    norm = clip_gradients(parts.optimiser, parts.stage.gradient_clip)
    if good and math.isfinite(norm):
        parts.optimiser.step()
    elif good:
        _put_back(parts.statistics, before)
        tasks = ", ".join(dict.fromkeys(batch.task for batch in good))
        _refuse_or_skip(parts.stage, step, f"the norm of the gradients of {tasks} is {norm}", good)
        losses, good = _Means(), []
    for parameter in parts.trained:  # `zero_grad` does this too, behind checks that take longer than a small step
        parameter.grad = None
    parts.rates.step()
    return losses, good


def _copied(statistics: list[Tensor]) -> list[Tensor]:
    return [statistic.clone() for statistic in statistics]


def _put_back(statistics: list[Tensor], copies: list[Tensor]) -> None:
    for statistic, kept in zip(statistics, copies, strict=True):
        statistic.copy_(kept)


def _total(found: dict[str, Tensor]) -> Tensor:
    first, *others = (value for part, value in found.items() if part != "unweighted")
    for value in others:
        first = first + value
    return first


def _refuse_or_skip(stage: Stage, step: int, what: str, batches: list[Batch]) -> None:
    if stage.on_nan == "skip":
        return
    places = "; ".join(_rows(batch, named=len(batches) > 1) for batch in batches[:4])
    raise TrainingError(
        f"stage {stage.name}, step {step + 1}: {what} on the batch with rows {places} of its training data; "
        'lower the learning rate, use precision = "float32", or set on_nan = "skip" to leave such batches out'
    )


def _rows(batch: Batch, *, named: bool) -> str:
    rows = ", ".join(str(row) for row in batch.rows[:8].tolist())
    more = ", ..." if len(batch) > 8 else ""
    return f"{rows}{more} (task {batch.task})" if named else f"{rows}{more}"

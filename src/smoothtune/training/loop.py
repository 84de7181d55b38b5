"""The training loop of one stage: a generator of reports. Saving, printing and stopping are done by who reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from smoothtune.data.schedules import Coverage
from smoothtune.training.optimiser_step import LoopParts, optimiser_step
from smoothtune.training.progress import Means, Progress
from smoothtune.training.step import StepModule
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
class Pieces:
    """Memory was too small: from step `step` on a batch goes through in `pieces` of at most `rows` rows, gradients added up."""

    stage: str
    step: int
    pieces: int
    rows: int


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


def run_epochs(parts: LoopParts, at: Progress) -> Iterator[StepReport | Pieces | EpochReport]:
    """Train from `at` until the stage's largest number of epochs or steps; the reader may stop reading at any report.

    `at` is kept up to date: after any report, it and the states of the parts are what another loop can go on from. Raises
    `TrainingError` at a loss or a gradient that is not finite, unless the stage skips such batches. Neither ever
    reaches the parameters or the running statistics.
    """
    schedule = parts.schedule
    while at.epoch is not None or _another(parts, at):
        if at.epoch is None:
            at.begin(schedule.epoch, schedule.active)
        parts.module.train()
        put_frozen_to_rest(parts.module)
        yield from _steps(parts, at)
        yield _epoch_report(parts, at)


def _another(parts: LoopParts, at: Progress) -> bool:
    schedule = parts.schedule
    return schedule.epoch < parts.stage.stop.max_epochs and bool(schedule.active) and at.step < parts.total_steps


def _steps(parts: LoopParts, at: Progress) -> Iterator[StepReport | Pieces]:
    """The rest of the epoch under way."""
    stage, schedule = parts.stage, parts.schedule
    wanted = schedule.group * stage.accumulate
    assert at.epoch is not None
    if at.step >= parts.total_steps:
        return
    group: list[tuple[str, Batch]] = []
    left = len(schedule)
    began = time.perf_counter()
    for item in schedule:
        group.append(item)
        left -= 1
        if len(group) < wanted and left:
            continue
        pieces = at.pieces
        losses = _take_step(parts, group, at)
        group = []
        if at.pieces != pieces:
            yield Pieces(stage.name, at.step, at.pieces, -(-stage.batch_size // at.pieces))
        at.seconds += time.perf_counter() - began
        rate = float(max(parts.rates.get_last_lr()))
        yield StepReport(
            stage.name, at.epoch, at.step, parts.total_steps, losses.means(), rate, at.seconds, at.skipped
        )  # fmt: skip
        began = time.perf_counter()
        if at.step >= parts.total_steps:
            break


def _take_step(parts: LoopParts, group: list[tuple[str, Batch]], at: Progress) -> Means:
    """One optimiser step; its losses."""
    losses, good = optimiser_step(parts, group, at)
    at.number += len(group)
    at.skipped += len(group) - len(good)
    for batch in good:
        at.seen[batch.task].add(batch.rows.numpy())
    at.step += 1
    for task, means in losses.means().items():
        at.means.add(task, means)
    return losses


def _epoch_report(parts: LoopParts, at: Progress) -> EpochReport:
    """The epoch is over: what it was, and what the model has become."""
    assert at.epoch is not None
    coverage = at.coverage({task: source.rows for task, source in parts.schedule.sources.items()})
    dev = parts.evaluate(parts.module.model)
    report = EpochReport(
        parts.stage.name, at.epoch, at.step, at.seconds, at.means.means(), coverage, dev, at.skipped
    )  # fmt: skip
    at.epoch = None
    return report


def put_frozen_to_rest(module: StepModule) -> None:
    """Modules whose every parameter is frozen are put into eval mode: no running statistics, and no dropout.

    So are trunks without parameters that the stage does not select (see `freeze_all_but`).
    With the step's `frozen_dropout` only what has running statistics rests.
    """
    _rest(module.model, module.frozen_dropout)


def _rest(module: torch.nn.Module, keep_dropout: bool) -> None:
    if _learns(module):
        for child in module.children():
            _rest(child, keep_dropout)
        return
    for part in _with_statistics(module) if keep_dropout else [module]:
        part.eval()  # the module's own `eval` decides for what it holds: an LSTM must stay in training mode


def _learns(module: torch.nn.Module) -> bool:
    """Whether anything inside is selected; what has no say of its own, as a dropout, goes with what it is in."""
    says = [parameter.requires_grad for parameter in module.parameters()]
    says += [bool(part.learns) for part in module.modules() if hasattr(part, "learns")]
    return any(says) or not says


def _with_statistics(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [part for part in module.modules() if "running_mean" in dict(part.named_buffers(recurse=False))]

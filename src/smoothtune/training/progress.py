"""Where the loop of a stage stands, so that another process can go on from there. Knows nothing of models or batches."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from smoothtune.data.schedules import Coverage, Schedule, Seen
from smoothtune.training.state import STRICT, shown

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PARTS = frozenset({"task", "weight", "unweighted"})  # of every loss; regularisers add their own


class ProgressState(BaseModel):
    """What a `Progress` keeps: see its fields. `seen` holds (lines,) uint8 by task, and nothing between two epochs."""

    model_config = STRICT

    step: Count
    number: Count
    skipped: Count
    seconds: Annotated[Finite, Field(ge=0)]
    epoch: Count | None
    pieces: Annotated[int, Field(ge=1)]
    sums: dict[str, dict[str, Finite]]
    counts: dict[str, Annotated[int, Field(ge=1)]]
    seen: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a stage lets its progress be: `terms` are the names of its regularisers, `schedule` is where it was then."""

    total_steps: int
    batch_size: int
    terms: Set[str]
    schedule: Schedule


@dataclass(slots=True)
class Means:
    """Means of the loss parts by task."""

    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, parts: Mapping[str, float]) -> None:
        """One more loss of a task, in parts."""
        into = self.sums.setdefault(task, {})
        for name, value in parts.items():
            into[name] = into.get(name, 0.0) + value
        self.counts[task] = self.counts.get(task, 0) + 1

    def means(self) -> dict[str, dict[str, float]]:
        """By task and part."""
        return {
            task: {name: value / self.counts[task] for name, value in parts.items()}
            for task, parts in self.sums.items()
        }


@dataclass(slots=True)
class Progress:
    """Optimiser steps and batches of the stage so far, batches skipped, seconds of training, and what the epoch has gathered.

    `epoch` is the epoch under way, None between two; `pieces` is in how many a batch goes through.
    """

    step: int = 0
    number: int = 0
    skipped: int = 0
    seconds: float = 0.0
    epoch: int | None = None
    means: Means = field(default_factory=Means)
    seen: dict[str, Seen] = field(default_factory=dict)
    pieces: int = 1

    def begin(self, epoch: int, tasks: tuple[str, ...]) -> None:
        """An epoch begins."""
        self.epoch, self.means, self.seen = epoch, Means(), {task: Seen() for task in tasks}

    def coverage(self, rows: Mapping[str, int]) -> dict[str, Coverage]:
        """How often the epoch saw the `rows` rows of each of its tasks."""
        return {task: seen.coverage(rows[task]) for task, seen in self.seen.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "step": self.step,
            "number": self.number,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "epoch": self.epoch,
            "pieces": self.pieces,
            "sums": self.means.sums,
            "counts": self.means.counts,
            "seen": {} if self.epoch is None else {task: torch.tensor(seen.times) for task, seen in self.seen.items()},
        }

    @classmethod
    def of(cls, state: ProgressState, bounds: Bounds) -> Progress:
        """That of a `state_dict`. Raises `ValueError` where no training of such a stage comes there."""
        _check_counts(state, bounds)
        _check_epoch(state, bounds.schedule)
        _check_losses(state, bounds)
        means = Means({task: dict(parts) for task, parts in state.sums.items()}, dict(state.counts))
        seen = {task: Seen(times.numpy()) for task, times in state.seen.items()}
        return cls(
            state.step, state.number, state.skipped, state.seconds, state.epoch, means, seen, state.pieces
        )  # fmt: skip


def _check_counts(state: ProgressState, bounds: Bounds) -> None:
    if state.step > bounds.total_steps:
        raise ValueError(f"step: got {state.step}, but the stage has {bounds.total_steps} steps")
    batches = sum(bounds.schedule.passed().values())
    if state.number != batches:
        raise ValueError(f"number: got {state.number}, but the schedule has given {batches} batches")
    if state.step > state.number or (state.number > 0) != (state.step > 0):
        raise ValueError(f"step: got {state.step} of {state.number} batches; each step takes one or more")
    if state.skipped > state.number:
        raise ValueError(f"skipped: got {state.skipped} of {state.number} batches")
    if state.pieces.bit_count() != 1 or state.pieces >= 2 * bounds.batch_size:
        raise ValueError(f"pieces: got {state.pieces}, expected a power of 2 for batches of {bounds.batch_size} rows")


def _check_epoch(state: ProgressState, schedule: Schedule) -> None:
    if state.epoch is not None and state.epoch != schedule.epoch:
        raise ValueError(f"epoch: got {state.epoch}, but the schedule is in epoch {schedule.epoch}")
    if state.epoch is not None and not schedule.begun:
        raise ValueError(f"epoch: got {state.epoch}, but the schedule has given no batch of it")
    wanted = set() if state.epoch is None else set(schedule.active)
    if state.seen.keys() != wanted:
        raise ValueError(f"seen: got tasks {sorted(state.seen)}, expected {sorted(wanted)}")
    for task, times in state.seen.items():
        if times.dtype != torch.uint8 or times.ndim != 1 or int(times.count_nonzero()) > schedule.sources[task].rows:
            raise ValueError(f"seen.{task}: got {shown(times)}, expected a byte for each line, not 0 for those seen")
        if len(times) and int(times.max()) > 2:
            raise ValueError(f"seen.{task}: holds {int(times.max())}, expected 0, 1 or 2")


def _check_losses(state: ProgressState, bounds: Bounds) -> None:
    if state.sums.keys() != state.counts.keys() or not state.sums.keys() <= bounds.schedule.sources.keys():
        tasks = ", ".join(bounds.schedule.sources)
        raise ValueError(f"sums: got tasks {sorted(state.sums)} and counts of {sorted(state.counts)}, of {tasks}")
    for task, parts in state.sums.items():
        if not parts.keys() >= PARTS or not parts.keys() <= PARTS | bounds.terms:
            raise ValueError(f"sums.{task}: got {sorted(parts)}, expected {sorted(PARTS)} and terms of the stage")
        if state.counts[task] > state.step:
            raise ValueError(f"counts.{task}: got {state.counts[task]} in {state.step} steps")

"""Where the loop of a stage stands, so that another process can go on from there. Knows nothing of models or batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from smoothtune.data.schedules import Coverage, Seen


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
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """That of a `state_dict`."""
        means = Means({task: dict(parts) for task, parts in state["sums"].items()}, dict(state["counts"]))
        seen = {task: Seen(times.numpy()) for task, times in state["seen"].items()}
        return cls(
            state["step"], state["number"], state["skipped"], state["seconds"], state["epoch"], means, seen, state["pieces"]
        )  # fmt: skip

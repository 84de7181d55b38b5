"""Which task's batch comes next. Knows nothing of models; a source of batches is anything with `batches` and `batch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from smoothtune.config.schedules import (
    AnnealedOptions,
    LoopToLargestOptions,
    ProportionalOptions,
    RoundRobinOptions,
    TemperatureOptions,
)
from smoothtune.data.columns import blocks, scratch
from smoothtune.runtime.random import numpy_stream
from smoothtune.types import Batch


class ScheduleState(BaseModel):
    """Where a schedule is: `position` in the order of its epoch, the tasks still `active`, `cursors` as the epoch began."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epoch: Annotated[int, Field(ge=0)]
    position: Annotated[int, Field(ge=0)]
    active: list[str]
    cursors: dict[str, Annotated[int, Field(ge=0)]]


class BatchSource(Protocol):
    """An endless sequence of batches of one task."""

    @property
    def rows(self) -> int:
        """Rows of one pass."""
        ...

    @property
    def batches(self) -> int:
        """Batches of one pass."""
        ...

    def batch(self, cursor: int) -> Batch:
        """Batch `cursor`."""
        ...


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often one epoch saw the rows of one task: once, more than once, not at all."""

    once: int
    repeated: int
    unseen: int


class Seen:
    """How often one epoch saw the rows of one task: once or more, a byte for each line of the data file."""

    def __init__(self, times: np.ndarray | None = None) -> None:
        self._times = scratch(0, np.uint8)
        if times is not None:
            self._times = scratch(len(times), np.uint8)
            self._times[:] = times

    @property
    def times(self) -> np.ndarray:
        """0, 1 or 2 (once more or often) for each line up to some beyond the last that was seen, uint8."""
        return self._times

    def add(self, lines: np.ndarray) -> None:
        """One batch of rows with line numbers (B,), all different."""
        most = int(lines.max(initial=-1)) + 1
        if most > len(self._times):
            times, self._times = self._times, scratch(2 * most, np.uint8)
            self._times[: len(times)] = times
        self._times[lines] = np.minimum(self._times[lines] + 1, 2)

    def coverage(self, rows: int) -> Coverage:
        """What became of the `rows` rows of the task."""
        counts = np.zeros(3, dtype=np.int64)
        for part in blocks(len(self._times)):
            counts += np.bincount(self._times[part], minlength=3)
        _, once, repeated = counts.tolist()
        return Coverage(once, repeated, rows - once - repeated)


class Schedule(ABC):
    """Yields `(task, batch)` for one epoch per iteration; `len` is the number of batches left in the epoch.

    Each task's sequence of batches goes on from epoch to epoch, so rows that one epoch leaves out come in the next.
    Kinds differ in `order` alone.
    """

    def __init__(self, sources: Mapping[str, BatchSource], *, seed: int, stage: str, epochs: int) -> None:
        self.sources = dict(sources)
        self.epochs = epochs
        self.epoch = 0
        self._name = (seed, stage, "schedule")
        self._position = 0
        self._active = list(self.sources)
        self._cursors = dict.fromkeys(self.sources, 0)
        self._cached: tuple[object, np.ndarray] | None = None

    @abstractmethod
    def order(self, batches: np.ndarray, rows: np.ndarray, epoch: int, stream: np.random.Generator) -> np.ndarray:
        """Task numbers of one epoch, given batches and rows of one pass per task, both (tasks,)."""

    @property
    def group(self) -> int:
        """Consecutive batches that form one optimiser step: 1, or one of every task still in the schedule."""
        return 1

    @property
    def active(self) -> tuple[str, ...]:
        """Tasks still in the schedule."""
        return tuple(self._active)

    def __len__(self) -> int:
        return len(self._order()) - self._position

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        epoch, order = self.epoch, self._order()
        cursors = self._cursors_at(self._position)
        while self.epoch == epoch and self._position < len(order):
            task = self._active[order[self._position]]
            batch = self.sources[task].batch(cursors[task])
            cursors[task] += 1
            self._position += 1
            yield task, batch
        if self.epoch == epoch:
            self._end_epoch()

    def epoch_batches(self) -> list[int]:
        """Batches of each epoch of the whole stage, if every task stays."""
        return [len(self._order_of(epoch)) for epoch in range(self.epochs)]

    def finish(self, task: str) -> None:
        """Take a task out of the schedule, from the next epoch on; after the last batch of an epoch, the epoch is over.

        Raises `ValueError` in the middle of an epoch, and for a task that is not in the schedule.
        """
        if task not in self._active:
            raise ValueError(f"task {task!r} is not in the schedule; its tasks are: {', '.join(self._active)}")
        if self._position and len(self):
            raise ValueError(f"task {task!r} can leave the schedule only between epochs; {len(self)} batches are left")
        if self._position:
            self._end_epoch()
        self._active.remove(task)

    def state_dict(self) -> dict[str, Any]:
        """Position of the schedule, as plain numbers and names."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "active": list(self._active),
            "cursors": dict(self._cursors),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises `ValueError` when it is of other tasks, or where no such schedule comes."""
        found = ScheduleState.model_validate(state)
        self._check(found)
        self.epoch, self._position = found.epoch, found.position
        self._active, self._cursors = list(found.active), dict(found.cursors)

    @property
    def begun(self) -> bool:
        """Whether it has given batches of its epoch."""
        return self._position > 0

    def passed(self) -> dict[str, int]:
        """Batches of each task so far."""
        return self._cursors_at(self._position)

    def _check(self, found: ScheduleState) -> None:
        if found.cursors.keys() != self.sources.keys():
            raise ValueError(f"cursors: got tasks {sorted(found.cursors)}, expected {sorted(self.sources)}")
        if found.active != [task for task in self.sources if task in found.active]:
            raise ValueError(
                f"active: got {found.active}, expected tasks of {list(self.sources)}, once and in this order"
            )
        if found.epoch > self.epochs:
            raise ValueError(f"epoch: got {found.epoch}, but the stage has {self.epochs} epochs")
        if (found.epoch > 0) != any(found.cursors.values()):
            raise ValueError(f"cursors: got {sum(found.cursors.values())} batches before epoch {found.epoch}")
        left = 0 if found.epoch == self.epochs else len(self._order_of(found.epoch, found.active))
        if found.position > left:
            raise ValueError(f"position: got {found.position}, but epoch {found.epoch} has {left} batches")

    def _end_epoch(self) -> None:
        self._cursors = self._cursors_at(self._position)
        self.epoch += 1
        self._position = 0

    def _order(self) -> np.ndarray:
        return self._order_of(self.epoch)

    def _order_of(self, epoch: int, active: Sequence[str] | None = None) -> np.ndarray:
        """Task numbers of an epoch with the tasks `active`, by default those that are."""
        tasks = self._active if active is None else active
        key = (epoch, tuple(tasks))
        if self._cached is None or self._cached[0] != key:
            batches = np.array([self.sources[task].batches for task in tasks], dtype=np.int64)
            rows = np.array([self.sources[task].rows for task in tasks], dtype=np.float64)
            stream = numpy_stream(*self._name, epoch)
            order = self.order(batches, rows, epoch, stream) if tasks else np.empty(0)
            self._cached = (key, order.astype(np.int32))
        return self._cached[1]

    def _cursors_at(self, position: int) -> dict[str, int]:
        counts = np.bincount(self._order()[:position], minlength=len(self._active))
        spent = dict(zip(self._active, counts.tolist(), strict=True))
        return {task: cursor + spent.get(task, 0) for task, cursor in self._cursors.items()}


class Proportional(Schedule):
    """Every batch of every task once an epoch, shuffled (Liu et al., 2019, MT-DNN, Algorithm 1)."""

    def __init__(self, sources: Mapping[str, BatchSource], options: ProportionalOptions, **names: Any) -> None:
        super().__init__(sources, **names)

    def order(self, batches: np.ndarray, rows: np.ndarray, epoch: int, stream: np.random.Generator) -> np.ndarray:
        """Each task as often as it has batches, in random order."""
        order = np.repeat(np.arange(len(batches)), batches)
        stream.shuffle(order)
        return order


class RoundRobin(Schedule):
    """The tasks in turn, until the first is through, or (dropping out one by one) until all are."""

    def __init__(self, sources: Mapping[str, BatchSource], options: RoundRobinOptions, **names: Any) -> None:
        super().__init__(sources, **names)
        self._options = options

    @property
    def group(self) -> int:
        """One batch of every task, if so asked."""
        return len(self._active) if self._options.every_task else 1

    def order(self, batches: np.ndarray, rows: np.ndarray, epoch: int, stream: np.random.Generator) -> np.ndarray:
        """Rounds of the tasks that still have batches."""
        if self._options.until == "first_exhausted":
            return np.tile(np.arange(len(batches)), int(batches.min()))
        rounds = [np.flatnonzero(batches > number) for number in range(int(batches.max()))]
        return np.concatenate(rounds)


class LoopToLargest(Schedule):
    """The tasks in turn; small tasks loop while the largest is seen once (Chen and Zhang, section 5.3)."""

    def __init__(self, sources: Mapping[str, BatchSource], options: LoopToLargestOptions, **names: Any) -> None:
        super().__init__(sources, **names)
        self._options = options

    @property
    def group(self) -> int:
        """One batch of every task, if so asked."""
        return len(self._active) if self._options.every_task else 1

    def order(self, batches: np.ndarray, rows: np.ndarray, epoch: int, stream: np.random.Generator) -> np.ndarray:
        """As many rounds as the largest task has batches."""
        return np.tile(np.arange(len(batches)), int(batches.max()))


class Temperature(Schedule):
    """Each step draws a task with p ~ N^alpha."""

    def __init__(self, sources: Mapping[str, BatchSource], options: TemperatureOptions, **names: Any) -> None:
        super().__init__(sources, **names)
        self._options: TemperatureOptions | AnnealedOptions = options

    def alpha(self, epoch: int) -> float:
        """The exponent of an epoch."""
        assert isinstance(self._options, TemperatureOptions)
        return self._options.alpha

    def order(self, batches: np.ndarray, rows: np.ndarray, epoch: int, stream: np.random.Generator) -> np.ndarray:
        """Independent draws; by default as many as there are batches."""
        weights = rows ** self.alpha(epoch)
        steps = self._options.steps_per_epoch
        return stream.choice(len(rows), size=int(batches.sum()) if steps is None else steps, p=weights / weights.sum())


class Annealed(Temperature):
    """As `Temperature`, alpha falling linearly from `start` to `end` (Stickland and Murray, 2019, section 4)."""

    def __init__(self, sources: Mapping[str, BatchSource], options: AnnealedOptions, **names: Any) -> None:
        Schedule.__init__(self, sources, **names)
        self._options = options

    def alpha(self, epoch: int) -> float:
        """The exponent of an epoch: `start` in the first, `end` in the last."""
        assert isinstance(self._options, AnnealedOptions)
        share = epoch / (self.epochs - 1) if self.epochs > 1 else 0.0
        return self._options.start + (self._options.end - self._options.start) * min(share, 1.0)

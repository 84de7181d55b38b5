"""Examples of one task as padded batches. Knows nothing of schedules, files or models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from smoothtune.data.tokenising import TokenColumn
from smoothtune.runtime.random import numpy_stream
from smoothtune.types import Batch, Input, Tokens

PAD_MULTIPLE = 8
WINDOW_BATCHES = 64


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one task: token columns, labels (N,) or None, row numbers of the source (N,), and which rows are meant.

    `chosen` (M,) int32 are positions in the columns; a sample or a split is a choice, never a copy. `pad_id` fills rows
    up; rounding up never goes beyond `limit` tokens.
    """

    task: str
    reads: Input
    columns: list[TokenColumn]
    labels: np.ndarray | None
    lines: np.ndarray
    chosen: np.ndarray
    pad_id: int = 0
    limit: int = 8192

    def __len__(self) -> int:
        return len(self.chosen)

    def lengths(self) -> np.ndarray:
        """Tokens of the longest text of each chosen row, (M,) int32."""
        longest = self.columns[0].lengths()
        for column in self.columns[1:]:
            longest = np.maximum(longest, column.lengths())
        chosen: np.ndarray = longest[self.chosen]
        return chosen

    def batch(self, positions: np.ndarray) -> Batch:
        """The chosen rows at `positions`, padded to the longest (rounded up, so that few shapes occur)."""
        rows = self.chosen[positions]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(
            task=self.task,
            input=self.reads,
            tokens=pad([(column, rows) for column in self.columns], self.reads == "joint", self.pad_id, self.limit),
            labels=labels,
            rows=torch.from_numpy(np.asarray(self.lines[rows], dtype=np.int64)),
        )


def pad(parts: list[tuple[TokenColumn, np.ndarray]], joint: bool, pad_id: int, limit: int) -> Tokens:
    """Token sequences of several columns stacked into one `Tokens` of R = sum of rows."""
    spans = [
        (column, int(column.offsets[row]), int(column.offsets[row + 1]), row) for column, rows in parts for row in rows
    ]
    longest = max(end - start for _, start, end, _ in spans)
    width = max(longest, min(limit, -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE))
    ids = np.full((len(spans), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(spans), width), dtype=bool)
    segments = np.zeros((len(spans), width), dtype=np.int64) if joint else None
    for number, (column, start, end, row) in enumerate(spans):
        ids[number, : end - start] = column.ids[start:end]
        mask[number, : end - start] = True
        if segments is not None:
            segments[number, column.second[row] : end - start] = 1
    return Tokens(
        torch.from_numpy(ids), torch.from_numpy(mask), None if segments is None else torch.from_numpy(segments)
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass over M rows cut into batches: batch b is order[starts[b]:ends[b]]; `starts` are already shuffled."""

    order: np.ndarray
    starts: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, number: int) -> np.ndarray:
        """Positions of batch `number`, (at most size,)."""
        start = int(self.starts[number])
        return self.order[start : start + self.size]


def plan_pass(lengths: np.ndarray, size: int, stream: np.random.Generator) -> Plan:
    """Bucketed batches of one pass: rows shuffled, sorted by length within windows, batches shuffled.

    Every row stands in exactly one batch; only the last bucket may be smaller than `size`.
    """
    order = np.arange(len(lengths), dtype=np.int32)
    stream.shuffle(order)
    window = size * WINDOW_BATCHES
    for start in range(0, len(order), window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    starts = np.arange(0, len(order), size, dtype=np.int64)
    stream.shuffle(starts)
    return Plan(order, starts, size)


def plan_sorted(lengths: np.ndarray, size: int) -> Plan:
    """Batches of all rows, longest first: for evaluation, where order does not matter."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable").astype(np.int32)
    return Plan(order, np.arange(0, len(order), size, dtype=np.int64), size)


class BatchStream:
    """The endless sequence of a task's training batches: pass after pass, each in an order of its own.

    Batch number `cursor` is the same whenever it is asked for: order depends on (seed, stage, task, pass) alone.
    """

    def __init__(self, examples: Examples, size: int, *, seed: int, stage: str) -> None:
        self.examples = examples
        self.size = size
        self._name = (seed, stage, "order", examples.task)
        self._lengths = examples.lengths()
        self._plan: tuple[int, Plan] | None = None

    @property
    def rows(self) -> int:
        """Rows of one pass."""
        return len(self.examples)

    @property
    def batches(self) -> int:
        """Batches of one pass."""
        return -(-self.rows // self.size)

    def plan(self, number: int) -> Plan:
        """The batches of pass `number`."""
        if self._plan is None or self._plan[0] != number:
            self._plan = (number, plan_pass(self._lengths, self.size, numpy_stream(*self._name, number)))
        return self._plan[1]

    def positions(self, cursor: int) -> np.ndarray:
        """Positions of batch `cursor` of the endless sequence."""
        number, within = divmod(cursor, self.batches)
        return self.plan(number).rows(within)

    def batch(self, cursor: int) -> Batch:
        """Batch `cursor` of the endless sequence."""
        return self.examples.batch(self.positions(cursor))

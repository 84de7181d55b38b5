"""Examples of one task as padded batches. Knows nothing of schedules, files or models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smoothtune.data.columns import blocks, counting, filled
from smoothtune.data.states import StateColumn
from smoothtune.data.tokenising import TokenColumn
from smoothtune.runtime.random import numpy_stream
from smoothtune.types import Batch, Input, Tokens

PAD_MULTIPLE = 8
WINDOW_BATCHES = 64


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one task: token columns, labels (N,) or None, row numbers of the source (N,), and which rows are meant.

    `chosen` (M,) int32 are positions in the columns; a sample or a split is a choice, never a copy. `pad_id` fills rows
    up; rounding up never goes beyond `limit` tokens. With `states`, one column per token column, batches carry those.
    `shown` names the source in messages.
    """

    task: str
    reads: Input
    columns: list[TokenColumn]
    labels: np.ndarray | None
    lines: np.ndarray
    chosen: np.ndarray
    pad_id: int = 0
    limit: int = 8192
    states: tuple[StateColumn, ...] = ()
    shown: str = "its training data"

    def __len__(self) -> int:
        return len(self.chosen)

    def lengths(self) -> np.ndarray:
        """Tokens of the longest text of each chosen row, (M,) int32. Cost: one pass over the offsets of the tokens."""
        return filled(len(self), np.int32, (self._longest(self.chosen[part]) for part in blocks(len(self))))

    def _longest(self, rows: np.ndarray) -> np.ndarray:
        longest: np.ndarray = np.maximum.reduce([column.lengths(rows) for column in self.columns])
        return longest

    def batch(self, positions: np.ndarray) -> Batch:
        """The chosen rows at `positions`, padded to the longest (rounded up, so that few shapes occur)."""
        rows = self.chosen[positions]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        tokens, states = self._kept(rows) if self.states else (self._tokens(rows), None)
        lines = torch.from_numpy(np.asarray(self.lines[rows], dtype=np.int64))
        return Batch(self.task, self.reads, tokens, labels, lines, states)

    def _tokens(self, rows: np.ndarray) -> Tokens:
        return pad([(column, rows) for column in self.columns], self.reads == "joint", self.pad_id, self.limit)

    def _kept(self, rows: np.ndarray) -> tuple[Tokens, Tensor]:
        """The kept states of `rows` (B,), padded as their tokens would be, (R, T, D), and their mask alone as tokens."""
        count, first = len(self.states) * len(rows), self.states[0]
        if first.starts is None:
            mask = torch.ones(count, 1, dtype=torch.bool)
        else:
            lengths = np.concatenate([column.lengths(rows) for column in self.states])
            mask = torch.from_numpy(np.arange(padded_width(int(lengths.max()), self.limit)) < lengths[:, None])
        states = torch.empty(count, mask.shape[1], first.values.shape[1], dtype=first.values.dtype)
        for number, column in enumerate(self.states):
            column.gather(rows, states[number * len(rows) : (number + 1) * len(rows)])
        return Tokens(torch.empty(count, 0, dtype=torch.int64), mask), states


def padded_width(longest: int, limit: int) -> int:
    """`longest` tokens rounded up, so that few shapes occur, but not beyond `limit`."""
    return max(longest, min(limit, -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE))


def pad(parts: list[tuple[TokenColumn, np.ndarray]], joint: bool, pad_id: int, limit: int) -> Tokens:
    """Token sequences of several columns stacked into one `Tokens` of R = sum of rows."""
    ids, lengths = zip(*(_flat(column, rows) for column, rows in parts), strict=True)
    sizes = np.concatenate(lengths)
    width = padded_width(int(sizes.max()), limit)
    place = np.arange(width, dtype=np.int64)
    mask = place < sizes[:, None]
    padded = np.full(mask.shape, pad_id, dtype=np.int64)
    padded[mask] = np.concatenate(ids)
    segments = None
    if joint:
        second = np.concatenate([column.second[rows] for column, rows in parts])
        segments = torch.from_numpy((mask & (place >= second[:, None])).astype(np.int64))
    return Tokens(torch.from_numpy(padded), torch.from_numpy(mask), segments)


def _flat(column: TokenColumn, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of `rows` (B,) one after another, and how many each has, (B,)."""
    starts, lengths = column.offsets[rows], column.lengths(rows)
    ends = np.cumsum(lengths)
    return column.ids[np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])], lengths


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

    Every row stands in exactly one batch; only the last bucket may be smaller than `size`. The order is a scratch array.
    """
    order = counting(len(lengths))
    stream.shuffle(order)
    window = size * WINDOW_BATCHES
    for start in range(0, len(order), window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    starts = np.arange(0, len(order), size, dtype=np.int64)
    stream.shuffle(starts)
    return Plan(order, starts, size)


class BatchStream:
    """The endless sequence of a task's training batches: pass after pass, each in an order of its own.

    Batch number `cursor` is the same whenever it is asked for: order depends on (seed, stage, task, pass) alone.
    """

    def __init__(self, examples: Examples, size: int, *, seed: int, stage: str) -> None:
        self.examples = examples
        self.size = size
        self._name = (seed, stage, "order", examples.task)
        self._lengths: np.ndarray | None = None
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
        if self._lengths is None:
            self._lengths = self.examples.lengths()
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

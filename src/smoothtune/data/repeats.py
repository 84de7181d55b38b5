"""Finds the rows of a split that are equal, and those of them whose labels differ. Removes nothing.

Keys are sorted in a scratch file and rows are looked up in it block by block, so that memory does not grow with them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.columns import blocks, gathered, scratch
from smoothtune.data.findings import EXAMPLES, Matches, Repeats, match
from smoothtune.data.task_data import Split

Rows = NDArray[np.int64]


def repeats(split: Split) -> Repeats:
    """Repeated rows and contradictions. Cost: one sort of the keys, and one search for each row.

    Raises `ValueError` for rows without a label column.
    """
    groups = _Groups(split, _repeated(gathered(split.table.keys(), split.chosen)))
    for part in blocks(len(split)):
        groups.look_at(np.arange(part.start, part.stop))
    return Repeats(groups.duplicates.matches(), groups.conflicts.matches())


def _repeated(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys that stand more than once among (M,), each once and ascending, (G,); takes the array for its own."""
    keys.sort()
    end = 0
    for part in blocks(max(len(keys) - 1, 0)):
        some = keys[part.start : part.stop + 1]
        again = np.unique(some[1:][some[1:] == some[:-1]])
        if end and len(again) and again[0] == keys[end - 1]:
            again = again[1:]
        keys[end : end + len(again)] = again  # never reaches what is still to be read: a group has two rows
        end += len(again)
    return keys[:end]


class _Examples:
    """How many pairs of rows there are, and the first of them."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._count = 0
        self._first: list[tuple[int, int]] = []

    def add(self, here: Rows, there: Rows) -> None:
        """Pairs (n,) of positions, in the order of `here`."""
        self._count += len(here)
        wanted = EXAMPLES - len(self._first)
        self._first += zip(here[:wanted].tolist(), there[:wanted].tolist(), strict=True)

    def matches(self) -> Matches:
        """What was added."""
        return Matches(self._count, tuple(match(self._split, here, self._split, there) for here, there in self._first))


class _Groups:
    """Groups of equal rows, by key: the first row of each, and whether its labels are known to differ."""

    def __init__(self, split: Split, keys: NDArray[np.uint64]) -> None:
        self._split, self._keys = split, keys
        self._row_keys, self._labels = split.table.keys(), split.table.label_keys()
        self._first = scratch(len(keys), np.int32)  # positions from 1; 0: not seen yet
        self._differs = scratch(len(keys), np.bool_)
        self.duplicates, self.conflicts = _Examples(split), _Examples(split)

    def look_at(self, rows: Rows) -> None:
        """Take the next rows, as positions (n,)."""
        rows, groups = self._in_groups(rows)
        new = self._first[groups] == 0
        fresh, at = np.unique(groups[new], return_index=True)
        self._first[fresh] = rows[new][at] + 1
        first = self._first[groups].astype(np.int64) - 1
        again = first != rows
        rows, groups, first = rows[again], groups[again], first[again]
        self.duplicates.add(rows, first)
        other = (self._label(rows) != self._label(first)) & ~self._differs[groups]
        found, at = np.unique(groups[other], return_index=True)
        self._differs[found] = True
        at.sort()
        self.conflicts.add(rows[other][at], first[other][at])

    def _in_groups(self, rows: Rows) -> tuple[Rows, Rows]:
        """Those of `rows` that are in a group, (m,), and the groups, (m,)."""
        if not len(self._keys):
            return rows[:0], rows[:0]
        keys = self._row_keys[self._split.chosen[rows]]
        groups = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        found = self._keys[groups] == keys
        return rows[found], groups[found]

    def _label(self, rows: Rows) -> NDArray[np.uint64]:
        labels: NDArray[np.uint64] = self._labels[self._split.chosen[rows]]
        return labels

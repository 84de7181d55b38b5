"""Finds the dev or test rows that stand in training data. Removes nothing.

Training keys are sorted in scratch files, once for all the splits that are compared with them, and the rows of a split are
looked up in them block by block, so that memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.columns import blocks, gathered
from smoothtune.data.findings import EXAMPLES, Leaks, Match, Matches, match
from smoothtune.data.task_data import Split

Keys = NDArray[np.uint64]


class TrainingKeys:
    """The keys of the training rows of one task, sorted when they are first asked for."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.texts = len(split.table.spec.texts)

    def have_rows(self, keys: Keys) -> NDArray[np.bool_]:
        """Which keys of whole rows, of any shape, are those of training rows."""
        return _found(keys, self._rows)

    def have_texts(self, keys: Keys) -> NDArray[np.bool_]:
        """Which keys of texts, of any shape, are those of a text of a training row."""
        return _found(keys, self._texts)

    def first_row(self, keys: Keys) -> int | None:
        """The position of the first training row with one of the keys (n,), if there is one."""
        return self._first(self.split.table.keys()[:, None], keys)

    def first_text(self, keys: Keys) -> int | None:
        """The position of the first training row with a text that has one of the keys (n,), if there is one."""
        return self._first(self.split.table.text_keys(), keys)

    @cached_property
    def _rows(self) -> Keys:
        return _sorted(gathered(self.split.table.keys(), self.split.chosen))

    @cached_property
    def _texts(self) -> Keys:
        return self._rows if self.texts == 1 else _sorted(gathered(self.split.table.text_keys(), self.split.chosen))

    def _first(self, column: Keys, keys: Keys) -> int | None:
        for part in blocks(len(self.split)):
            at = np.flatnonzero(np.isin(column[self.split.chosen[part]], keys).any(axis=1))
            if len(at):
                return int(part.start + at[0])
        return None


def _sorted(keys: Keys) -> Keys:
    keys.sort()
    return keys


def _found(keys: Keys, known: Keys) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(keys.shape, dtype=bool)
    found: NDArray[np.bool_] = known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys
    return found


def leaks(split: Split, training: Sequence[TrainingKeys]) -> Leaks:
    """What the rows of `split` share with the training rows of all tasks. Cost: a search for each row in each task's."""
    texts = len(split.table.spec.texts)
    same = [known for known in training if known.texts == texts]
    other = [known for known in training if known.texts != texts]
    kinds = {
        "whole": _Kind(split, same, by_text=False),
        "shared_one": _Kind(split, same, by_text=True),
        "shared_both": _Kind(split, same, by_text=True),
        "across": _Kind(split, other, by_text=True),
    }
    for part in blocks(len(split)):
        for name, mask in _masks(split, split.chosen[part], same, other).items():
            kinds[name].add(part.start + np.flatnonzero(mask))
    return Leaks(len(split), **{name: kind.matches() for name, kind in kinds.items()})


def _masks(
    split: Split, rows: NDArray[np.int32], same: Sequence[TrainingKeys], other: Sequence[TrainingKeys]
) -> dict[str, NDArray[np.bool_]]:
    """Which of `rows` (n,) are of each kind, by the field's name, (n,) each."""
    keys, texts = split.table.keys()[rows], split.table.text_keys()[rows]
    whole = _any([known.have_rows for known in same], keys)
    shared = (
        _any([known.have_texts for known in same], texts).sum(axis=1) if texts.shape[1] == 2 else np.zeros(len(rows))
    )
    both, one = ~whole & (shared == 2), ~whole & (shared == 1)
    across = _any([known.have_texts for known in other], texts).any(axis=1) & ~whole & ~both & ~one
    return {"whole": whole, "shared_one": one, "shared_both": both, "across": across}


def _any(looks: Sequence[Callable[[Keys], NDArray[np.bool_]]], keys: Keys) -> NDArray[np.bool_]:
    found = np.zeros(keys.shape, dtype=bool)
    for look in looks:
        found |= look(keys)
    return found


class _Kind:
    """The rows of one kind: how many, and the first of them beside the first training row that they match."""

    def __init__(self, split: Split, training: Sequence[TrainingKeys], *, by_text: bool) -> None:
        self._split, self._training, self._by_text = split, training, by_text
        self._count = 0
        self._first: list[int] = []

    def add(self, rows: NDArray[np.int64]) -> None:
        """More rows of this kind, as positions (n,)."""
        self._count += len(rows)
        self._first += rows[: EXAMPLES - len(self._first)].tolist()

    def matches(self) -> Matches:
        """What was added."""
        return Matches(self._count, tuple(map(self._match, self._first)))

    def _match(self, at: int) -> Match:
        table, row = self._split.table, int(self._split.chosen[at])
        for known in self._training:
            there = (
                known.first_text(table.text_keys()[row])
                if self._by_text
                else known.first_row(table.keys()[row : row + 1])
            )
            if there is not None:
                return match(self._split, at, known.split, there)
        raise AssertionError(f"row {at} was found in training rows and then not again")

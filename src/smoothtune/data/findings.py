"""Repeated rows, contradicting labels, and dev or test rows that stand in training data. Removes nothing.

Two texts are equal when they are so after white-space normalisation, case kept; two pairs when their texts are, in
either order. Only the chosen rows of a split count. They are compared as arrays of 64-bit keys (8 bytes a text), so
millions of rows fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.rows import RowTable
from smoothtune.data.task_data import Split

_EXAMPLES = 5
_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Match:
    """Two rows that say the same: their places (`file:line`), the texts of the first, and both labels ("" without)."""

    here: str
    there: str
    texts: tuple[str, ...]
    labels: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Matches:
    """How many there are, and the first five."""

    count: int
    examples: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the `rows` rows of a dev or test split share with all training rows; a row counts in one field at most.

    `whole`: the text, or the pair in either order, is a training row. `shared_both`, `shared_one`: the pair is not, but
    both its texts (or one) stand in training pairs. `across`: of the rest, single texts that stand in a training pair,
    and pairs with a text that is a single training text.
    """

    rows: int
    whole: Matches
    shared_one: Matches
    shared_both: Matches
    across: Matches


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows sorted by key: row numbers (N,), and for each the position at which its group starts (N,)."""

    order: NDArray[np.int64]
    start: NDArray[np.int64]


def _groups(keys: NDArray[np.uint64]) -> _Groups:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return _Groups(order, np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0)) if len(keys) else _NOTHING)


def duplicates(split: Split) -> Matches:
    """Repeated rows: those behind the first of each group of equal rows, whatever their labels. Cost: one sort."""
    groups = _groups(_keys(split))
    again = np.flatnonzero(groups.start != np.arange(len(split)))
    return Matches(len(again), _within(split, groups.order[again], groups.order[groups.start[again]]))


def conflicts(split: Split) -> Matches:
    """Groups of equal rows with more than one label; an example is the first row that differs, and the group's first.

    Regression labels differ when the numbers do. Raises `ValueError` for rows without a label column.
    """
    groups = _groups(_keys(split))
    codes = _label_codes(split.table)[split.chosen][groups.order]
    differs = np.flatnonzero(codes != codes[groups.start])
    _, first = np.unique(groups.start[differs], return_index=True)
    rows = differs[first]
    return Matches(len(rows), _within(split, groups.order[rows], groups.order[groups.start[rows]]))


def _keys(split: Split) -> NDArray[np.uint64]:
    keys: NDArray[np.uint64] = split.table.keys()[split.chosen]
    return keys


def _text_keys(split: Split) -> NDArray[np.uint64]:
    keys: NDArray[np.uint64] = split.table.text_keys()[split.chosen]
    return keys


def _label_codes(table: RowTable) -> NDArray[np.int64]:
    encoded = table.labels().dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.to_numpy().astype(np.int64) for chunk in encoded.chunks]
    return np.concatenate(codes) if codes else _NOTHING


def leaks(split: Split, training: Iterable[Split]) -> Leaks:
    """What the rows of `split` share with the training rows of all tasks. Cost: some sorts of each one's keys."""
    training = tuple(training)
    same = [train for train in training if len(train.table.spec.texts) == len(split.table.spec.texts)]
    other = [train for train in training if len(train.table.spec.texts) != len(split.table.spec.texts)]
    whole = _found(_keys(split), [_keys(train) for train in same])
    texts = _text_keys(split)
    if texts.shape[1] == 2:
        shared = _found(texts, [_text_keys(train) for train in same]).sum(axis=1)
    else:
        shared = np.zeros(len(split), dtype=np.int64)
    both, one = ~whole & (shared == 2), ~whole & (shared == 1)
    across = _found(texts, [_text_keys(train) for train in other]).any(axis=1) & ~whole & ~both & ~one
    return Leaks(
        len(split),
        whole=_between(split, whole, same, by_text=False),
        shared_one=_between(split, one, same, by_text=True),
        shared_both=_between(split, both, same, by_text=True),
        across=_between(split, across, other, by_text=True),
    )


def _found(keys: NDArray[np.uint64], training: list[NDArray[np.uint64]]) -> NDArray[np.bool_]:
    """Same shape as `keys`: which of them stand in any of the training arrays."""
    found = np.zeros(keys.shape, dtype=bool)
    for known in training:
        found |= np.isin(keys, known)
    return found


def _within(split: Split, rows: NDArray[np.int64], firsts: NDArray[np.int64]) -> tuple[Match, ...]:
    earliest = np.argsort(rows, kind="stable")[:_EXAMPLES]
    return tuple(_match(split, int(rows[at]), split, int(firsts[at])) for at in earliest)


def _between(split: Split, mask: NDArray[np.bool_], training: list[Split], *, by_text: bool) -> Matches:
    rows = np.flatnonzero(mask)
    texts = _text_keys(split) if by_text else _keys(split)[:, None]
    examples = [_first_match(split, int(row), texts[row], training, by_text=by_text) for row in rows[:_EXAMPLES]]
    return Matches(len(rows), tuple(examples))


def _first_match(split: Split, row: int, wanted: NDArray[np.uint64], training: list[Split], *, by_text: bool) -> Match:
    for train in training:
        known = _text_keys(train) if by_text else _keys(train)[:, None]
        at = np.flatnonzero(np.isin(known, wanted).any(axis=1))
        if len(at):
            return _match(split, row, train, int(at[0]))
    raise AssertionError(f"row {row} was found in training rows and then not again")


def _match(split: Split, row: int, other: Split, other_row: int) -> Match:
    here, there = int(split.chosen[row]), int(other.chosen[other_row])
    labels = (_label(split.table, here), _label(other.table, there))
    return Match(split.table.place(here), other.table.place(there), split.table.texts([here])[0], labels)


def _label(table: RowTable, row: int) -> str:
    return "" if table.spec.label is None else str(table.labels()[row].as_py())

"""Which rows of a training table are its dev part, where `dev` is a fraction: stratified by label, or by a hash of the text.

Equal texts (pairs in either order) are on one side. The result depends on the seed, the texts and the labels, not on the
order of the rows. Knows nothing of files and splits.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.columns import blocks, filled
from smoothtune.data.rows import RowTable
from smoothtune.data.strata import Strata, class_strata, rank_strata
from smoothtune.runtime.random import stream_number

Method = Literal["stratified", "hashed"]
_FREE, _DEV = -1, 1


class _Sides(NamedTuple):
    """The texts of one task by their drawn number, ascending, (G,) uint64, and which of them are dev texts, (G,)."""

    texts: NDArray[np.uint64]
    dev: NDArray[np.bool_]


class HoldOut:
    """Holds out dev rows of one task after the other.

    Tasks that hold out the same fraction of the same texts hold out the same ones, as far as each class of a later task
    keeps a training row. What one task holds out another may train on where their fractions differ, or where it names a
    dev file: `findings.leaks` counts such rows.
    """

    def __init__(self, method: Method, seed: int) -> None:
        self._method = method
        self._mixer = np.uint64(stream_number(seed, "held out"))
        self._earlier: dict[float, list[_Sides]] = {}

    def dev_rows(self, table: RowTable, fraction: float) -> NDArray[np.bool_]:
        """Which rows are held out, (N,). Cost: a few sorts of all rows."""
        draws = self._draws(table)
        if self._method == "hashed":
            share = ((draws[part] >> np.uint64(11)).astype(np.float64) / float(1 << 53) for part in blocks(len(draws)))
            return filled(len(draws), np.bool_, (part < fraction for part in share))
        texts, numbers, rows = np.unique(draws, return_inverse=True, return_counts=True)
        regression = table.spec.kind == "regression"
        strata = (rank_strata if regression else class_strata)(table, numbers, rows, fraction)
        dev = dev_texts(strata, rows, fraction, self._sides(texts, fraction))
        if len(texts):
            self._earlier.setdefault(fraction, []).append(_Sides(texts, dev))
        return filled(len(numbers), np.bool_, (dev[numbers[part]] for part in blocks(len(numbers))))

    def _draws(self, table: RowTable) -> NDArray[np.uint64]:
        """A number drawn for the text of each row, (N,): different texts have different ones, in an order by chance."""
        keys = table.keys()
        return filled(len(keys), np.uint64, (_mixture(keys[part] ^ self._mixer) for part in blocks(len(keys))))

    def _sides(self, texts: NDArray[np.uint64], fraction: float) -> NDArray[np.int8]:
        """The side of each text (G,) in the first task with the same fraction that has it, free where none has it."""
        sides = np.full(len(texts), _FREE, dtype=np.int8)
        for task in reversed(self._earlier.get(fraction, [])):
            at = np.searchsorted(task.texts, texts).clip(max=len(task.texts) - 1)
            same = task.texts[at] == texts
            sides[same] = task.dev[at[same]]
        return sides


def _mixture(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of all 64-bit numbers."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed


def dev_texts(strata: Strata, rows: NDArray[np.int64], fraction: float, sides: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which texts are dev texts, (G,), in the order drawn; `rows` (G,) counts their rows, `sides` (G,) are settled already.

    Each stratum gives about `fraction` of its rows, at least one where it has two texts, and never all.
    """
    of, dev = strata.of, np.asarray(sides == _DEV)
    quotas = dev_quotas(strata, rows, fraction)
    room = quotas - _sums(of[dev], rows[dev], strata.count)
    places = np.flatnonzero(sides == _FREE)
    places = places[np.argsort(of[places], kind="stable")]
    while len(places := places[rows[places] <= room[of[places]]]):  # a text too large for its stratum is passed over
        fits = _running(of[places], rows[places]) <= room[of[places]]
        dev[places[fits]] = True
        room -= _sums(of[places[fits]], rows[places[fits]], strata.count)
        places = places[~fits]
    empty = (quotas > 0) & (np.bincount(of[dev], minlength=strata.count) == 0)
    places = np.flatnonzero((sides == _FREE) & empty[of])
    places = places[np.lexsort((rows[places], of[places]))]
    dev[places[np.unique(of[places], return_index=True)[1]]] = True  # the smallest text, though it exceeds the quota
    _mend_training(strata, dev)
    _mend_dev(strata, dev, sides == _FREE)
    return dev


def dev_quotas(strata: Strata, rows: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many dev rows each stratum is to have, (C,): the largest remainders are rounded up until the total is right."""
    sizes = _sums(strata.of, rows, strata.count)
    texts = np.bincount(strata.of, minlength=strata.count)
    share = fraction * sizes
    least, most = np.where(texts > 1, 1, 0), np.where(texts > 1, sizes - 1, 0)
    quotas = np.floor(share).astype(np.int64).clip(least, most)
    missing = max(int(fraction * sizes.sum() + 0.5) - int(quotas.sum()), 0)
    remainders = np.where(quotas < most, share - quotas, 0.0)
    largest = np.argsort(-remainders, kind="stable")[:missing]
    quotas[largest[remainders[largest] > 0]] += 1
    return np.asarray(quotas)


def _mend_training(strata: Strata, dev: NDArray[np.bool_]) -> None:
    """Move a text of each class that has none in training there."""
    classes, first = np.unique(strata.classes, return_index=True)
    training = np.bincount(strata.classes[~dev[strata.texts]], minlength=strata.count)
    dev[strata.texts[first[training[classes] == 0]]] = False


def _mend_dev(strata: Strata, dev: NDArray[np.bool_], free: NDArray[np.bool_]) -> None:
    """Hold out a text of each class that has two and none in dev, where every class of the text keeps one in training.

    Without texts that have several labels there is no such class.
    """
    texts = np.bincount(strata.classes, minlength=strata.count)
    in_dev = np.bincount(strata.classes[dev[strata.texts]], minlength=strata.count)
    training, lacking = texts - in_dev, np.flatnonzero((texts > 1) & (in_dev == 0))
    by_class = strata.texts[np.argsort(strata.classes, kind="stable")] if len(lacking) else strata.texts
    ends = np.cumsum(texts)
    for number in lacking.tolist():
        candidates = by_class[ends[number] - texts[number] : ends[number]]
        if dev[candidates].any():  # an earlier turn of this loop
            continue
        for text in candidates[free[candidates]].tolist():
            classes = strata.classes_of(text)
            if (training[classes] > 1).all():
                dev[text] = True
                training[classes] -= 1
                break


def _sums(of: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.bincount(of, weights=rows, minlength=count).astype(np.int64)


def _running(of: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of the rows up to each text within its stratum; the strata ascend."""
    total = np.cumsum(rows)
    total -= (total - rows)[np.searchsorted(of, of)]
    return total

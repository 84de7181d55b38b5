"""Strata of the texts of a table: their classes, or blocks of similar numbers. Knows nothing of what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.columns import blocks, filled
from smoothtune.data.rows import RowTable

MOST_BLOCKS = 100


@dataclass(frozen=True, slots=True)
class Strata:
    """`of` (G,) is the stratum of each text, of `count`; `texts` and `classes` (P,) are all pairs of a text and its class.

    The pairs ascend by text, then by class. A text whose rows have several labels is in the stratum of the most frequent.
    """

    count: int
    of: NDArray[np.int64]
    texts: NDArray[np.int64]
    classes: NDArray[np.int64]

    def classes_of(self, text: int) -> NDArray[np.int64]:
        """The classes of one text."""
        start, end = np.searchsorted(self.texts, [text, text + 1])
        return self.classes[start:end]


def class_strata(table: RowTable, numbers: NDArray[np.int64], rows: NDArray[np.int64], fraction: float) -> Strata:
    """The classes of a table; `numbers` (N,) are the texts of its rows, `rows` (G,) counts those of each text."""
    keys = table.label_keys()
    known = reduce(np.union1d, (keys[part] for part in blocks(len(keys))), np.empty(0, dtype=np.uint64))
    count = len(known)
    codes = (numbers[part] * count + np.searchsorted(known, keys[part]) for part in blocks(len(keys)))
    pairs, sizes = np.unique(filled(len(keys), np.int64, codes), return_counts=True)
    texts, classes = pairs // max(count, 1), pairs % max(count, 1)
    order = np.lexsort((classes, -sizes, texts))
    first = np.searchsorted(texts, np.arange(len(rows)))
    return Strata(count, classes[order][first], texts, classes)


def rank_strata(table: RowTable, numbers: NDArray[np.int64], rows: NDArray[np.int64], fraction: float) -> Strata:
    """Blocks of texts with neighbouring numbers, large enough that each has a dev text; arguments as in `class_strata`."""
    labels = table.measurements(np.float64)
    ends = np.cumsum(rows)
    medians = labels[np.lexsort((labels, numbers))][ends - rows + (rows - 1) // 2]
    count = int(np.clip(min(fraction, 1 - fraction) * len(rows), 1, MOST_BLOCKS))
    of = np.empty(len(rows), dtype=np.int64)
    of[np.argsort(medians, kind="stable")] = np.arange(len(rows)) * count // max(len(rows), 1)
    return Strata(count, of, np.arange(len(rows)), of)

"""How often each length occurs, and what follows from it: quantiles without a sorted copy. Knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LengthCounts:
    """`counts` (longest + 1,): how many of at least one thing have each length."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Iterable[NDArray[np.int32]]) -> LengthCounts:
        """The counts of lengths that come in parts (n,). Raises `ValueError` when there are none at all."""
        counts = np.zeros(1, dtype=np.int64)
        for part in parts:
            more = np.bincount(part, minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        if not counts.any():
            raise ValueError("lengths: got none; give those of at least one text")
        return cls(counts)

    @property
    def longest(self) -> int:
        """The largest length."""
        return int(np.flatnonzero(self.counts)[-1])

    def quantile(self, share: float) -> float:
        """The length at `share` (0 to 1) of all, between two of them by linear interpolation (`numpy.quantile`)."""
        ends = np.cumsum(self.counts)
        place = share * (int(ends[-1]) - 1)
        low, high = np.searchsorted(ends, [np.floor(place), np.ceil(place)], side="right")
        return float(low + (high - low) * (place % 1))

    def share_above(self, limit: int) -> float:
        """The share of lengths above `limit`, 0 to 1."""
        return float(self.counts[limit + 1 :].sum() / self.counts.sum())

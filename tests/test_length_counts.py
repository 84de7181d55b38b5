"""Quantiles of counted lengths are those of the lengths themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoothtune.data.length_counts import LengthCounts


@given(
    parts=st.lists(st.lists(st.integers(0, 300), max_size=20), min_size=1, max_size=6).filter(any),
    share=st.floats(0, 1),
    limit=st.integers(0, 400),
)
def test_counts_answer_as_the_sorted_lengths_do(parts: list[list[int]], share: float, limit: int) -> None:
    lengths = np.concatenate([np.array(part, dtype=np.int32) for part in parts])
    counts = LengthCounts.of(np.array(part, dtype=np.int32) for part in parts)
    assert counts.quantile(share) == pytest.approx(float(np.quantile(lengths, share)), abs=1e-9)
    assert counts.quantile(0.5) == float(np.median(lengths))
    assert counts.longest == lengths.max()
    assert counts.share_above(limit) == pytest.approx(float((lengths > limit).mean()))


def test_no_lengths_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="lengths: got none; give those of at least one text"):
        LengthCounts.of([np.empty(0, dtype=np.int32)])

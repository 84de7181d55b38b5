"""Rows cut into batches of about as many tokens, longest first. Knows nothing of texts or models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smoothtune.data.batching import padded_width

TOKENS = 8192
_ROW_MULTIPLE = 8


def token_batches(
    lengths: np.ndarray, *, limit: int, columns: int = 1, most: int | None = None, tokens: int = TOKENS
) -> Iterator[np.ndarray]:
    """Positions (n,) of one batch after the other; every row stands in exactly one.

    `lengths` (N,) are tokens of the longer text of each row of `columns` texts, `limit` the longest there can be. A batch
    fills `tokens` with padding counted, and holds at most `most` rows. The number of rows follows the width alone, so
    that few shapes occur.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        rows = tokens // (columns * padded_width(int(lengths[order[start]]), limit))
        if rows > _ROW_MULTIPLE:
            rows -= rows % _ROW_MULTIPLE
        rows = max(1, rows if most is None else min(rows, most))
        yield order[start : start + rows]
        start += rows

"""Examples of one task made from random token lengths, without texts or files, shared by the tests of batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smoothtune.data.batching import BatchStream, Examples
from smoothtune.data.tokenising import TokenColumn
from smoothtune.types import Input


def made_column(lengths: Sequence[int], *, seed: int = 0) -> TokenColumn:
    """Sequences of the given lengths with ids from 1 to 999; the second text begins in the middle."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(1, 1000, int(offsets[-1])).astype(np.uint16)
    sizes = np.asarray(lengths, dtype=np.int32)
    return TokenColumn(ids=ids, offsets=offsets, second=sizes // 2, full=sizes)


def made_examples(
    columns: list[TokenColumn], *, reads: Input = "single", chosen: Sequence[int] | None = None, limit: int = 128
) -> Examples:
    """Examples over `columns`: row i has label i % 5 and stands in line 10 i + 2."""
    count = len(columns[0])
    return Examples(
        task="made",
        reads=reads,
        columns=columns,
        labels=np.arange(count, dtype=np.int64) % 5,
        lines=np.arange(count, dtype=np.int64) * 10 + 2,
        chosen=np.arange(count, dtype=np.int32) if chosen is None else np.asarray(chosen, dtype=np.int32),
        limit=limit,
    )


def made_stream(rows: int, size: int, *, seed: int = 1) -> BatchStream:
    """The batches of `rows` short examples."""
    lengths = np.random.default_rng(rows).integers(2, 9, rows).tolist()
    return BatchStream(made_examples([made_column(lengths)]), size, seed=seed, stage="together")

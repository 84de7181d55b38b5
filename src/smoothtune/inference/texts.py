"""Texts as users give them, checked, as rows and as examples. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from smoothtune.data.values import is_unicode
from smoothtune.errors import UsageError

Texts = Iterable[str] | Iterable[Sequence[str]]


def checked_rows(task: str, texts: Texts, wanted: int) -> Iterator[tuple[str, ...]]:
    """Rows of `wanted` texts, 1 or 2. Raises `UsageError` naming `task` and the number of what is none or is empty."""
    if isinstance(texts, str):
        raise UsageError(f"task {task!r}: expected a list of texts, got one string")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        form = "df['text']" if wanted == 1 else "df[['a', 'b']].values"
        raise UsageError(
            f"task {task!r}: expected a list of texts, got {type(texts).__name__}; give its column, such as {form}"
        )
    if not isinstance(texts, Iterable):
        raise UsageError(f"task {task!r}: expected a list of texts, got {type(texts).__name__}")
    for number, item in enumerate(texts):
        several = isinstance(item, Sequence | np.ndarray) and not isinstance(item, str)
        row: tuple[Any, ...] = tuple(item) if several else (item,)
        if len(row) != wanted or not all(isinstance(text, str) for text in row):
            form = "a string" if wanted == 1 else "two strings"
            raise UsageError(f"task {task!r}, text {number}: expected {form}, got {item!r}")
        if not all(text.isascii() or is_unicode(text) for text in row):
            raise UsageError(
                f"task {task!r}, text {number}: has half of a surrogate pair, got {item!r}; give whole characters"
            )
        if not all(text.strip() for text in row):
            raise UsageError(f"task {task!r}, text {number}: is empty, got {item!r}; give a text or leave it out")
        yield tuple(map(str, row))

"""Texts as users give them, checked, as rows and as examples. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from smoothtune.errors import UsageError

Texts = Iterable[str] | Iterable[Sequence[str]]


def checked_rows(task: str, texts: Texts, wanted: int) -> Iterator[tuple[str, ...]]:
    """Rows of `wanted` texts, 1 or 2. Raises `UsageError` naming `task` and the number of what is none or is empty."""
    if isinstance(texts, str):
        raise UsageError(f"task {task!r}: expected a list of texts, got one string")
    if not isinstance(texts, Iterable):
        raise UsageError(f"task {task!r}: expected a list of texts, got {type(texts).__name__}")
    for number, item in enumerate(texts):
        several = isinstance(item, Sequence | np.ndarray) and not isinstance(item, str)
        row: tuple[Any, ...] = tuple(item) if several else (item,)
        if len(row) != wanted or not all(isinstance(text, str) for text in row):
            form = "a string" if wanted == 1 else "two strings"
            raise UsageError(f"task {task!r}, text {number}: expected {form}, got {item!r}")
        if not all(text.strip() for text in row):
            raise UsageError(f"task {task!r}, text {number}: is empty, got {item!r}; give a text or leave it out")
        yield tuple(map(str, row))

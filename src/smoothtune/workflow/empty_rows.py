"""Rows without a text among rows to predict: they are not asked, and keep their place. Knows nothing of models."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

Row = tuple[str, ...]


class Asked:
    """The rows that have all their texts, in order, to be gone through once; the others wait for `with_empty`."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self._waiting: deque[tuple[int, Row]] = deque()  # how many asked rows stand before each
        self.empty = 0

    def __iter__(self) -> Iterator[Row]:
        asked = 0
        for row in self._rows:
            if all(text.strip() for text in row):
                asked += 1
                yield row
            else:
                self.empty += 1
                self._waiting.append((asked, row))

    def with_empty(
        self, windows: Iterable[tuple[list[Row], list[list[Any]]]], columns: int
    ) -> Iterator[tuple[list[Row], list[list[Any]]]]:
        """The answered `windows`, with the empty rows in their places and None as their answer in each of the `columns`."""
        done = 0
        for rows, answers in windows:
            yield self._merged(rows, answers, done)
            done += len(rows)
        if self._waiting:
            yield self._merged([], [[] for _ in range(columns)], done)

    def _merged(self, rows: list[Row], answers: list[list[Any]], done: int) -> tuple[list[Row], list[list[Any]]]:
        """A window after `done` asked rows, and the empty rows that stand before its last row; all of them where it is empty."""
        if not self._waiting or (rows and self._waiting[0][0] >= done + len(rows)):
            return rows, answers
        merged: list[tuple[Row, tuple[Any, ...]]] = []
        for at, row in enumerate([*rows, None]):
            while self._waiting and self._waiting[0][0] == done + at and (row is not None or not rows):
                merged.append((self._waiting.popleft()[1], (None,) * len(answers)))
            if row is not None:
                merged.append((row, tuple(column[at] for column in answers)))
        return [row for row, _ in merged], [
            list(column) for column in zip(*(found for _, found in merged), strict=True)
        ]

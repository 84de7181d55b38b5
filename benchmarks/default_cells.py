"""Measured cells as JSON Lines: one line for a set, a size, a seed and a side, on disk as soon as it is measured.

Knows nothing of how a cell is measured or of what its line holds beside its key.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

Line = dict[str, Any]


class Key(NamedTuple):
    """What names a cell: set, training rows, seed, side."""

    set: str
    rows: int
    seed: int
    side: str


def key_of(line: Mapping[str, Any]) -> Key:
    """The key of a line."""
    return Key(line["set"], line["rows"], line["seed"], line["side"])


def latest(lines: Iterable[Line]) -> dict[Key, Line]:
    """The last line of every cell."""
    return {key_of(line): line for line in lines}


def complete_lines(path: Path) -> list[Line]:
    """The lines of a file but a half-written last one. Raises `ValueError` for any other that is no JSON object."""
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")[:-1]
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            key_of(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: is no line of a cell ({error}); remove it") from None
        lines.append(line)
    return lines


class CellFile:
    """The file of cells: what is there, and one more line. Threads and processes may add lines at the same time."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self._cells = latest(complete_lines(path))
        if path.exists():
            self._drop_half_line()

    def _drop_half_line(self) -> None:
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may be writing its line
            file.truncate(file.read().rfind(b"\n") + 1)

    def line(self, key: Key) -> Line | None:
        """The last line of a cell, None where there is none."""
        return self._cells.get(key)

    def has(self, key: Key, same: Mapping[str, Any]) -> bool:
        """Whether a cell is there with the same values of some of its fields."""
        line = self.line(key)
        return line is not None and all(line.get(name) == value for name, value in same.items())

    def add(self, line: Line) -> None:
        """One more line, on disk when this returns."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._cells[key_of(line)] = line

"""Flat columns of numbers that files back, so that they are no anonymous memory however many rows there are.

A column is either kept under a name and memory-mapped, or is scratch: in a file without a name, which the system drops
with the array. Passes over columns go block by block. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from smoothtune.files import WriteError, cache_folder
from smoothtune.system import reserve

BLOCK = 1 << 16
# Smaller arrays are a matter of a few pages, and need no file.
_FILE_FROM = 1 << 20


class ColumnWriter:
    """Appends numbers to a file that `open_column` reads."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")

    def add(self, numbers: Any) -> None:
        """Append numbers of any shape, row by row."""
        self._file.write(np.ascontiguousarray(numbers, dtype=self._dtype).data)

    def close(self) -> None:
        """No more numbers come."""
        self._file.close()


def open_column(path: Path, dtype: DTypeLike, width: int | None = None) -> NDArray[Any]:
    """The numbers of a file, memory-mapped for reading: (N,), or (N, width)."""
    shape = (-1,) if width is None else (-1, width)
    size = path.stat().st_size
    if size == 0:  # nothing can be mapped
        return np.empty((0, *shape[1:]), dtype=dtype)
    # By torch, which keeps no file open, as a `memmap` does: columns of many tasks are mapped for as long as a run lasts.
    numbers: NDArray[Any] = torch.from_file(str(path), size=size, dtype=torch.uint8).numpy().view(dtype)
    numbers.flags.writeable = False
    return numbers.reshape(shape)


def scratch(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """(count,) zeros to work on: a file without a name in the cache folder backs them, from 1 MiB on.

    Not in the folder for temporary files, which may itself be memory. Raises `WriteError` when there is no room.
    """
    size = np.dtype(dtype).itemsize * count
    if size < _FILE_FROM:
        return np.zeros(count, dtype=dtype)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, size)  # without its blocks a full disk would kill the process
            # As a plain array: NumPy shuffles only those in place at full speed.
            return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=(count,)))
    except OSError as error:
        what = f"cannot hold {size / 1e9:.2f} GB for a while: {error.strerror}"
        raise WriteError(f"{folder}: {what}; free space or choose another cache with XDG_CACHE_HOME") from None


def blocks(count: int) -> Iterator[slice]:
    """Consecutive slices of at most 65,536 numbers that cover `count`."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def filled(most: int, dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """The parts (n,) one after another in a scratch array, (sum of n,); together they are at most `most` numbers."""
    into = scratch(most, dtype)
    end = 0
    for part in parts:
        into[end : end + len(part)] = part
        end += len(part)
    return into[:end]


def counting(count: int) -> NDArray[np.int32]:
    """0, 1, 2, ... as a scratch array, (count,)."""
    return filled(count, np.int32, (np.arange(part.start, part.stop) for part in blocks(count)))


def gathered(column: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """`column[rows]` as a scratch array: (M,) or (M, width) numbers, of the latter all in one row, (M * width,)."""
    width = int(np.prod(column.shape[1:]))
    return filled(len(rows) * width, column.dtype, (column[rows[part]].ravel() for part in blocks(len(rows))))

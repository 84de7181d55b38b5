"""The sha256 of files, taken while they are read for another reason and remembered while they stay as they are.

A file stays as it is while its path, size, inode and both times of change do; one that was changed less than two seconds
before it was read is looked at again, since the clocks of some file systems tick no faster. Knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from smoothtune.cache import read_record, write_record
from smoothtune.files import WriteError

_BLOCK = 1 << 20
_SETTLED = 2_000_000_000  # nanoseconds
_FORMAT = 2


def read_sha256(path: Path) -> str:
    """The sha256 of a file, which is read in blocks. Raises `OSError` when it cannot be."""
    with HashedFile(path) as file:
        return file.digest()


def content_of(path: Path, of_file: Callable[[Path], str] = read_sha256) -> str:
    """The sha256 of a file, or one of those of all files of a folder and their names."""
    if not path.is_dir():
        return of_file(path)
    files = sorted(Path(parent) / name for parent, _, names in os.walk(path) for name in names)
    lines = [f"{file.relative_to(path).as_posix()}\0{of_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class HashedFile(io.FileIO):
    """A file that takes its sha256 from the bytes that are read of it, each once and in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._hash = hashlib.sha256()

    def readinto(self, into: Any, /) -> int | None:
        """Read some bytes into a buffer; how many."""
        count = super().readinto(into)
        self._hash.update(memoryview(into)[:count])
        return count

    def digest(self) -> str:
        """The sha256 of the whole file; reads what was not read yet."""
        block = bytearray(_BLOCK)
        while self.readinto(block):
            pass
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another: bytes, inode, times of change and of this look in nanoseconds."""

    path: str
    size: int
    inode: int
    modified: int
    changed: int
    looked: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file now. Raises `OSError` when it is not there."""
        looked, found = time.time_ns(), path.stat()
        return cls(str(path), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, looked)

    def same_state(self, other: Stamp) -> bool:
        """Whether a file with one stamp is surely as it was with the other, the earlier one."""
        mine, theirs = ((s.path, s.size, s.inode, s.modified, s.changed) for s in (self, other))
        return mine == theirs and other.looked - max(other.modified, other.changed) > _SETTLED


class Reading:
    """A file open for one reading, as a buffered stream of its bytes; `content` is its sha256 at the end."""

    def __init__(self, path: Path, known: KnownContents) -> None:
        self._known = known
        self._stamp = Stamp.of(path)
        self._raw = HashedFile(path)
        self.file = io.BufferedReader(self._raw, _BLOCK)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def content(self) -> str:
        """The sha256 of the whole file, which is remembered."""
        digest = self._raw.digest()
        self._known.remember(self._stamp, digest)
        return digest


class KnownContents:
    """The contents of files that were read before, in a folder of the cache."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "contents"

    def of(self, path: Path) -> str:
        """The sha256 of a file, or of all files of a folder; only what has changed or is new is read."""
        return content_of(path, lambda file: self.remembered(file) or self._read(file))

    def remembered(self, path: Path) -> str | None:
        """The sha256 of a file that stayed as it was when it was last read, else None.

        What was kept of it but is damaged counts as nothing.
        """
        stamp = Stamp.of(path)
        record = read_record(self._place(stamp))
        if record is None or record["format"] != _FORMAT or not stamp.same_state(Stamp(**record["stamp"])):
            return None
        return str(record["sha256"])

    def has_size(self, path: Path) -> bool:
        """Whether some file of this size was read before: then this one may be a copy, or be touched but unchanged."""
        return next(self._folder.glob(f"{path.stat().st_size}-*.json"), None) is not None

    def remember(self, stamp: Stamp, sha256: str) -> None:
        """Keep the content of a file in the state of `stamp`. A cache that can only be read costs another reading, no more."""
        with suppress(WriteError):
            write_record(self._place(stamp), {"format": _FORMAT, "stamp": asdict(stamp), "sha256": sha256})

    def _read(self, path: Path) -> str:
        with Reading(path, self) as reading:
            return reading.content()

    def _place(self, stamp: Stamp) -> Path:
        name = hashlib.sha256(f"{_FORMAT} {stamp.path}".encode(errors="surrogateescape")).hexdigest()[:32]
        return self._folder / f"{stamp.size}-{name}.json"

"""Entries of the cache: written aside, synced, renamed, and read only where every size and checksum is as it was written.

An entry is a folder of files with `sums.json` (bytes and CRC-32 of each, and the name of the entry), or a record: one small
JSON file that holds its own. What does not match is a miss: told of in one line, removed, made again by whoever asked.
Sums are compared once per process, and once more after a file has changed. Knows nothing of what an entry means.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from smoothtune.bounded import parse_json, read_text
from smoothtune.files import WriteError, make_folder, replace_text, sync

SUMS = "sums.json"
_FORMAT = 1
_BLOCK = 1 << 20
_TRIES = 3
_ABANDONED = 24 * 3600  # seconds after which what a killed process was writing is swept away

_log = logging.getLogger(__name__)
_Stamps = tuple[tuple[int, ...], ...]
_compared: dict[Path, _Stamps] = {}  # entries whose sums this process has compared, and how their files were then
_reports: list[str] = []
_swept: set[Path] = set()
Content = TypeVar("Content")


class _DamagedError(ValueError):
    """What is wrong with an entry."""


@contextmanager
def aside(cache: Path, *, variables: str = "XDG_CACHE_HOME") -> Iterator[Path]:
    """An empty folder in `cache` to fill; `settle` gives it its name, and without that it is removed at the end.

    Every `OSError` inside counts as one of writing and becomes a `WriteError` that names the cache and the environment's
    `variables` that choose another: what else is read there must raise errors of its own.
    """
    folder = cache / f"{uuid.uuid4().hex}.part"
    with _writing(cache, variables):
        make_folder(cache)
        _sweep(cache)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def settle(written: Path, entry: Path) -> None:
    """Sum and sync the files of the folder `written` and rename it to `entry`.

    Where another process was first, its entry stays: it is as good. Raises `OSError`.
    """
    files = sorted(written.iterdir())
    sums = {path.name: [path.stat().st_size, _checksum(path)] for path in files}
    (written / SUMS).write_text(json.dumps({"format": _FORMAT, "entry": entry.name, "files": sums}), encoding="utf-8")
    for path in (*files, written / SUMS, written):
        sync(path)
    stamps = _stamps(written, sums)
    try:
        written.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise
    else:
        _compared[entry] = stamps
    sync(entry.parent)


def opened(entry: Path, read: Callable[[Path], Content]) -> Content | None:
    """What `read` makes of a whole entry; None where there is none, it is damaged, or it goes meanwhile.

    Raises `WriteError` where a damaged one cannot be removed.
    """
    if not _whole(entry):
        return None
    try:
        return read(entry)
    except FileNotFoundError:
        return None


def fetched(entry: Path, read: Callable[[Path], Content], make: Callable[[], None]) -> Content:
    """What `read` makes of a whole entry; `make` settles it where there is none.

    Raises `WriteError` where it is gone every time that it was made.
    """
    for _ in range(_TRIES):
        content = opened(entry, read)
        if content is not None:
            return content
        make()
    content = opened(entry, read)
    if content is None:
        raise gone(entry)
    return content


def gone(entry: Path) -> WriteError:
    """The error for an entry that is not there although it was made a moment ago."""
    return WriteError(
        f"{entry}: has gone as soon as it was made: something else empties the cache; choose another with XDG_CACHE_HOME"
    )


def write_record(path: Path, value: Any) -> None:
    """Write a small value of JSON as an entry of its own. Raises `WriteError` naming the cache."""
    with _writing(path.parent):
        make_folder(path.parent)
        replace_text(path, json.dumps({"format": _FORMAT, "entry": path.name, "crc32": _crc(value), "value": value}))


def read_record(path: Path) -> Any | None:
    """The value of a record; None where there is none, or it is damaged. Raises `WriteError` as `opened` does."""
    try:
        return _value(path)
    except (OSError, ValueError) as error:
        if os.path.lexists(path):
            _discard(path, _flaw(error))
        return None


def altered() -> tuple[Path, ...]:
    """The entries that this process has read and whose files something has changed in place since.

    What was mapped of them may be wrong. A file that was replaced or removed is none of them: its mapping is as it was.
    """
    return tuple(entry for entry, stamps in tuple(_compared.items()) if _altered(entry, stamps))


def _altered(entry: Path, stamps: _Stamps) -> bool:
    try:
        now = _stamps(entry, _sums(entry))
    except (OSError, ValueError):
        return False
    if not any(old[:2] == new[:2] and old != new for old, new in zip(stamps, now, strict=False)):
        return False
    try:
        _compare(entry)  # it may only have been touched
    except (OSError, ValueError):
        return True
    return False


def reports() -> tuple[str, ...]:
    """The lines about damaged and vanished entries that this process has logged."""
    return tuple(_reports)


def _whole(entry: Path) -> bool:
    try:
        _compare(entry)
    except (OSError, ValueError) as error:
        if os.path.lexists(entry):
            _discard(entry, _flaw(error))
        elif _compared.pop(entry, None) is not None:
            _report(f"cache: {entry} has gone since it was read; it is made again")
        return False
    return True


def _flaw(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(error.filename).name}: {error.strerror}"
    return str(error)


def _compare(entry: Path) -> None:
    """Compare the sums of an entry with its files, unless this process did and they are as they were.

    Raises `FileNotFoundError`, other `OSError`s and `ValueError` for what is not as it was written.
    """
    sums = _sums(entry)
    stamps = _stamps(entry, sums)
    if _compared.get(entry) == stamps:
        return
    for name, (size, checksum) in sums.items():
        path = entry / name
        if path.stat().st_size != size:
            raise _DamagedError(f"{name} has {path.stat().st_size:,} bytes, {size:,} were written")
        if _checksum(path) != checksum:
            raise _DamagedError(f"the checksum of {name} is not the one that was written")
    _compared[entry] = stamps


def _sums(entry: Path) -> dict[str, list[int]]:
    try:
        listed = parse_json(read_text(entry / SUMS))
        written, name = listed["format"], listed["entry"]
        files: dict[str, list[int]] = listed["files"]
        plain = all(isinstance(item, list) and [type(part) for part in item] == [int, int] for item in files.values())
        inside = all(file == Path(file).name for file in files)
    except (ValueError, LookupError, TypeError, AttributeError, IsADirectoryError, NotADirectoryError):
        raise _DamagedError(f"{SUMS} cannot be read") from None
    if written != _FORMAT or name != entry.name or not plain or not inside:
        raise _DamagedError(f"{SUMS} is of another entry")
    return files


def _stamps(entry: Path, names: Iterable[str]) -> _Stamps:
    """What tells one state of the files from another. Raises `_DamagedError` for what is no plain file."""
    stamps = []
    for name in names:
        seen = (entry / name).lstat()
        if not stat.S_ISREG(seen.st_mode):
            raise _DamagedError(f"{name} is no plain file")
        stamps.append((seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(stamps)


def _checksum(path: Path) -> int:
    """The CRC-32 of a file: several times as fast as SHA-256, and a sum against accidents is all that is needed."""
    checksum, block = 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            checksum = zlib.crc32(block[:count], checksum)
    return checksum


def _crc(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _value(path: Path) -> Any:
    record = parse_json(read_text(path))
    keys = {"format", "entry", "crc32", "value"}
    if not isinstance(record, dict) or set(record) != keys or record["format"] != _FORMAT:
        raise _DamagedError("it is no record")
    if record["entry"] != path.name:
        raise _DamagedError(f"it is the record {str(record['entry'])[:80]!r}")
    if record["crc32"] != _crc(record["value"]):
        raise _DamagedError("its checksum is not the one that was written")
    return record["value"]


def _discard(entry: Path, flaw: str) -> None:
    """Remove a damaged entry and say so; one that another process removes first is no damage."""
    _compared.pop(entry, None)
    away = entry.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with _writing(entry.parent, damaged=f"{entry.name} is damaged ({flaw}) and "):
            entry.rename(away)
    except FileNotFoundError:
        return
    _report(f"cache: {entry} is damaged ({flaw}); removed, it is made again")
    if away.is_dir() and not away.is_symlink():
        shutil.rmtree(away, ignore_errors=True)
    else:
        with suppress(OSError):
            away.unlink()


def _report(line: str) -> None:
    _reports.append(line)
    _log.warning(line)


@contextmanager
def _writing(cache: Path, variables: str = "XDG_CACHE_HOME", *, damaged: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if damaged and isinstance(error, FileNotFoundError):
            raise
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        what = f"cannot be written: {reason}; free space or choose another cache with {variables}"
        raise WriteError(f"{cache}: {damaged}{what}") from None


def _sweep(cache: Path) -> None:
    """Remove what killed processes left, once per process."""
    if cache in _swept:
        return
    _swept.add(cache)
    for left in (*cache.glob("*.part"), *cache.glob("*/*.part")):
        if time.time() - _last_change(left) > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
            with suppress(OSError):
                left.unlink()


def _last_change(folder: Path) -> float:
    """When a folder, or a file in it, was last changed; 0 where it has gone."""
    try:
        inside = folder.iterdir() if folder.is_dir() else ()
        times: list[float] = [path.stat().st_mtime for path in (folder, *inside)]
    except OSError:
        return 0.0
    return max(times)

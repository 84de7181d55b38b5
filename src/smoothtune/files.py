"""Writing files and folders so that none is ever half there: written aside, synced, renamed. Knows nothing of what they hold."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smoothtune import system
from smoothtune.errors import SmoothtuneError, UsageError

_asking = threading.Lock()


class WriteError(SmoothtuneError):
    """A file could not be written (exit code 1)."""


class NoCacheError(UsageError):
    """There is no folder for the cache (exit code 2)."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all. Raises `WriteError` naming the file and the cause."""
    try:
        make_folder(path.parent)
        replace_text(path, text)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}; free space or choose another folder") from None


def replace_text(path: Path, text: str) -> None:
    """Write `text` aside, sync it, let it take the place of `path`, and sync that. Raises `OSError`."""
    number, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o666 & ~umask())
        os.replace(aside, path)
        sync(path.parent)
    finally:
        Path(aside).unlink(missing_ok=True)


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A new empty folder to fill; at the end it becomes `target`, which is replaced if it was there.

    Raises `WriteError` naming the folder and the cause.
    """
    try:
        make_folder(target.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            yield aside
            aside.chmod(0o777 & ~umask())
            for path in (*aside.rglob("*"), aside):  # the folder too: without it the names of its files may be lost
                sync(path)
            _swap(aside, target)
            sync(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise WriteError(
            f"{target}: cannot be written: {error.strerror}; free space or choose another folder"
        ) from None


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = new.with_suffix(".old")
    try:
        target.rename(old)
        new.rename(target)
    finally:
        if not target.exists():
            old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents where they are not there; their names are on disk when this returns. Raises `OSError`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """What stands in a file or folder is on disk when this returns. Raises `OSError`."""
    system.sync(path)


def umask() -> int:
    """What new files may not be, as the user has set it."""
    with suppress(OSError):  # Linux tells it; elsewhere it is set for a moment to be told
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    with _asking:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def cache_folder() -> Path:
    """Where prepared data are kept between runs: `$XDG_CACHE_HOME/smoothtune`, by default `~/.cache/smoothtune`.

    A relative `XDG_CACHE_HOME` is ignored, as its specification says. Raises `NoCacheError` where there is no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "smoothtune"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry of this user among the system's
        home = Path()
    if not home.is_absolute():
        raise NoCacheError(
            "no home folder, so there is no place for the cache: set XDG_CACHE_HOME to the absolute path of a folder"
        )
    return home / ".cache" / "smoothtune"

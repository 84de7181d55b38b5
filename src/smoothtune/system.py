"""What not every system has, with what does as well in its place. Knows nothing of what it is for."""

from __future__ import annotations

import errno
import os
import sys
from importlib.util import find_spec
from typing import IO

from smoothtune.errors import UsageError

_PIECE = 1 << 20
_LOCKED_BYTE = 1 << 30  # far behind what the file says: Windows lets nobody else read a locked byte

# Flags for `os.open` where there are such files: a link is not followed, a pipe is not waited for.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BYTES = getattr(os, "O_BINARY", 0)


def cores() -> int:
    """The cores that this process may use; where the system does not say, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reserve(file: IO[bytes], size: int) -> None:
    """Give a file `size` bytes of disk. Raises `OSError` where there is no room; a hole that is mapped would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(_PIECE)
    for begin in range(0, size, _PIECE):
        file.write(zeros[: size - begin])
    file.flush()
    file.seek(0)


def sync(path: str | os.PathLike[str]) -> None:
    """What stands in a file or folder is on disk when this returns; where folders cannot be opened, theirs is left alone."""
    folders_open = hasattr(os, "O_DIRECTORY")
    if os.path.isdir(path) and not folders_open:
        return
    number = os.open(path, (os.O_RDONLY if folders_open else os.O_RDWR) | BYTES)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_locks() -> None:
    """Raise `UsageError` on a system without file locks."""
    if not any(_importable(name) for name in ("fcntl", "msvcrt")):
        raise UsageError(
            "this system has no file locks (neither fcntl nor msvcrt), so that two processes could write one run; "
            "train on Linux, macOS or Windows"
        )


def lock(number: int) -> bool:
    """Lock an open file for as long as it is open; whether nobody else had locked it.

    Raises `OSError` where the disk takes no locks, and `UsageError` on a system without any.
    """
    check_locks()
    try:
        _lock(number)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _lock(number: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(number, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _importable(name: str) -> bool:
    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None

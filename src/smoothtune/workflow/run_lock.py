"""One process at a time writes a run. Knows nothing of what a run holds."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from smoothtune.errors import UsageError
from smoothtune.files import WriteError

LOCK = ".lock"
_MOST = 4096


class RunLock:
    """Held, by the system, for as long as this process lives and does not let go: a lock left behind is none.

    The file says who holds it. Raises `UsageError` when another process does, `WriteError` where nothing can be locked.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._number: int | None = None

    def __enter__(self) -> RunLock:
        try:
            number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise WriteError(f"{self._path}: cannot be written: {error.strerror}; choose another --run-dir") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sign(number)
        except OSError as error:
            os.close(number)
            raise self._refused(error) from None
        self._number = number
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._number is not None:
            os.close(self._number)
            self._number = None

    @staticmethod
    def _sign(number: int) -> None:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
        os.ftruncate(number, 0)
        os.pwrite(number, text.encode(), 0)

    def _refused(self, error: OSError) -> UsageError | WriteError:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return WriteError(
                f"{self._path}: cannot be locked: {error.strerror}; free space, or choose a --run-dir on another disk"
            )
        return UsageError(
            f"{self._path.parent}: {self._holder()} is at work on this run; wait for it or end it, then go on"
        )

    def _holder(self) -> str:
        try:
            with self._path.open("rb") as file:
                told = json.loads(file.read(_MOST))
            return f"process {int(told['process'])} on {str(told['host'])[:80]} (since {str(told['since'])[:40]})"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

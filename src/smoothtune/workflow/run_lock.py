"""One process at a time writes a run. Knows nothing of what a run holds."""

from __future__ import annotations

import datetime
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from smoothtune.errors import SmoothtuneError, UsageError
from smoothtune.files import WriteError
from smoothtune.system import BYTES, NO_LINK, lock

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
            number = os.open(self._path, os.O_RDWR | os.O_CREAT | NO_LINK | BYTES, 0o666)
        except OSError as error:
            raise WriteError(f"{self._path}: cannot be written: {error.strerror}; choose another --run-dir") from None
        try:
            self._take(number)
        except SmoothtuneError:
            os.close(number)
            raise
        self._number = number
        return self

    def _take(self, number: int) -> None:
        try:
            free = lock(number)
            if free:
                self._sign(number)
        except OSError as error:
            raise WriteError(
                f"{self._path}: cannot be locked: {error.strerror}; free space, or choose a --run-dir on another disk"
            ) from None
        if not free:
            raise UsageError(
                f"{self._path.parent}: {self._holder()} is at work on this run; wait for it or end it, then go on"
            )

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
        os.lseek(number, 0, os.SEEK_SET)
        os.write(number, text.encode())

    def _holder(self) -> str:
        try:
            with self._path.open("rb") as file:
                told = json.loads(file.read(_MOST))
            return f"process {int(told['process'])} on {str(told['host'])[:80]} (since {str(told['since'])[:40]})"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

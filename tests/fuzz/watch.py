"""What reading a file must not do: write, connect, start anything, take long or much memory. Knows nothing of any reader."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 20.0  # of wall time: the machine may be busy
MEBIBYTES = 512  # by which one input may raise the peak of memory; the files are of some kilobytes
_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn")
_REACHING = ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen")
_CHANGING = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")

_PATHS = {"os.rename": 2, "os.link": 2, "os.symlink": 2}
_FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}


class TooLongError(BaseException):
    """An input took longer than it may; no `Exception`, so that no reader can take it for one of its own."""


class Watch:
    """Sees through Python's audit hooks what is done below the interpreter's eyes, while it is asked to.

    Within `allowed` files may be written: caches that a reader fills by design.
    """

    def __init__(self, allowed: Path) -> None:
        self._allowed = f"{allowed.resolve()}{os.sep}"
        self._seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in _STARTING or event in _REACHING:
            self._seen.append(f"{event} {arguments!r:.200}")
        elif (event == "open" and _writes(arguments)) or event in _CHANGING:
            self._look(event, arguments)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        paths = arguments[: _PATHS.get(event, 1)]
        for path in (part for part in paths if isinstance(part, str | bytes | os.PathLike)):
            full = os.path.join(_begin(event, arguments), os.fsdecode(path))
            if not f"{os.path.normpath(full)}{os.sep}".startswith(self._allowed) and full != os.devnull:
                self._seen.append(f"{event} {full}")

    @contextmanager
    def one(self) -> Iterator[list[str]]:
        """Watch one input; the list holds what was seen, at the end."""
        self._seen = []
        fresh_peak()
        before = peak()
        found: list[str] = []
        faulthandler.dump_traceback_later(4 * SECONDS, exit=True)  # for what never comes back to the interpreter
        self._on = True
        try:
            yield found
        finally:
            self._on = False
            faulthandler.cancel_dump_traceback_later()
            found += self._seen
            if peak() - before > MEBIBYTES:
                found.append(f"memory rose by {peak() - before} MiB")


def in_time(read: Callable[[Path], None], case: Path) -> None:
    """Read one input. Raises `TooLongError`, here and not later."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(case)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = (*arguments, None, None, None)[:3]
    if isinstance(mode, str):
        return bool(set("wax+") & set(mode))
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _begin(event: str, arguments: tuple[Any, ...]) -> str:
    """Where relative paths of an event begin: some name a folder by its number."""
    number = arguments[_FOLDERS[event]] if event in _FOLDERS else -1
    return os.getcwd() if number == -1 else os.readlink(f"/proc/self/fd/{number}")


def fresh_peak() -> None:
    """Forget how much memory was taken at most so far; the figure of `getrusage` even holds that of the process before."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """How much memory was taken at most since then, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:"))


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError(f"longer than {SECONDS:g} s")

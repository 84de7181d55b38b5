"""Locks of this process, and what a fork leaves of its threads: none but the one that forked.

Nothing happens on import: `watch_forks` registers what a child does first.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from weakref import WeakSet

import torch

_locks: WeakSet[ProcessLock] = WeakSet()
_watched = False
_forked = False


class ProcessLock:
    """A lock that its thread may take several times; a forked child has a fresh one, as the thread that held it is gone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Free it, whoever held it."""
        self._lock = threading.RLock()


def watch_forks() -> None:
    """From here on a forked child computes in one thread: it has none of OpenMP's others and would wait for them for ever."""
    global _watched
    if _watched or not hasattr(os, "register_at_fork"):
        return
    _watched = True
    os.register_at_fork(after_in_child=_begin_child)


def threads_allowed(count: int) -> int:
    """`count`, but 1 in a forked child of a process that computes."""
    return 1 if _forked else count


def _begin_child() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)
    for lock in list(_locks):
        lock.renew()

"""How a process learns that another one of its run has been stopped, or that its machine has vanished: it misses its beats.

A thread counts up a number in the store where the processes have met, and reads those of the others, for as long as the
process lives, whatever it is at. Who waits looks at them. Knows nothing of what is waited for.
"""

from __future__ import annotations

import atexit
import threading
from datetime import timedelta
from typing import Protocol

from smoothtune.errors import OneProcessError

BEAT = timedelta(seconds=3)
SILENCE = 15  # beats: 45 s, far longer than a busy machine or a call into C leaves a thread without its turn


class Store(Protocol):
    """Numbers that all processes see, as in a store of torch.distributed."""

    def add(self, key: str, value: int) -> int:
        """Add to a number, which begins at 0, and return it. Raises `RuntimeError` where the store is gone."""
        ...


class Work(Protocol):
    """What is under way between processes, as torch.distributed tells of it."""

    def is_completed(self) -> bool:
        """Whether it is done, or has failed."""
        ...

    def wait(self, timeout: timedelta = ...) -> bool:
        """Wait for it, so long at most. Raises `RuntimeError` when it fails, and when it takes longer."""
        ...


class Heart:
    """The beats of process `rank` of `world`, over a connection to the `store` of its own; they begin at once.

    No clock of another machine is read, and no time is measured: a reader counts its own looks, one a `beat`, at which a
    number stood still. So one that was itself stopped for an hour takes nobody for dead when it goes on.
    """

    def __init__(self, store: Store, rank: int, world: int, beat: timedelta = BEAT) -> None:
        self._store, self._rank, self._beat = store, rank, beat
        self._counts = [0] * world
        self._silent: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="smoothtune-heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # a thread that comes back from C++ while Python is taken down aborts the process

    def stop(self) -> None:
        """Beat no more: others that wait will miss it."""
        self._ended.set()
        self._thread.join(self._beat.total_seconds())
        atexit.unregister(self.stop)

    def wait_for(self, work: Work) -> None:
        """Wait until `work` is done, as long as the others live.

        Raises what `work` raises, and `OneProcessError` where another does not answer: then `work` is still under way.
        """
        before, still = self._counts, [0] * len(self._counts)
        while self._silent is None and not _done(work, self._beat):
            now = self._counts
            still = [looks + 1 if a == b else 0 for looks, a, b in zip(still, before, now, strict=True)]
            before = now
            if max(still) >= SILENCE:
                self._silent = self._told(still)
        if self._silent is not None:
            raise OneProcessError(self._silent)
        work.wait()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._counts = [self._beat_or_look(rank) for rank in range(len(self._counts))]
                self._ended.wait(self._beat.total_seconds())
        except RuntimeError:  # the store is gone: all counts stand still, which tells it to who waits
            return

    def _beat_or_look(self, rank: int) -> int:
        return self._store.add(f"smoothtune/heartbeat/{rank}", int(rank == self._rank))

    def _told(self, still: list[int]) -> str:
        silent = [rank for rank, looks in enumerate(still) if looks >= SILENCE - 2]  # those that ended together, too
        if still[self._rank] > SILENCE // 2:  # its own count does not come back: all are silent, wherever they are
            who = "process 0, or its launcher, through which the processes find each other, has"
        else:
            numbers = ", ".join(map(str, silent))
            who = f"process {numbers} has" if len(silent) == 1 else f"processes {numbers} have"
        seconds = SILENCE * self._beat.total_seconds()
        return (
            f"process {self._rank} of {len(self._counts)}: {who} not answered for {seconds:g} s "
            "(stopped, or the machine or the network is gone)"
        )


def _done(work: Work, most: timedelta) -> bool:
    """Whether `work` is done, well or not, after waiting `most` for it."""
    try:
        work.wait(most)
    except RuntimeError:  # torch has no error of its own for a wait that was too short
        return work.is_completed()
    return True

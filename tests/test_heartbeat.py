"""Who waits goes on waiting while the others live, however long it takes, and no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist

from smoothtune.errors import OneProcessError
from smoothtune.runtime import processes
from smoothtune.runtime.heartbeat import BEAT, SILENCE, Heart, Store
from smoothtune.runtime.processes import together

FAST = timedelta(seconds=0.1)
LIMIT = SILENCE * FAST.total_seconds()


class Lasting:
    """Work that takes so many seconds, and fails then where it is told to; a wait for it takes `nap` seconds or more."""

    def __init__(self, seconds: float, failure: str = "", nap: float = 0.0) -> None:
        self._end, self._failure, self._nap = time.monotonic() + seconds, failure, nap

    def is_completed(self) -> bool:
        return time.monotonic() >= self._end

    def wait(self, timeout: timedelta = timedelta(days=1)) -> bool:
        left = self._end - time.monotonic()
        if left > 0:
            time.sleep(max(self._nap, min(left, timeout.total_seconds())))
        if not self.is_completed():
            raise RuntimeError("Operation timed out!")
        if self._failure:
            raise RuntimeError(self._failure)
        return True


class Ending:
    """A store that its machine takes away after so many additions, with or without a word."""

    def __init__(self, most: int, *, silently: bool) -> None:
        self._left, self._silently, self._store = most, silently, dist.HashStore()
        self.taken = threading.Event()

    def add(self, key: str, value: int) -> int:
        self._left -= 1
        if self._left < 0 and not self._silently:
            raise RuntimeError("Connection reset by peer")
        if self._left < 0:
            self.taken.wait()
        return self._store.add(key, value)


@contextmanager
def hearts(world: int, store: Store | None = None) -> Iterator[list[Heart]]:
    """One heart of each process, all in this one."""
    store = dist.HashStore() if store is None else store
    with ExitStack() as held:
        found = [Heart(store, rank, world, FAST) for rank in range(world)]
        for heart in found:
            held.callback(heart.stop)
        yield found


def test_as_long_as_the_others_live_work_may_last() -> None:
    work = Lasting(3 * LIMIT)
    with hearts(2) as (heart, _):
        heart.wait_for(work)
    assert work.is_completed()


@pytest.mark.parametrize(("gone", "who"), [([2], "process 2 has"), ([1, 3], "processes 1, 3 have")])
def test_who_beats_no_more_is_named(gone: list[int], who: str) -> None:
    with hearts(4) as found:
        for rank in gone:
            found[rank].stop()
        told = f"process 0 of 4: {who} not answered for 1.5 s (stopped, or the machine or the network is gone)"
        with pytest.raises(OneProcessError) as error:
            found[0].wait_for(Lasting(60))
        assert str(error.value) == told
        began = time.monotonic()
        with pytest.raises(OneProcessError, match="not answered"):
            found[0].wait_for(Lasting(60))
        assert time.monotonic() - began < 30  # no second time of waiting


def test_what_the_work_says_comes_first() -> None:
    with hearts(2) as (heart, other):
        other.stop()
        with pytest.raises(RuntimeError, match="reset by peer"):
            heart.wait_for(Lasting(LIMIT / 3, "Connection reset by peer"))


@pytest.mark.parametrize("silently", [True, False])
def test_without_the_store_nobody_is_heard(silently: bool) -> None:
    store = Ending(20, silently=silently)
    with hearts(2, store) as (_, heart):
        with pytest.raises(OneProcessError, match=r"process 1 of 2: process 0, or its launcher, .* has not answered"):
            heart.wait_for(Lasting(60))
        store.taken.set()


def test_who_was_stopped_itself_takes_nobody_for_dead() -> None:
    work = Lasting(1.5 * LIMIT, nap=1.1 * LIMIT)
    with hearts(2) as (heart, other):
        other.stop()  # as in a machine that slept: no beats came while this one took a single look
        heart.wait_for(work)
    assert work.is_completed()


def test_the_silence_is_noticed_within_a_minute() -> None:
    assert 30 < (SILENCE + 1) * BEAT.total_seconds() < 50


def test_processes_that_met_in_their_own_way_wait_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_groups", {})
    monkeypatch.setattr(processes, "_hearts", [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with together() as found:
            found.barrier()
            assert found.totals({"rows": 3.0}) == {"rows": 3.0}
        assert processes._hearts == []
    finally:
        dist.destroy_process_group()

"""Work on the next item while the present one is used. Knows nothing of what the work is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`work(item)` for every item in order, done in a thread while the result before it is used.

    Items are drawn in the caller's thread (a database cursor may not leave it), one further than what was given out; so
    at most two are held, and a result waits until the next item is drawn. What `work` raises is raised here, at its
    place; what drawing raises, after the result before it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        drawn = iter(items)
        before: list[Future[Made]] = []  # none at the start, then one
        while True:
            try:
                following = [thread.submit(work, item) for item in islice(drawn, 1)]
            except Exception:  # whatever it is, it goes on, but after the result before it
                yield from (made.result() for made in before)
                raise
            yield from (made.result() for made in before)
            if not following:
                return
            before = following

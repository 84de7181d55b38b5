"""Work on the next item while the present one is used. Knows nothing of what the work is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`work(item)` for every item in order, done in a thread while the result before it is used.

    Items are drawn in the caller's thread (a database cursor may not leave it), one further than what was given out; so
    at most two are held. What `work` raises is raised here, at its place.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        before: Future[Made] | None = None
        for item in items:
            following = thread.submit(work, item)
            if before is not None:
                yield before.result()
            before = following
        if before is not None:
            yield before.result()

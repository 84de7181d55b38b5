"""Ctrl-C (SIGINT) of this process: what it may interrupt, and what it must leave to finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within this context Ctrl-C interrupts only what runs inside `allowed()`, once; at the end the old handler is back.

    A Ctrl-C elsewhere is kept for the next `allowed()`. Only the main thread can be interrupted: in others nothing changes.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._allowed = False
        self._pending = False
        self._installed = False

    def __enter__(self) -> Interrupts:
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """What runs inside is ended with `KeyboardInterrupt` by the first Ctrl-C, which may have come before."""
        try:
            self._allowed = True
            if self._pending:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._allowed:
            self._pending = True
            return
        self._allowed = False
        raise KeyboardInterrupt

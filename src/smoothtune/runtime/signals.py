"""Ctrl-C (SIGINT) and SIGTERM of this process: what they may interrupt, and what they must leave to finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within this context Ctrl-C interrupts only what runs inside `allowed()`, once; at the end the old handler is back.

    A Ctrl-C elsewhere is kept for the next `allowed()`. SIGTERM interrupts nothing: `terminated` tells of it, to whom looks.
    Only the main thread can be interrupted: in others nothing changes. `pending` tells of a Ctrl-C that is kept.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._before: dict[signal.Signals, Any] = {}
        self._allowed = False
        self._pending = False
        self._installed = False

    def __enter__(self) -> Interrupts:
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            handlers = {signal.SIGINT: self._take, signal.SIGTERM: self._note}
            self._before = {kind: signal.signal(kind, handler) for kind, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def pending(self) -> bool:
        """Whether a Ctrl-C has come that has interrupted nothing."""
        return self._pending

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

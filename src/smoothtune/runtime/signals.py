"""Ctrl-C (SIGINT) and SIGTERM of this process: what they may interrupt, and what they must leave to finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from smoothtune.errors import TerminatedError


class _TerminatedNow(BaseException):
    """As `KeyboardInterrupt`: nothing that handles errors takes it for one."""


@contextmanager
def terminable(message: str) -> Iterator[None]:
    """Within this context SIGTERM ends what runs, with a `TerminatedError` of that message.

    For work that leaves nothing to resume. In other threads than the main one, and where the program handles the signal
    itself, nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except _TerminatedNow:
        raise TerminatedError(message) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise _TerminatedNow


class Interrupts:
    """Within this context Ctrl-C interrupts only what runs inside `allowed()`, once; at the end the old handler is back.

    A Ctrl-C elsewhere is kept for the next `allowed()`; `kept` is called for it, once, in a thread. SIGTERM interrupts nothing:
    `terminated` tells of it, to whom looks. Only the main thread can be interrupted: in others nothing changes. `pending` tells
    of a Ctrl-C that is kept.
    """

    def __init__(self, kept: Callable[[], None] = lambda: None) -> None:
        self.terminated = False
        # In a thread of its own: it may print, and this one may be in the middle of printing when the signal comes.
        self._telling = threading.Thread(target=kept, name="smoothtune-interrupted", daemon=True)
        self._first_waits = False
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
        if self._telling.ident is not None:
            self._telling.join()

    @property
    def pending(self) -> bool:
        """Whether a Ctrl-C has come that has interrupted nothing."""
        return self._pending

    @contextmanager
    def allowed(self, *, second: bool = False) -> Iterator[None]:
        """What runs inside is ended with `KeyboardInterrupt` by the first Ctrl-C, which may have come before.

        With `second` the first is kept for whoever looks at `pending`, and the second one ends.
        """
        try:
            self._allowed, self._first_waits = True, second
            if self._pending and not second:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._allowed or (self._first_waits and not self._pending):
            if not self._pending:
                self._pending = True
                self._telling.start()
            return
        self._allowed = False
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

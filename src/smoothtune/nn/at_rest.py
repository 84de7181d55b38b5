"""A module in eval mode for a while. Knows nothing of what is computed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from smoothtune.runtime.forking import ProcessLock


@dataclass(slots=True)
class _Rest:
    """The modes to go back to, none where all rested before, and how many are at it."""

    modes: list[tuple[nn.Module, bool]]
    users: int = 0


_resting: WeakKeyDictionary[nn.Module, _Rest] = WeakKeyDictionary()
_lock = ProcessLock()


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """The module is in eval mode inside, and every part in its own mode again when the last thread is done with it."""
    with _lock:
        rest = _resting.get(module)
        if rest is None:
            modes = [(part, part.training) for part in module.modules()]
            rest = _resting[module] = _Rest(modes if any(training for _, training in modes) else [])
            if rest.modes:
                module.eval()
        rest.users += 1
    try:
        yield
    finally:
        with _lock:
            rest.users -= 1
            if not rest.users:
                _resting.pop(module, None)
                for part, training in rest.modes:
                    part.training = training

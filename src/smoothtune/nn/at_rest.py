"""A module in eval mode for a while. Knows nothing of what is computed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """The module is in eval mode inside, and every part in its own mode again after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

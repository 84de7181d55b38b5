"""Keeps the best state of what trains, in memory. Knows nothing of values: it is told when to keep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BestState:
    """A copy of the named parameters, and of all buffers (running statistics), of a model."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._model = model
        saved = model.state_dict()
        self._names = [*names, *(name for name, _ in model.named_buffers() if name in saved)]
        self._kept: dict[str, Tensor] = {}

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return bool(self._kept)

    def keep(self) -> None:
        """Copy the present state, in place of the one before."""
        state = self._model.state_dict()
        self._kept = {name: state[name].detach().clone() for name in self._names}  # whole, whenever Ctrl-C comes

    def restore(self, prefix: str | tuple[str, ...] = "") -> None:
        """Put the kept state back where names begin with `prefix`, or one of several; without a kept state nothing happens."""
        state = self._model.state_dict()
        with torch.no_grad():
            for name, tensor in self._kept.items():
                if name.startswith(prefix):
                    state[name].copy_(tensor)

"""Keeps the best state of what trains, in memory. Knows nothing of values: it is told when to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class BestState:
    """A copy of the named parameters, and of all buffers (running statistics), of a model."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._model = model
        saved = model.state_dict()
        self.names = [*names, *(name for name, _ in model.named_buffers() if name in saved)]
        self._kept: dict[str, Tensor] = {}

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return bool(self._kept)

    def keep(self) -> None:
        """Copy the present state, in place of the one before."""
        state = self._model.state_dict()
        self._kept = {name: state[name].detach().clone() for name in self.names}  # whole, whenever Ctrl-C comes

    def restore(self, prefix: str | tuple[str, ...] = "") -> None:
        """Put the kept state back where names begin with `prefix`, or one of several; without a kept state nothing happens."""
        state = self._model.state_dict()
        with torch.no_grad():
            for name, tensor in self._kept.items():
                if name.startswith(prefix):
                    state[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """What is kept: nothing, the present state (then it is not held twice), or tensors by name."""
        state = self._model.state_dict()
        if self._kept and all(torch.equal(state[name], tensor) for name, tensor in self._kept.items()):
            return {"present": True, "kept": {}}
        return {"present": False, "kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one that was the present state is what the model holds now."""
        if state["present"]:
            self.keep()
            return
        held = self._model.state_dict()
        self._kept = {name: tensor.to(held[name].device) for name, tensor in state["kept"].items()}


def give_weights(model: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Put `weights` in place of those of `model` with these `names`. Raises `ValueError` where they are others."""
    held, wanted = model.state_dict(), set(names)
    if wanted != weights.keys():
        raise ValueError(f"{min(wanted ^ weights.keys())} is in one of the model and the state, not in both")
    for name, tensor in weights.items():
        if tensor.shape != held[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(held[name].shape)}")
    with torch.no_grad():
        for name, tensor in weights.items():
            held[name].copy_(tensor)

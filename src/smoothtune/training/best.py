"""Keeps the best state of what trains, in memory. Knows nothing of values: it is told when to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from smoothtune.training.state import STRICT, tensors_like, under


class BestKept(BaseModel):
    """What a `BestState` keeps: whether the best state is the `present` one, else tensors by name, or nothing."""

    model_config = STRICT

    present: bool
    kept: dict[str, Tensor]


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

    def load_state_dict(self, state: Mapping[str, Any], present: Mapping[str, Tensor]) -> None:
        """Go on from a state; one that was the present state is `present`, where all that the model will hold is by name.

        Raises `ValueError` for what is none.
        """
        found, held = BestKept.model_validate(state), self._model.state_dict()
        if found.present and found.kept:
            raise ValueError("kept: holds tensors although the best state is the present one")
        if found.present:
            self._kept = {name: present[name].to(held[name].device, copy=True) for name in self.names}
            return
        with under("kept"):
            kept = tensors_like(found.kept, {name: held[name] for name in self.names} if found.kept else {})
        self._kept = {name: tensor.to(held[name].device) for name, tensor in kept.items()}


def fitting_weights(model: nn.Module, weights: object, names: Iterable[str]) -> dict[str, Tensor]:
    """`weights`, which can take the place of those of `model` with these `names`. Raises `ValueError` where they cannot."""
    held = model.state_dict()
    return tensors_like(weights, {name: held[name] for name in names})


def give_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put `weights`, which fit, in place of those of `model`."""
    held = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            held[name].copy_(tensor)

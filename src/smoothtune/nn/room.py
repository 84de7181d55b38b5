"""How much a model may allocate while it is built, by the weights that wait for it. Knows nothing of any architecture.

Sizes in a stranger's configuration are asked for before the weights show that they are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smoothtune.errors import ModelFileError

# What a model has beside its stored weights: a pooler that is dropped, tables of positions, buffers. All ours.
_SPARE_ELEMENTS = 1 << 24
_SPARE_TENSORS = 1_000
_MAKING_PARTS = 16  # calls that make a tensor while a module is built, for each tensor that is stored

_SIZED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
_SIZED |= {Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones}
_SIZED_FIRST = {torch.full: 0, Tensor.new_full: 1}


@dataclass(frozen=True, slots=True)
class Room:
    """At most so many elements, in at most so many tensors."""

    elements: int
    tensors: int

    @classmethod
    def for_weights(cls, weights: Mapping[str, Tensor]) -> Room:
        """Twice the weights that wait to be taken, and a little more."""
        elements = sum(tensor.numel() for tensor in weights.values())
        return cls(2 * elements + _SPARE_ELEMENTS, _MAKING_PARTS * len(weights) + _SPARE_TENSORS)


# Where a model is made on the meta device, without memory: more than any encoder has, so that building it ends (ours).
WITHOUT_WEIGHTS = Room(elements=1 << 40, tensors=50_000)


class Within(TorchFunctionMode):
    """Raises `ModelFileError` before torch makes more than there is `room` for."""

    def __init__(self, room: Room) -> None:
        super().__init__()
        self._room = room
        self._elements = 0
        self._tensors = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        elements = _asked(func, args, kwargs or {})
        if elements is not None:
            self._elements += elements
            self._tensors += 1
            self._check()
        return func(*args, **(kwargs or {}))

    def _check(self) -> None:
        if self._elements > self._room.elements or self._tensors > self._room.tensors:
            raise ModelFileError(
                f"a model of these sizes is larger than the weights that are there for it (more than "
                f"{self._room.elements:,} numbers, or {self._room.tensors:,} parts); "
                "take configuration and weights of one and the same model"
            )


def _asked(func: Any, args: Any, kwargs: Mapping[str, Any]) -> int | None:
    """How many elements a call is about to make; None for calls that make none."""
    if func in _SIZED:
        return _count(args[1:] if args and isinstance(args[0], Tensor) else args, kwargs)
    if func in _SIZED_FIRST:
        return _count(args[_SIZED_FIRST[func] :][:1], kwargs)
    if func is torch.eye:
        return _count((args[0], args[1] if len(args) > 1 else args[0]), kwargs)
    if func is torch.arange:
        ends = [*args, *(kwargs[name] for name in ("start", "end") if name in kwargs)]
        return int(max((abs(end) for end in ends if isinstance(end, int | float)), default=0))
    return None


def _count(sizes: Any, kwargs: Mapping[str, Any]) -> int:
    given = sizes if sizes else (kwargs.get("size", ()),)
    if len(given) == 1 and not isinstance(given[0], int):
        given = tuple(given[0])
    return math.prod(max(0, int(size)) for size in given)  # torch itself refuses a negative one

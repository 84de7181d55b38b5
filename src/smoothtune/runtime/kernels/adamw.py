"""The kernels of `adamw.cpp` on torch tensors: one AdamW step over many tensors, and the norm of their gradients.

Tensors are contiguous float32 on the CPU. Knows nothing of parameter groups or schedules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor

from smoothtune.runtime.kernels.building import kernels

_RATES = [ctypes.c_float] * 8


@dataclass(frozen=True, slots=True)
class Rates:
    """Factors of one step: `decay` 1 - rate * weight decay, `step` rate / (1 - beta1^t), `root` 1 / sqrt(1 - beta2^t).

    `share1` is 1 - beta1 and `share2` is 1 - beta2, which are made before they are rounded to float32.
    """

    decay: float
    share1: float
    beta2: float
    share2: float
    step: float
    root: float
    eps: float
    scale: float = 1.0

    @classmethod
    def at(
        cls, step: int, *, rate: float, betas: tuple[float, float], eps: float, weight_decay: float, scale: float
    ) -> Rates:
        """The factors of step `step`, counted from 1; `scale` multiplies the gradients."""
        first, second = 1 - betas[0] ** step, 1 - betas[1] ** step
        shares = 1 - betas[0], 1 - betas[1]
        return cls(1 - rate * weight_decay, shares[0], betas[1], shares[1], rate / first, second**-0.5, eps, scale)

    def values(self) -> tuple[float, ...]:
        """In the order of the kernels."""
        return self.decay, self.share1, self.beta2, self.share2, self.step, self.root, self.eps, self.scale


@cache
def _library() -> ctypes.CDLL | None:
    found = kernels("adamw")
    if found is not None:
        long, pointer = ctypes.c_int64, ctypes.c_void_p
        found.adamw_dense.argtypes = [long, *[pointer] * 5, *_RATES]
        found.adamw_dense.restype = None
        found.adamw_rows.argtypes = [long, long, *[pointer] * 4, long, *[pointer] * 2, *_RATES]
        found.adamw_rows.restype = None
        found.sum_of_squares.argtypes = [long, pointer, pointer]
        found.sum_of_squares.restype = ctypes.c_double
    return found


def available() -> bool:
    """Whether the kernels are there."""
    return _library() is not None


def _loaded() -> ctypes.CDLL:
    found = _library()
    assert found is not None, "ask `available` first"
    return found


def step_dense(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rates: Rates,
) -> None:
    """One step of all `parameters` with their moments, in place."""
    sizes = np.array([part.numel() for part in parameters], dtype=np.int64)
    places = [_places(part) for part in (parameters, gradients, first, second)]
    _loaded().adamw_dense(len(sizes), sizes.ctypes.data, *(place.ctypes.data for place in places), *rates.values())


def step_rows(
    table: Tensor, first: Tensor, second: Tensor, seen: Tensor, index: Tensor, gradient: Tensor, rates: Rates
) -> None:
    """One step of a `table` (V, D) whose rows `index` (U,) int64, each once, have the gradients `gradient` (U, D).

    The others have gradient 0. `seen` (V,) bool marks rows that ever had a gradient; others have zero moments, so that
    only decay is left to do: the result is that of the dense step.
    """
    _loaded().adamw_rows(
        table.shape[0], table.shape[1], table.data_ptr(), first.data_ptr(), second.data_ptr(), seen.data_ptr(),
        index.shape[0], index.data_ptr(), gradient.data_ptr(), *rates.values(),
    )  # fmt: skip


def sum_of_squares(gradients: Sequence[Tensor]) -> float:
    """The sum of squares of all elements."""
    sizes = np.array([part.numel() for part in gradients], dtype=np.int64)
    places = _places(gradients)
    return float(_loaded().sum_of_squares(len(sizes), sizes.ctypes.data, places.ctypes.data))


def _places(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)

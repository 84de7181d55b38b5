"""The kernel of `bottleneck.cpp` on torch tensors: what low-rank changes and adapters add, for all runs of a batch in one call.

bfloat16 on the processor's tile unit, without gradients. Knows nothing of what a run is. Legend: `N` packed tokens, `K`
features that are read, `R` those between, `M` those that are changed; all three are multiples of 32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from smoothtune.runtime.kernels import gemm
from smoothtune.runtime.kernels.building import kernels


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """W_down (R, K) and W_up (M, R), packed, with float32 biases (R,) and (M,), and whether a GELU stands between them."""

    down: gemm.PackedWeight
    up: gemm.PackedWeight
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    gelu: bool = False
    numbers: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.up.inside == self.down.out, f"up reads {self.up.inside} of {self.down.out} features"
        biases = [0 if bias is None else bias.data_ptr() for bias in (self.down_bias, self.up_bias)]
        weights = self.down.forward.data_ptr(), biases[0], self.up.forward.data_ptr(), biases[1]
        object.__setattr__(self, "numbers", (self.up.out, *weights, self.down.out, int(self.gelu)))


class Run(NamedTuple):
    """Tokens `begin` to `end`, whose features from `column` on are changed, M of them."""

    begin: int
    end: int
    column: int
    part: Bottleneck


@cache
def _library() -> ctypes.CDLL | None:
    found = kernels("bottleneck") if gemm.available() else None
    if found is not None:
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        found.bottleneck_add.argtypes = [pointer, long, pointer, pointer, long, long]
        found.bottleneck_add.restype = None
    return found


def available() -> bool:
    """Whether the kernel is there and the processor has tiles."""
    return _library() is not None


def add(x: Tensor, into: Tensor, runs: Sequence[Run]) -> None:
    """act(x W_down^T + b_down) W_up^T + b_up of the tokens of every run, added to their features of `into` in place.

    `x` (N, K) and `into` (N, M) are contiguous bfloat16, and may be one tensor where runs change all its features. Runs do
    not overlap. A token's bits do not depend on the other tokens or on the number of threads.
    """
    library = _library()
    assert library is not None, "ask `available` first"
    (tokens, inner), columns = x.shape, into.shape[1]
    _check(x, tokens, inner)
    _check(into, tokens, columns)
    numbers: list[int] = []
    for begin, end, column, part in runs:
        assert part.down.inside == inner, f"down reads {part.down.inside} of {inner} features"
        assert 0 <= column <= columns - part.up.out, f"{part.up.out} features from {column} on, of {columns}"
        assert column % gemm.BLOCK == 0, f"column {column} is no multiple of {gemm.BLOCK}"
        assert 0 <= begin <= end <= tokens, f"tokens {begin} to {end}, of {tokens}"
        numbers += begin, end, column, *part.numbers
    table = (ctypes.c_int64 * len(numbers))(*numbers)
    library.bottleneck_add(table, len(runs), x.data_ptr(), into.data_ptr(), inner, columns)


def _check(tensor: Tensor, *shape: int) -> None:
    found = (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous(), tensor.device.type)
    assert found == (torch.bfloat16, shape, True, "cpu"), f"want {(torch.bfloat16, shape, True, 'cpu')}, got {found}"

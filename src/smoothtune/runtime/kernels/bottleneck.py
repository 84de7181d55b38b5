"""The kernel of `bottleneck.cpp` on torch tensors: what low-rank changes and adapters add, and the way of a gradient back.

bfloat16 on the processor's tile unit; in prediction all runs of a batch in one call. Knows nothing of what a run is, or of
autograd. Legend: `N` packed tokens, `K` features that are read, `R` those between, `M` those that are changed; all three are
multiples of 32.
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

# As in `bottleneck.cpp`: what is done to the state between.
_NOTHING, _BRIEF_GELU, _GELU, _TIMES_SLOPE = range(4)


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
        act = _BRIEF_GELU if self.gelu else _NOTHING
        object.__setattr__(self, "numbers", (self.up.out, *weights, self.down.out, act))


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
        found.bottleneck_add.argtypes = [pointer, long, *[pointer] * 3, long, long, *[pointer] * 3]
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
    _call(numbers, len(runs), columns, x, into, into)


class Between(NamedTuple):
    """The state (N, R) between the two products, and the slope of the GELU there, both bfloat16."""

    state: Tensor
    slope: Tensor


def through(x: Tensor, part: Bottleneck) -> tuple[Tensor, Between]:
    """`x` (N, D) and what `part`, which has a GELU, adds to it, in a tensor of its own; and what is between.

    The GELU is the one of training, whose slope is known: its error is below 1e-6.
    """
    tokens, width = x.shape
    assert part.gelu, "without a GELU there is no slope"
    assert width == part.down.inside == part.up.out, f"{width} features do not fit {part}"
    _check(x, tokens, width)
    out = torch.empty_like(x)
    between = Between(*(torch.empty(tokens, part.down.out, dtype=torch.bfloat16) for _ in range(2)))
    _call([0, tokens, 0, *part.numbers[:-1], _GELU], 1, width, x, x, out, state=between.state, slope=between.slope)
    return out, between


class Gradients(NamedTuple):
    """That of what the GELU is taken of, (N, R), its sum over tokens, (R,) float32, and that of x, (N, D), if it was wanted."""

    state: Tensor
    total: Tensor
    x: Tensor | None


def back(gradient: Tensor, slope: Tensor, part: Bottleneck, *, x: bool) -> Gradients:
    """The gradients that follow from the `gradient` (N, D) of the result of `through`; that of `x` on demand."""
    tokens, width = gradient.shape
    assert width == part.down.inside == part.up.out, f"{width} features do not fit {part}"
    _check(gradient, tokens, width)
    _check(slope, tokens, part.down.out)
    state, total = torch.empty_like(slope), torch.empty(part.down.out)
    into = torch.empty_like(gradient) if x else None
    weights = part.up.backward.data_ptr(), 0, part.down.backward.data_ptr(), 0
    numbers = [0, tokens, 0, width, *weights, part.down.out, _TIMES_SLOPE]
    _call(numbers, 1, width, gradient, gradient, into, state=state, slope=slope, total=total)
    return Gradients(state, total, into)


def _call(
    numbers: Sequence[int],
    runs: int,
    columns: int,
    x: Tensor,
    onto: Tensor,
    into: Tensor | None,
    *,
    state: Tensor | None = None,
    slope: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    library = _library()
    assert library is not None, "ask `available` first"
    at = [None if tensor is None else tensor.data_ptr() for tensor in (x, onto, into, state, slope, total)]
    table = (ctypes.c_int64 * len(numbers))(*numbers)
    library.bottleneck_add(table, runs, *at[:3], x.shape[1], columns, *at[3:])


def _check(tensor: Tensor, *shape: int) -> None:
    found = (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous(), tensor.device.type)
    assert found == (torch.bfloat16, shape, True, "cpu"), f"want {(torch.bfloat16, shape, True, 'cpu')}, got {found}"

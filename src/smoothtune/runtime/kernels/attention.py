"""The kernels of `attention.cpp` on torch tensors: self-attention with dropout on packed tokens, and its gradients.

`qkv` (N, 3 D) holds queries, keys and values in this order, float32 or bfloat16, still without their `bias` (3 D,)
float32; `starts` (R + 1,) int32 says where each row's tokens begin. The scale is (D / heads) ** -0.5. Element (i, j) of
head h of row r takes draw j of row (r * heads + h) * `width` + i of a tensor `width` wide; no row is longer than
`width`. Knows nothing of modules or of gradients' bookkeeping.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from smoothtune.runtime.kernels.building import kernels

_PROBLEM = [*[ctypes.c_int64] * 4, ctypes.c_float, ctypes.c_uint64]
_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_SIZE_STEP = 8


@cache
def _library() -> ctypes.CDLL | None:
    found = kernels("attention")
    if found is not None:
        for kind in _TYPES.values():
            for name, pointers in (("forward", 3), ("backward", 5)):
                function = getattr(found, f"attention_{name}_{kind}")
                function.argtypes = [*[ctypes.c_void_p] * pointers, *_PROBLEM, *[ctypes.c_void_p] * 2]
                function.restype = None
    return found


def available() -> bool:
    """Whether the kernels are there."""
    return _library() is not None


def fits(hidden: int, heads: int) -> bool:
    """Whether they serve this head size."""
    return hidden % (heads * _SIZE_STEP) == 0


def attention_forward(
    qkv: Tensor, bias: Tensor, starts: Tensor, *, heads: int, width: int, rate: float, stream: int
) -> tuple[Tensor, Tensor]:
    """What attention makes of `qkv`, (N, D) in its type, and the scores' peaks for the backward, (2, heads, N) float32.

    Peaks are each query's largest score before scaling, and 1 / the sum of exp(score - largest) of scaled scores.
    """
    tokens, hidden = qkv.shape[0], qkv.shape[1] // 3
    _check(qkv, bias, starts, heads)
    mixed = torch.empty(tokens, hidden, dtype=qkv.dtype)
    peaks = torch.empty(2, heads, tokens)
    _function("forward", qkv)(
        qkv.data_ptr(), bias.data_ptr(), starts.data_ptr(),
        starts.shape[0] - 1, heads, hidden // heads, width, rate, stream,
        mixed.data_ptr(), peaks.data_ptr(),
    )  # fmt: skip
    return mixed, peaks


def attention_backward(
    dmixed: Tensor,
    qkv: Tensor,
    bias: Tensor,
    peaks: Tensor,
    starts: Tensor,
    *,
    heads: int,
    width: int,
    rate: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of `qkv`, (N, 3 D) in its type, and of `bias`, (3 D,) float32, from that of `mixed` (N, D).

    `peaks` and the rest are those of the forward. The sums over tokens do not depend on the number of threads.
    """
    hidden = qkv.shape[1] // 3
    _check(qkv, bias, starts, heads)
    assert dmixed.shape == (qkv.shape[0], hidden), "one gradient for each mixed value"
    assert dmixed.dtype == qkv.dtype, "one number format"
    assert dmixed.is_contiguous(), "a gradient in one piece"
    assert peaks.shape == (2, heads, qkv.shape[0]), "two numbers for each token and head"
    assert peaks.is_contiguous(), "peaks in one piece"
    dqkv = torch.empty_like(qkv)
    dbias = torch.empty(3 * hidden)
    _function("backward", qkv)(
        dmixed.data_ptr(), qkv.data_ptr(), bias.data_ptr(), peaks.data_ptr(), starts.data_ptr(),
        starts.shape[0] - 1, heads, hidden // heads, width, rate, stream,
        dqkv.data_ptr(), dbias.data_ptr(),
    )  # fmt: skip
    return dqkv, dbias


def _function(name: str, qkv: Tensor) -> ctypes._NamedFuncPointer:
    found = _library()
    assert found is not None, "ask `available` first"
    function: ctypes._NamedFuncPointer = getattr(found, f"attention_{name}_{_TYPES[qkv.dtype]}")
    return function


def _check(qkv: Tensor, bias: Tensor, starts: Tensor, heads: int) -> None:
    assert qkv.shape[1] % 3 == 0, "queries, keys and values"
    assert fits(qkv.shape[1] // 3, heads), f"a head size that is a multiple of {_SIZE_STEP}"
    assert bias.shape == (qkv.shape[1],), "one bias for each column"
    assert bias.dtype == torch.float32, "a float32 bias"
    assert starts.dtype == torch.int32, "int32 starts"
    assert qkv.is_contiguous(), "columns in one piece"
    assert bias.is_contiguous(), "a bias in one piece"
    assert starts.is_contiguous(), "starts in one piece"

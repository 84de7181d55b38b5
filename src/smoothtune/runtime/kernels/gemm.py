"""The kernels of `gemm.cpp` and `gemm_gradient.cpp` on torch tensors: bfloat16 matrix products on the processor's tile unit.

Sums are float32. Where the processor or the kernel has no tiles `available` is false, and torch has to multiply.
Knows nothing of autograd. Legend: `N` packed tokens, `M` rows of a weight (its outputs), `K` its columns (its inputs).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from smoothtune.runtime.kernels.building import kernels

BLOCK = 32


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight (M, K) in the two orders in which tiles read it, both bfloat16 and flat, of M K numbers each.

    `forward` is read by x W^T, `backward` by g W; `out` is M and `inside` is K.
    """

    forward: Tensor
    backward: Tensor
    out: int
    inside: int


@cache
def _library() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    products = kernels("gemm")
    gradient = kernels("gemm_gradient") if products is not None and products.gemm_available() else None
    if products is None or gradient is None:
        return None
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    for name in ("gemm_pack_float", "gemm_pack_bf16"):
        function = getattr(products, name)
        function.argtypes, function.restype = [pointer] * 3 + [long] * 2, None
    for name in ("gemm_multiply_float", "gemm_multiply_bf16", "gemm_multiply_gelu"):
        function = getattr(products, name)
        function.argtypes, function.restype = [pointer] * 4 + [long] * 3, None
    function = products.gemm_multiply_both
    function.argtypes, function.restype = [pointer] * 5 + [long] * 4, None
    function = gradient.gemm_weight_gradient
    function.argtypes, function.restype = [pointer] * 3 + [long] * 3 + [ctypes.c_int], None
    return products, gradient


def _loaded() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    found = _library()
    assert found is not None, "ask `available` first"
    return found


def _check(tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    found = (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous(), tensor.device.type)
    assert found == (dtype, shape, True, "cpu"), f"want {(dtype, shape, True, 'cpu')}, got {found}"


def _check_fit(out: int, inside: int) -> None:
    assert fits(out, inside), f"a weight of {out} x {inside} is not made of {BLOCK} x {BLOCK} blocks: ask `fits` first"


def available() -> bool:
    """Whether the processor has tiles for bfloat16, the system lends them, and the kernels could be built."""
    return _library() is not None


def fits(out: int, inside: int) -> bool:
    """Whether a weight (out, inside) is made of whole blocks of 32 x 32."""
    return out > 0 and inside > 0 and out % BLOCK == 0 and inside % BLOCK == 0


def pack(weight: Tensor, into: PackedWeight | None = None) -> PackedWeight:
    """`weight` (M, K), contiguous float32 (rounded to nearest) or bfloat16, ready for `multiply`.

    `into`, a weight of the same shape packed before, is overwritten and returned: no memory is taken then.
    """
    out, inside = weight.shape
    _check_fit(out, inside)
    _check(weight, weight.dtype, out, inside)
    if into is None:
        forward, backward = (torch.empty(out * inside, dtype=torch.bfloat16) for _ in range(2))
        into = PackedWeight(forward, backward, out, inside)
    assert (into.out, into.inside) == (out, inside), f"{into.out} x {into.inside} cannot hold {out} x {inside}"
    library, _ = _loaded()
    call = {torch.float32: library.gemm_pack_float, torch.bfloat16: library.gemm_pack_bf16}[weight.dtype]
    call(weight.data_ptr(), into.forward.data_ptr(), into.backward.data_ptr(), out, inside)
    return into


def multiply(
    x: Tensor,
    packed: PackedWeight,
    *,
    backward: bool = False,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """X W^T + bias (N, M) for `x` (N, K), or x W (N, K) for `x` (N, M) if `backward`; `x` bfloat16 and contiguous.

    `bias` is float32, as wide as the result, added before rounding. `out_dtype` is bfloat16 or float32. A row's bits do not
    depend on the other rows or on the number of threads.
    """
    inner, columns = (packed.out, packed.inside) if backward else (packed.inside, packed.out)
    rows = len(x)
    _check(x, torch.bfloat16, rows, inner)
    if bias is not None:
        _check(bias, torch.float32, columns)
    library, _ = _loaded()
    call = {torch.float32: library.gemm_multiply_float, torch.bfloat16: library.gemm_multiply_bf16}[out_dtype]
    out = torch.empty(rows, columns, dtype=out_dtype)
    weight = packed.backward if backward else packed.forward
    call(
        x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), rows, inner, columns
    )
    return out


def multiply_both(
    x: Tensor, packed: PackedWeight, h: Tensor, narrow: PackedWeight, *, backward: bool = False
) -> Tensor:
    """X W^T + h U^T (N, M), rounded once: `x` (N, K) and `h` (N, R) bfloat16, U (M, R) packed in `narrow`.

    If `backward`, x W + h U (N, K): `x` (N, M), `h` (N, R), U (R, K). A row's bits do not depend on the others or on threads.
    """
    inner, columns = (packed.out, packed.inside) if backward else (packed.inside, packed.out)
    between, wide = (narrow.out, narrow.inside) if backward else (narrow.inside, narrow.out)
    assert wide == columns, f"the second product has {wide} columns, the first {columns}"
    rows = len(x)
    _check(x, torch.bfloat16, rows, inner)
    _check(h, torch.bfloat16, rows, between)
    weights = [weight.backward if backward else weight.forward for weight in (packed, narrow)]
    out = torch.empty(rows, columns, dtype=torch.bfloat16)
    _loaded()[0].gemm_multiply_both(
        x.data_ptr(), weights[0].data_ptr(), h.data_ptr(), weights[1].data_ptr(), out.data_ptr(),
        rows, inner, between, columns,
    )  # fmt: skip
    return out


def multiply_gelu(x: Tensor, packed: PackedWeight, bias: Tensor) -> Tensor:
    """The GELU (by erf) of X W^T + bias, (N, M) bfloat16, rounded once: `x` (N, K) bfloat16, `bias` (M,) float32."""
    rows = len(x)
    _check(x, torch.bfloat16, rows, packed.inside)
    _check(bias, torch.float32, packed.out)
    out = torch.empty(rows, packed.out, dtype=torch.bfloat16)
    _loaded()[0].gemm_multiply_gelu(
        x.data_ptr(), packed.forward.data_ptr(), bias.data_ptr(), out.data_ptr(), rows, packed.inside, packed.out
    )
    return out


def weight_gradient(g: Tensor, x: Tensor, into: Tensor | None = None) -> Tensor:
    """g^T x (M, K) float32 for `g` (N, M) and `x` (N, K), both bfloat16 and contiguous; added to `into` if that is given.

    M and K must satisfy `fits`. The bits do not depend on the number of threads.
    """
    (tokens, out), inside = g.shape, x.shape[1]
    _check_fit(out, inside)
    _check(g, torch.bfloat16, tokens, out)
    _check(x, torch.bfloat16, tokens, inside)
    add = into is not None
    dw = torch.empty(out, inside) if into is None else into
    _check(dw, torch.float32, out, inside)
    _loaded()[1].gemm_weight_gradient(g.data_ptr(), x.data_ptr(), dw.data_ptr(), tokens, out, inside, add)
    return dw

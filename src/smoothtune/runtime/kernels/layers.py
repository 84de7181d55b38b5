"""The kernels of `layers.cpp` on torch tensors: what stands around the matrix products of a transformer encoder.

Tensors are contiguous, on the CPU; T is float32 or bfloat16, vectors and statistics are float32. `rows` are packed tokens
(N), `places` (N,) int64 the row of each token in the padded (R * T, D) tensor that numbers its dropout draws. Knows
nothing of modules or gradients' bookkeeping.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from smoothtune.runtime.kernels.building import kernels

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
_SIGNATURES = {
    "residual_norm_forward_": "ipppppfpfullpppp",
    "residual_norm_backward_": "ippppppfullppppp",
    "embed_forward_": "ippppppppfpfullpppp",
    "embed_backward_": "ippppppfullppp",
    "activation_forward_": "iippllpp",
    "activation_backward_": "ippllpp",
    "scatter_rows": "ppllp",
    "keep_mask": "ufllp",
}
_TYPES = {
    "i": ctypes.c_int,
    "p": ctypes.c_void_p,
    "f": ctypes.c_float,
    "u": ctypes.c_uint64,
    "l": ctypes.c_int64,
}


class Normed(NamedTuple):
    """What is normalised, z (N, D) T, its layer norm (N, D) T, and mean and 1 / deviation of each token, (N,)."""

    z: Tensor
    out: Tensor
    mean: Tensor
    rstd: Tensor


class Drop(NamedTuple):
    """Dropout of one place: the rate, the stream of its draws, and where each token's draws are, (N,) int64."""

    rate: float
    stream: int
    places: Tensor


@cache
def _library() -> ctypes.CDLL | None:
    found = kernels("layers")
    if found is not None:
        for name, signature in _SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return found


def _loaded() -> ctypes.CDLL:
    found = _library()
    assert found is not None, "ask `available` first"
    return found


def available() -> bool:
    """Whether the kernels are there."""
    return _library() is not None


def drawn_mask(stream: int, rate: float, rows: int, width: int) -> Tensor | None:
    """The dropout mask (rows, width) bool of a stream, True = kept; None without kernels."""
    found = _library()
    if found is None:
        return None
    out = torch.empty(rows, width, dtype=torch.bool)
    found.keep_mask(stream, rate, rows, width, out.data_ptr())
    return out


def residual_norm(y: Tensor, bias: Tensor, x: Tensor, weight: Tensor, shift: Tensor, eps: float, drop: Drop) -> Normed:
    """Layer norm of z = x + dropout(y + bias): `y` and `x` (N, D) T, `bias`, `weight` and `shift` (D,)."""
    z, out, mean, rstd = _norm_space(y.shape[0], y.shape[1], y.dtype)
    _loaded().residual_norm_forward_(
        _narrow(y), y.data_ptr(), bias.data_ptr(), x.data_ptr(), weight.data_ptr(), shift.data_ptr(), eps,
        drop.places.data_ptr(), drop.rate, drop.stream, y.shape[0], y.shape[1],
        z.data_ptr(), out.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
    )  # fmt: skip
    return Normed(z, out, mean, rstd)


def residual_normed(
    y: Tensor, bias: Tensor, x: Tensor, weight: Tensor, shift: Tensor, eps: float, drop: Drop
) -> Tensor:
    """The same layer norm alone, (N, D) T, where no gradient will be asked for: nothing is kept."""
    out = torch.empty_like(x)
    _loaded().residual_norm_forward_(
        _narrow(y), y.data_ptr(), bias.data_ptr(), x.data_ptr(), weight.data_ptr(), shift.data_ptr(), eps,
        drop.places.data_ptr(), drop.rate, drop.stream, y.shape[0], y.shape[1], None, out.data_ptr(), None, None,
    )  # fmt: skip
    return out


def residual_norm_gradient(
    grad: Tensor, normed: tuple[Tensor, Tensor, Tensor], weight: Tensor, drop: Drop, *, norm: bool, bias: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x and y (N, D) T (one tensor at rate 0) and, where they are wanted, of weight and shift, and of the bias (D,).

    `grad` is that of the output; `normed` holds z, mean and 1 / deviation.
    """
    z, mean, rstd = normed
    rows, width = grad.shape
    dx = torch.empty_like(grad)
    dy = torch.empty_like(grad) if drop.rate > 0 else dx
    dweight, dshift, dbias = (torch.empty(width) if wanted else None for wanted in (norm, norm, bias))
    _loaded().residual_norm_backward_(
        _narrow(grad), grad.data_ptr(), z.data_ptr(), weight.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        drop.places.data_ptr(), drop.rate, drop.stream, rows, width,
        dx.data_ptr(), dy.data_ptr(), _address(dweight), _address(dshift), _address(dbias),
    )  # fmt: skip
    return dx, dy, dweight, dshift, dbias


def embed(
    ids: Tensor, within: Tensor, segments: Tensor | None, tables: tuple[Tensor, Tensor, Tensor], weight: Tensor,
    shift: Tensor, eps: float, drop: Drop, dtype: torch.dtype,
) -> Normed:  # fmt: skip
    """Dropout of the layer norm of z = word + position + segment, in `dtype`.

    `ids`, `within` (position in its text) and `segments` (None: all 0) are (N,) int64, `tables` the three float32 tables.
    """
    word, position, segment = tables
    rows, width = ids.shape[0], word.shape[1]
    z, out, mean, rstd = _norm_space(rows, width, dtype)
    _loaded().embed_forward_(
        int(dtype == torch.bfloat16), ids.data_ptr(), within.data_ptr(),
        _address(segments),
        word.data_ptr(), position.data_ptr(), segment.data_ptr(), weight.data_ptr(), shift.data_ptr(), eps,
        drop.places.data_ptr(), drop.rate, drop.stream, rows, width,
        z.data_ptr(), out.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
    )  # fmt: skip
    return Normed(z, out, mean, rstd)


def embed_gradient(
    grad: Tensor, normed: tuple[Tensor, Tensor, Tensor], weight: Tensor, drop: Drop
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the sum z, (N, D) float32, and of weight and shift (D,)."""
    z, mean, rstd = normed
    rows, width = grad.shape
    dz, dweight, dshift = torch.empty(rows, width), torch.empty(width), torch.empty(width)
    _loaded().embed_backward_(
        _narrow(grad), grad.data_ptr(), z.data_ptr(), weight.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        drop.places.data_ptr(), drop.rate, drop.stream, rows, width,
        dz.data_ptr(), dweight.data_ptr(), dshift.data_ptr(),
    )  # fmt: skip
    return dz, dweight, dshift


def activation(u: Tensor, bias: Tensor, kind: str, *, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """The activation of u + bias, (N, I) T, and its slope there if asked for; `kind` is one of `ACTIVATIONS`."""
    out = torch.empty_like(u)
    slope = torch.empty_like(u) if with_slope else None
    _loaded().activation_forward_(
        _narrow(u), ACTIVATIONS.index(kind), u.data_ptr(), bias.data_ptr(), u.shape[0], u.shape[1],
        out.data_ptr(), _address(slope),
    )  # fmt: skip
    return out, slope


def activation_gradient(grad: Tensor, slope: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of u (N, I) T and, if it is wanted, of the bias (I,)."""
    du, dbias = torch.empty_like(grad), torch.empty(grad.shape[1]) if bias else None
    _loaded().activation_backward_(
        _narrow(grad), grad.data_ptr(), slope.data_ptr(), grad.shape[0], grad.shape[1], du.data_ptr(), _address(dbias)
    )
    return du, dbias


def add_rows(rows: Tensor, index: Tensor, into: Tensor) -> None:
    """into[index[n]] += rows[n]: `rows` (N, D) and `into` (V, D) float32, `index` (N,) int64."""
    _loaded().scatter_rows(rows.data_ptr(), index.data_ptr(), rows.shape[0], rows.shape[1], into.data_ptr())


def _norm_space(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = torch.empty(2, rows).unbind(0)
    return torch.empty(rows, width, dtype=dtype), torch.empty(rows, width, dtype=dtype), mean, rstd


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _narrow(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return int(tensor.dtype == torch.bfloat16)

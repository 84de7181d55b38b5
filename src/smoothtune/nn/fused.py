"""The pieces of a BERT layer on packed tokens, each one kernel forward and one backward.

Tensors are (N, D) float32 or bfloat16 on the CPU; sums, statistics and gradients of parameters are float32. Results are
those of the plain modules within rounding, dropout masks are the same. Knows nothing of layers or checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smoothtune.nn.packing import Packing
from smoothtune.runtime.kernels import attention as attention_kernels
from smoothtune.runtime.kernels import layers as kernels
from smoothtune.runtime.kernels.layers import Drop

Grads = tuple[Tensor | None, ...]


def available() -> bool:
    """Whether this machine has the kernels."""
    return kernels.available() and attention_kernels.available()


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, bias: Tensor, x: Tensor, weight: Tensor, shift: Tensor, eps: float, drop: Drop
    ) -> Tensor:
        found = kernels.residual_norm(y, bias, x, weight, shift, eps, drop)
        ctx.save_for_backward(found.z, found.mean, found.rstd, weight)
        ctx.drop = drop
        return found.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Grads:
        z, mean, rstd, weight = ctx.saved_tensors
        _, bias, _, *norm = ctx.needs_input_grad[:5]
        dx, dy, dweight, dshift, dbias = kernels.residual_norm_gradient(
            gradient.contiguous(), (z, mean, rstd), weight, ctx.drop, norm=any(norm), bias=bias
        )
        return dy, dbias, dx, dweight, dshift, None, None


def residual_norm(y: Tensor, bias: Tensor, x: Tensor, norm: torch.nn.LayerNorm, drop: Drop) -> Tensor:
    """norm(x + dropout(y + bias)): `y` and `x` (N, D), `bias` (D,)."""
    if torch.is_inference_mode_enabled():
        return kernels.residual_normed(y, bias, x, norm.weight, norm.bias, norm.eps, drop)
    found: Tensor = _ResidualNorm.apply(y, bias, x, norm.weight, norm.bias, norm.eps, drop)  # type: ignore[no-untyped-call]
    return found


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, bias: Tensor, kind: str) -> Tensor:
        out, slope = kernels.activation(u, bias, kind, with_slope=any(ctx.needs_input_grad))
        if slope is not None:
            ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Grads:
        bias = ctx.needs_input_grad[1]
        du, dbias = kernels.activation_gradient(gradient.contiguous(), *ctx.saved_tensors, bias=bias)
        return du, dbias, None


def activation(u: Tensor, bias: Tensor, kind: str) -> Tensor:
    """The activation of u + bias: `u` (N, I), `bias` (I,), `kind` one of `runtime.kernels.layers.ACTIVATIONS`."""
    found: Tensor = _Activation.apply(u, bias, kind)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, packing: Packing, heads: int, drop: Drop) -> Tensor:
        mixed, peaks = attention_kernels.attention_forward(
            qkv, bias, packing.starts, heads=heads, width=packing.width, rate=drop.rate, stream=drop.stream
        )
        ctx.save_for_backward(qkv, bias, peaks, packing.starts)
        ctx.drop, ctx.heads, ctx.width = drop, heads, packing.width
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Grads:
        qkv, bias, peaks, starts = ctx.saved_tensors
        dqkv, dbias = attention_kernels.attention_backward(
            gradient.contiguous(), qkv, bias, peaks, starts,
            heads=ctx.heads, width=ctx.width, rate=ctx.drop.rate, stream=ctx.drop.stream,
        )  # fmt: skip
        return dqkv, dbias, None, None, None


def attention(qkv: Tensor, bias: Tensor, packing: Packing, heads: int, drop: Drop) -> Tensor:
    """Attention over the tokens of each row: queries, keys and values `qkv` (N, 3D), without `bias` (3D,), to (N, D)."""
    found: Tensor = _Attention.apply(qkv, bias, packing, heads, drop)  # type: ignore[no-untyped-call]
    return found


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, word: Tensor, position: Tensor, segment: Tensor, weight: Tensor, shift: Tensor, eps: float,
        ids: Tensor, within: Tensor, segments: Tensor | None, drop: Drop, dtype: torch.dtype, sparse: bool,
    ) -> Tensor:  # fmt: skip
        tables = (word, position, segment)
        found = kernels.embed(ids, within, segments, tables, weight, shift, eps, drop, dtype)
        ctx.save_for_backward(found.z, found.mean, found.rstd, weight, ids, within, segments)
        ctx.drop, ctx.sparse = drop, sparse
        ctx.sizes = [table.shape for table in tables]
        return found.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Grads:
        z, mean, rstd, weight, ids, within, segments = ctx.saved_tensors
        dz, dweight, dshift = kernels.embed_gradient(gradient.contiguous(), (z, mean, rstd), weight, ctx.drop)
        wanted = ctx.needs_input_grad
        if segments is None:
            segments = torch.zeros_like(ids)
        found = [
            _table_gradient(dz, index, size, sparse=ctx.sparse and number == 0) if wanted[number] else None
            for number, (index, size) in enumerate(zip((ids, within, segments), ctx.sizes, strict=True))
        ]
        return *found, dweight, dshift, *[None] * 7


def _table_gradient(rows: Tensor, index: Tensor, size: torch.Size, *, sparse: bool) -> Tensor:
    """The gradient of a table (V, D) of which rows `index` (N,) were read; `sparse`: of the rows read alone."""
    if not sparse:
        dense = torch.zeros(size)
        kernels.add_rows(rows, index, dense)
        return dense
    read, turned = torch.unique(index, return_inverse=True)
    summed = torch.zeros(len(read), size[1])
    kernels.add_rows(rows, turned, summed)
    return torch.sparse_coo_tensor(read.unsqueeze(0), summed, size, is_coalesced=True, check_invariants=False)


def embedding(
    tables: tuple[Tensor, Tensor, Tensor], norm: torch.nn.LayerNorm, ids: Tensor, segments: Tensor | None,
    packing: Packing, drop: Drop, dtype: torch.dtype, *, sparse: bool,
) -> Tensor:  # fmt: skip
    """dropout(norm(word + position + segment)) of packed tokens, (N, D) in `dtype`.

    `tables` are word, position and segment embeddings; `ids` and `segments` (N,) int64. With `sparse` the gradient of the
    word table is a sparse tensor of the rows that were read.
    """
    found: Tensor = _Embedding.apply(  # type: ignore[no-untyped-call]
        *tables, norm.weight, norm.bias, norm.eps, ids, packing.within, segments, drop, dtype, sparse
    )
    return found

"""A product with low-rank changes, and an adapter, with gradients: by tiles, what is wide is read and written once each way.

Tensors of packed tokens are (N, D) bfloat16 on the CPU, parameters float32. Knows nothing of tasks or layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from smoothtune.nn.products import BLOCK, TiledWeight, on_tiles, prepared
from smoothtune.runtime.kernels import bottleneck, gemm
from smoothtune.runtime.kernels.bottleneck import Bottleneck


def serves(x: Tensor, *sizes: int) -> bool:
    """Whether tiles make products of `x` and weights of these sizes, in a pass that may have gradients."""
    return (
        not torch.is_inference_mode_enabled() and on_tiles(x, *sizes) and x.is_contiguous() and bottleneck.available()
    )


class Change(NamedTuple):
    """`scale` x A^T B^T, added to the features from `column` on: `a` (r, K), `b` (m, r)."""

    a: Tensor
    b: Tensor
    scale: float
    column: int


def changed_product(x: Tensor, weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """X W^T and `changes`, which do not overlap: `x` (N, K), `weight` (M, K) to (N, M)."""
    made = prepared(weight, x.dtype)
    assert isinstance(made, TiledWeight), "ask `serves` first"
    places = [(change.scale, change.column) for change in changes]
    parts = [part for change in changes for part in change[:2]]
    found: Tensor = _ChangedProduct.apply(x, weight, made, places, *parts)  # type: ignore[no-untyped-call]
    return found


class _ChangedProduct(torch.autograd.Function):
    """All changes are one, h B^T of h = x A^T, with a place for each rank of each of them; the rest of A and B is zero."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, made: TiledWeight, places: list[tuple[float, int]], *parts: Tensor
    ) -> Tensor:
        ctx.made, ctx.places, ctx.shapes = made, places, [part.shape for part in parts]
        ctx.a, ctx.b = _one(weight.shape, places, parts)
        h = gemm.multiply(x, ctx.a)
        ctx.save_for_backward(x, h)
        return made.both(x, h, ctx.b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h = ctx.saved_tensors
        gradient = gradient.contiguous()
        further, learned, learns = ctx.needs_input_grad[0], ctx.needs_input_grad[1], any(ctx.needs_input_grad[4:])
        dh = gemm.multiply(gradient, ctx.b, backward=True) if further or learns else None
        dx = dw = None
        each: Sequence[Tensor | None] = [None] * len(ctx.shapes)
        if further and dh is not None:
            dx = ctx.made.both(gradient, dh, ctx.a, backward=True)
        if learned:
            dw = ctx.made.weight_gradient(gradient, x)
        if learns and dh is not None:
            each = _each(gemm.weight_gradient(dh, x), gemm.weight_gradient(gradient, h), ctx)
        return dx, dw, None, None, *each


def _one(
    shape: torch.Size, places: Sequence[tuple[float, int]], parts: Sequence[Tensor]
) -> tuple[gemm.PackedWeight, gemm.PackedWeight]:
    """A (R, K) and B (M, R) of the changes `parts` (a, b, a, b, ...) of a weight of `shape` (M, K)."""
    size = sum(len(a) for a in parts[::2])
    size += -size % BLOCK
    down, up = torch.zeros(size, shape[1]), torch.zeros(shape[0], size)
    first = 0
    for (scale, column), a, b in zip(places, parts[::2], parts[1::2], strict=True):
        last = first + len(a)
        down[first:last] = a
        up[column : column + len(b), first:last] = scale * b
        first = last
    return gemm.pack(down), gemm.pack(up)


def _each(down: Tensor, up: Tensor, ctx: Any) -> list[Tensor]:
    """The gradients of a, b, a, b, ... in those of A (R, K) and B (M, R)."""
    found, first = [], 0
    for (scale, column), a, b in zip(ctx.places, ctx.shapes[::2], ctx.shapes[1::2], strict=True):
        last = first + a[0]
        found += [down[first:last], up[column : column + b[0], first:last] * scale]
        first = last
    return found


def adapted(y: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor, up: Tensor) -> Tensor:
    """Y + gelu(W_down (y + bias) + b_down) W_up^T: `y` (N, D), `bias` (D,), `down` (R, D), `down_bias` (R,), `up` (D, R)."""
    found: Tensor = _Adapted.apply(y, bias, down, down_bias, up)  # type: ignore[no-untyped-call]
    return found


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor, up: Tensor) -> Tensor:
        inner = down_bias + (down * bias).sum(dim=1)  # float32 whatever autocast makes of products
        missing, lower, upper = -len(down) % BLOCK, down, up
        if missing:  # the rest of a block is zero, and stays so behind a GELU
            lower, upper, inner = F.pad(down, (0, 0, 0, missing)), F.pad(up, (0, missing)), F.pad(inner, (0, missing))
        ctx.part = Bottleneck(gemm.pack(lower), gemm.pack(upper), inner, gelu=True)
        out, (state, slope) = bottleneck.through(y, ctx.part)
        ctx.save_for_backward(y, bias, down, state, slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, bias, down, state, slope = ctx.saved_tensors
        gradient = gradient.contiguous()
        for_y, for_bias, for_down, for_down_bias, for_up = ctx.needs_input_grad
        found = bottleneck.back(gradient, slope, ctx.part, x=for_y)
        size = len(down)
        total = found.total[:size]
        return (
            found.x,
            (down * total.unsqueeze(1)).sum(dim=0) if for_bias else None,
            gemm.weight_gradient(found.state, y)[:size].addr_(total, bias) if for_down else None,
            total if for_down_bias else None,
            gemm.weight_gradient(gradient, state)[:, :size] if for_up else None,
        )
